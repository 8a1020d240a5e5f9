"""Measurements of the library: one folder per question, each started with `python -m benchmarks.<question>`."""
