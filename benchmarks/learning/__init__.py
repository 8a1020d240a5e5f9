"""The library's recipes beside published scores: `python -m benchmarks.learning`."""
