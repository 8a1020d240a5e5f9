"""`python -m benchmarks.advisor`."""

from benchmarks.advisor.advisor import Advisor
from benchmarks.table import main

if __name__ == "__main__":
    main(Advisor)
