"""Everything that needs a CUDA device, measured in one go: `python -m benchmarks.gpu`."""
