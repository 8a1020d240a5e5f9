from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.faults import options

import understudy as us
from understudy.core.check import hints_of
from understudy.core.schedules import Schedule
from understudy.parts import PARTS
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.ppo.metrics import METRICS
from understudy.ppo.optim import OptimizerConfig
from understudy.runs.codec import to_plain
from understudy.runs.config import from_yaml

INPUTS = options.Inputs("expert.npz", "motion.npz", "teacher")


def test_a_sample_of_the_campaign(tmp_path: Path) -> None:
    """`python -m benchmarks.faults.options` walks them all."""
    said: list[str] = []
    counts, findings = options.campaign(tmp_path, seed=1, count=8, match="", say=said.append)
    assert not findings, said
    assert counts["refused"]
    assert counts["trained"]


def test_values_are_taken_or_refused_by_name() -> None:
    """What comes through YAML is a config or a ValueError, and never takes long."""
    configs = options.trainings(INPUTS)
    cases = [case for case in options.every_case(configs) if case.training not in ("ppo", "offline")]
    for case in random.Random(0).sample(cases, 40):
        plain = to_plain(configs[case.training])
        inner = plain
        for key in case.leaf.path[:-1]:
            inner = inner[key]
        inner[case.leaf.path[-1]] = case.value
        said = ""
        try:
            from_yaml(yaml.safe_dump(plain), allow=("benchmarks",))
        except ValueError as error:
            said = str(error)
        shown = str(case.value) if isinstance(case.value, str) else case.leaf.path[-1]
        assert not said or any(word in said for word in (shown, *case.leaf.path[-2:])), (case, said)


def test_the_trainings_have_every_config_class() -> None:
    """A part that nobody would try, and a class whose annotations cannot be resolved, would go unnoticed."""
    leaves = [leaf for config in options.trainings(INPUTS).values() for leaf in options.leaves(config)]
    assert set(PARTS.values()) <= {leaf.owner for leaf in leaves}
    assert all(hints_of(leaf.owner) for leaf in leaves)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e308, 10**400, "x", None, [1.0], True])
def test_a_learning_rate_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="learning_rate must"):
        OptimizerConfig(learning_rate=value)  # type: ignore[arg-type]


def losing(batch: Any) -> Any:
    """A surrogate that reads a misspelt name."""
    return -batch["advantge"] * batch["log_ratio"].exp()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler": ("StepLR", {"step_size": 0})}, "lr_scheduler StepLR fails after 0 of 2 steps"),
        (
            {"lr_scheduler": ("StepLR", {"step_size": 1, "gamma": 1e9})},
            "after 1 of 2 .* learning rate must",
        ),
        ({"lr_scheduler": ("OneCycleLR", {"max_lr": 0.01, "total_steps": 1})}, "OneCycleLR fails after 1 of 2 steps"),
        ({"entropy_coef": "when:episode/retrun>=1:1:0"}, "waits for 'episode/retrun'.*did you mean episode/return"),
        ({"value_coef": "when:gail/accuracy>=1:1:0"}, "waits for 'gail/accuracy'"),
        ({"num_steps": 100_000}, "a rollout of 100000 steps x 100000 copies would take .* reduce ppo.num_steps"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if "lr_scheduler" in settings:
        name, chosen = settings["lr_scheduler"]
        settings = {"lr_scheduler": LRSchedulerConfig(name=name, options=chosen)}
    parsed = {name: Schedule.parse(x) if isinstance(x, str) else x for name, x in settings.items()}
    base = options.tiny(run_dir=str(tmp_path / "run"))
    many = dataclasses.replace(base.env, num_envs=100_000 if "num_steps" in settings else 4)
    config = dataclasses.replace(base, env=many, ppo=dataclasses.replace(base.ppo, **parsed))
    before = options.steps_taken
    with pytest.raises(ValueError, match=message):
        us.train(config)
    assert options.steps_taken == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["learning_rate", "dagger"])
def test_no_metric_is_at_hand_in_offline_epochs(field: str) -> None:
    waiting = Schedule.parse("when:ppo/kl>=1:1:0")
    with pytest.raises(ValueError, match=r"offline\..* must not wait for a metric"):
        us.OfflineConfig(learning_rate=waiting) if field == "learning_rate" else us.DaggerConfig(beta=waiting)


def test_a_surrogate_that_reads_a_misspelt_name(tmp_path: Path) -> None:
    base = options.tiny(run_dir=str(tmp_path / "run"))
    ppo = dataclasses.replace(base.ppo, surrogate=f"{__name__}:losing")
    with pytest.raises(ValueError, match="reads 'advantge', not in a batch; did you mean advantage"):
        us.train(dataclasses.replace(base, ppo=ppo))


def test_the_metrics_that_conditions_may_name_are_those_that_are_logged(tmp_path: Path) -> None:
    base = options.tiny(run_dir=str(tmp_path / "run"))
    run = us.train(dataclasses.replace(base, ppo=dataclasses.replace(base.ppo, desired_kl=0.01, target_kl=0.5)))
    logged = {key for row in run.metrics for key in row if key.partition("/")[0] in METRICS}
    known = {f"{group}/{name}" for group, names in METRICS.items() for name in names}
    assert logged <= known
    assert known - logged <= {"episode/success"}
