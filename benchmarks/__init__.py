"""Benchmarks: each module compares the library with other software in one run, as `python -m benchmarks NAME`."""
