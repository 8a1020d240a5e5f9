"""The benchmark of what training with nothing said scores."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.defaults.defaults import OURS, THEIRS, Defaults, Job
from benchmarks.table import answer, parse


def test_the_table_holds_what_is_known(tmp_path: Path) -> None:
    words = ["--known-only", "--runs", str(tmp_path), "--output", str(tmp_path), "--seeds", "0", "1"]
    question = Defaults(parse(Defaults, [*words, "--envs", "A-v0", "B-v0", "C-v0"]))
    known = [
        (Job(library=OURS, env="A-v0", seed=0, steps=100_000), 400.0),
        (Job(library=OURS, env="A-v0", seed=1, steps=100_000), 500.0),
        (Job(library=THEIRS, env="A-v0", seed=0, steps=100_000), 449.0),
        (Job(library=OURS, env="B-v0", seed=0, steps=100_000), -1.5),
        (Job(library=THEIRS, env="B-v0", seed=1, steps=100_000), -1.25),
        (Job(library=OURS, env="C-v0", seed=0, steps=100_000), 1.0),
        (Job(library=THEIRS, env="C-v0", seed=0, steps=300_000), 1.0),
    ]
    rows = [{"key": job.key, **vars(job), "score": score, "version": "1.0"} for job, score in known]
    question.store.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = answer(question)
    assert "| A-v0 | 450 ± 71 (2) | 449 (1) | - |" in page
    assert "| B-v0 | -1.50 (1) | -1.25 (1) | - |" in page
    assert "| C-v0 | 1.00 (1) | - | 1.00 (1) |" in page
    assert "in 1 of 2 tasks at 100k steps." in page
    assert "7 training runs" in page


def test_interrupted_tables_have_every_task_before_a_second_seed(tmp_path: Path) -> None:
    jobs = Defaults(parse(Defaults, ["--libraries", THEIRS, "--runs", str(tmp_path)])).jobs()
    assert len(jobs) == 100
    assert {job.seed for job in jobs[:20]} == {0}
    assert {job.library for job in jobs} == {THEIRS}
