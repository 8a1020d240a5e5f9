"""The command line: `main` runs one command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

RUN_ERROR = 1
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code (0 fine, 1 run-time failure, 2 user error)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if any(":" in word or word.replace("_", "-").startswith("--allow-import") for word in words):
        sys.path.append(os.getcwd())  # own modules lie in the working folder; last, so that they shadow nothing
    try:
        from understudy.cli.commands import parse

        parse(words)()
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
        print(f"understudy: error: {error}", file=sys.stderr)
        _print_notes(error)
        return code


def _print_notes(error: BaseException) -> None:
    """What the training added about its checkpoint."""
    for note in vars(error).get("__notes__", []):
        print(note, file=sys.stderr)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that needs no traceback; None for a bug."""
    from understudy.types import CheckpointError, UnderstudyError

    if isinstance(error, ValueError | ImportError | CheckpointError):
        return USER_ERROR
    return RUN_ERROR if isinstance(error, UnderstudyError | OSError) else None
