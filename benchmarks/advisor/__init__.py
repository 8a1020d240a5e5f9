"""ADVISOR and its rivals, beside the paper's numbers: `python -m benchmarks.advisor`."""
