"""A short sample of the campaign of misbehaving environments."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.environments import FAULTS, campaign, judge, train


def test_a_sample_of_misbehaving_environments_has_the_right_answers(tmp_path: Path) -> None:
    assert len(FAULTS) >= 45
    findings, count = campaign(seed=1, count=8, folder=tmp_path)
    assert (findings, count) == ([], 8)


def test_a_wrong_answer_is_found(tmp_path: Path) -> None:
    sound = train("Sound-real-v0", 0, tmp_path)
    other = train("Sound-real-v0", 1, tmp_path)
    fine, wrong = FAULTS[0], next(fault for fault in FAULTS if fault.right)
    assert not judge(fine, sound, sound)
    assert judge(fine, other, sound)
    assert judge(wrong, sound, sound)
