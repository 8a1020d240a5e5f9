"""`python -m benchmarks.learning`."""

from benchmarks.learning.learning import Learning
from benchmarks.table import main

if __name__ == "__main__":
    main(Learning)
