"""What measures: each module side by side with what others do, in one run, as `python -m benchmarks NAME`."""
