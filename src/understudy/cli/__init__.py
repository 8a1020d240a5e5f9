"""The command line: `main` runs one command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

RUN_ERROR = 1
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
RANK = int(os.environ["RANK"]) if "WORLD_SIZE" in os.environ else 0
"""Of this process, where torchrun started several."""

_LATER = 3.0
"""Seconds for which a process that lost another one stays: torchrun then reports the other one's end as the cause."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code (0 fine, 1 run-time failure, 2 user error)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if any(":" in word or word.replace("_", "-").startswith("--allow-import") for word in words):
        sys.path.append(os.getcwd())  # own modules lie in the working folder; last, so that they shadow nothing
    run: Callable[[], None] | None = None
    try:
        from understudy.cli.commands import parse

        with _first_rank_speaks():
            run = parse(words)
        run()
        return 0
    except SystemExit as stop:  # tyro leaves this way, its help or its message printed; so does a second SIGTERM
        _print_notes(stop)
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except BrokenPipeError:  # `understudy list envs | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (Python flushes stdout once more at exit)
        return 0
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        _print_notes(stop)
        return INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        if run is None and RANK:
            return code
        print(f"understudy: error{f' (rank {RANK})' if RANK else ''}: {error}", file=sys.stderr)
        _print_notes(error)
        if _lost_a_rank(error):
            time.sleep(_LATER)
        return code


@contextmanager
def _first_rank_speaks() -> Iterator[None]:
    """Of processes that torchrun started, all parse the same words: one complains, or shows the help."""
    if not RANK:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _print_notes(error: BaseException) -> None:
    """What the training added about its checkpoint."""
    for note in vars(error).get("__notes__", []):
        print(note, file=sys.stderr)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that needs no traceback; None for a bug."""
    from understudy.types import CheckpointError, UnderstudyError

    if isinstance(error, ValueError | ImportError | CheckpointError):
        return USER_ERROR
    return RUN_ERROR if isinstance(error, UnderstudyError | OSError) or _lost_a_rank(error) else None


def _lost_a_rank(error: Exception) -> bool:
    from understudy.core.ranks import RankError

    return isinstance(error, RankError)
