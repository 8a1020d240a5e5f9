"""Failures while reading a file become one error that names it; claims of memory are checked before it is taken."""

import json

import pytest

from understudy.core.borders import LIMIT_VARIABLE, check_unpacked, parsing
from understudy.types import CheckpointError


@pytest.mark.parametrize("failure", [KeyError("frames"), RecursionError("too deep"), MemoryError(), OSError(5, "I/O")])
def test_any_failure_names_file_and_remedy(failure: Exception) -> None:
    with (
        pytest.raises(ValueError, match=r"^a\.npz is damaged .*; record it again$"),
        parsing("a.npz", "record it again"),
    ):
        raise failure


def test_a_parser_s_own_value_error_is_named_too() -> None:
    with pytest.raises(CheckpointError, match=r"a\.json .*Expecting value"), parsing("a.json", "x", CheckpointError):
        json.loads("")


def test_what_names_the_file_passes_unchanged() -> None:
    with pytest.raises(ValueError, match=r"^a\.npz has no actions$"), parsing("a.npz", "x"):
        raise ValueError("a.npz has no actions")
    with pytest.raises(ImportError), parsing("a.npz", "x"):
        raise ImportError("pip install h5py")
    with pytest.raises(ValueError, match=r"^there is no file a\.npz$"), parsing("a.npz", "x"):
        raise FileNotFoundError


def test_claims_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    GiB = 2**30
    check_unpacked("a", GiB, 4 * GiB)  # 4 times a large file
    check_unpacked("a", 1000, GiB // 4)  # little in any case
    with pytest.raises(ValueError, match=r"^a claims 1\.0 GiB in 1,000 bytes.*UNDERSTUDY_MAX_UNPACKED_GIB=2"):
        check_unpacked("a", 1000, GiB)
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    check_unpacked("a", 1000, GiB)
