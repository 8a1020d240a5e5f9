"""`python -m benchmarks.defaults`."""

from benchmarks.defaults.defaults import Defaults
from benchmarks.table import main

if __name__ == "__main__":
    main(Defaults)
