"""`python -m benchmarks.teacher`."""

from benchmarks.table import main
from benchmarks.teacher.teacher import Teacher

if __name__ == "__main__":
    main(Teacher)
