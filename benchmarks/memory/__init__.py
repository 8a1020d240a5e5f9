"""Does a long training grow? `python -m benchmarks.memory`."""
