"""`python -m benchmarks.imitation`."""

from benchmarks.imitation.imitation import Imitation
from benchmarks.table import main

if __name__ == "__main__":
    main(Imitation)
