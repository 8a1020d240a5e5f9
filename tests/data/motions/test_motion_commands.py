from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from understudy.cli import main

WALK = {"walk": {"FrameDuration": 0.02, "Fields": ["a_dof_pos"], "Frames": [[0.0], [1.0], [9.0]]}}


def test_inspect_prints_what_is_there_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "walk.json"
    path.write_text(json.dumps(WALK))
    assert main(["motions", "inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "walk: 3 frames of 0.02 s = 0.04 s, loop clamp, weight 1" in printed
    assert "a_dof_pos   0.0000 ..  9.0000" in printed
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "motions"]) == 0
    printed = capsys.readouterr().out
    assert "GMR               dictionary with root_pos, root_rot, dof_pos; quaternions xyzw\n" in printed
    assert "MimicKit          dictionary with loop_mode, frames\n" in printed


def test_a_pickle_is_opened_by_the_commands_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "walk.pkl", tmp_path / "walk.npz"
    source.write_bytes(pickle.dumps(WALK))
    assert main(["motions", "convert", str(source), str(target)]) == 0
    assert "1 clips from the pickle (data only, nothing of it was run)" in capsys.readouterr().out
    assert main(["motions", "inspect", str(target), "--picture", str(tmp_path / "p.png")]) == 0
