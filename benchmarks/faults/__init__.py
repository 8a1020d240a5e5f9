"""Faults put into the library on purpose: one program per piece, `python -m benchmarks.faults.<piece>`."""
