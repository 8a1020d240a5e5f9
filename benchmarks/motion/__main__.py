"""`python -m benchmarks.motion`."""

from benchmarks.motion.motion import Motion
from benchmarks.table import main

if __name__ == "__main__":
    main(Motion)
