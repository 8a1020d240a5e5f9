"""Every scheduler of torch gives torch's learning rates, from YAML too, comes back from a checkpoint, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import lr_scheduler

from understudy.ppo.lr_scheduler import LearningRateScheduler, LRSchedulerConfig
from understudy.ppo.optim import Optimizer, OptimizerConfig
from understudy.runs.archive import archived, read_archive
from understudy.runs.codec import from_plain, to_plain

START = 2.0**-8
PLATEAU = [1.0, 0.5, 0.75, 0.75, 0.75, 0.25]
"""Values of the metric, by step: with patience 1 the fourth is the second without progress."""

SCHEDULERS: dict[str, tuple[str, Callable[[torch.optim.Optimizer], Any]]] = {
    "ConstantLR": ("options: {factor: 0.5, total_iters: 3}", lambda o: lr_scheduler.ConstantLR(o, 0.5, 3)),
    "CosineAnnealingLR": ("options: {T_max: 6.0, eta_min: 1e-4}", lambda o: lr_scheduler.CosineAnnealingLR(o, 6, 1e-4)),
    "CosineAnnealingWarmRestarts": (
        "options: {T_0: 2, T_mult: 2}",
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    ),
    "CyclicLR": (
        "options: {base_lr: 1e-4, max_lr: 1e-3, step_size_up: 2, mode: triangular2}",
        lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-3, 2, mode="triangular2"),
    ),
    "ExponentialLR": ("options: {gamma: 0.9}", lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "LinearLR": ("options: {start_factor: 0.25, total_iters: 4}", lambda o: lr_scheduler.LinearLR(o, 0.25, 1, 4)),
    "MultiStepLR": ("options: {milestones: [2, 4], gamma: 0.1}", lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.1)),
    "OneCycleLR": (
        "options: {max_lr: 0.01, total_steps: 8, anneal_strategy: linear, three_phase: true}",
        lambda o: lr_scheduler.OneCycleLR(o, 0.01, 8, anneal_strategy="linear", three_phase=True),
    ),
    "PolynomialLR": ("options: {total_iters: 5, power: 2.0}", lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0)),
    "ReduceLROnPlateau": (
        "{metric: loss, options: {factor: 0.5, patience: 1}}",
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    ),
    "SequentialLR": (
        "schedulers: [{name: LinearLR, options: {start_factor: 0.25, total_iters: 2}},"
        " {name: MultiStepLR, options: {milestones: [1], gamma: 0.5}}]\noptions: {milestones: [3]}",
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.25, 1, 2), lr_scheduler.MultiStepLR(o, [1], 0.5)], [3]
        ),
    ),
    "ChainedScheduler": (
        "schedulers: [{name: ConstantLR, options: {factor: 0.5, total_iters: 2}},"
        " {name: ExponentialLR, options: {gamma: 0.5}}]",
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.5)]
        ),
    ),
    "StepLR": ("options: {step_size: 2, gamma: 0.5}", lambda o: lr_scheduler.StepLR(o, 2, 0.5)),
}
FUNCTIONS = {"LambdaLR", "MultiplicativeLR"}


def read(name: str, text: str) -> LRSchedulerConfig:
    """The config, as a file has it."""
    return from_plain(LRSchedulerConfig, {"name": name} | yaml.safe_load(text), "ppo.lr_scheduler")


def build(config: LRSchedulerConfig, steps: int = 0) -> tuple[Optimizer, LearningRateScheduler]:
    optimizer = Optimizer([nn.Parameter(torch.zeros(1))], OptimizerConfig(learning_rate=START))
    return optimizer, LearningRateScheduler(optimizer, config, steps)


def test_every_scheduler_of_this_torch_is_tested() -> None:
    assert set(SCHEDULERS) | FUNCTIONS | {"LRScheduler"} == set(lr_scheduler.__all__)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_torch_scheduler_gives_its_rates_and_comes_back(name: str, tmp_path: Path) -> None:
    text, make = SCHEDULERS[name]
    config = read(name, text)
    assert from_plain(LRSchedulerConfig, to_plain(config), "ppo.lr_scheduler") == config
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=START)
    reference = make(plain)
    expected = [plain.param_groups[0]["lr"]]
    for number in PLATEAU:
        plain.step()
        reference.step(number) if config.metric else reference.step()
        expected.append(plain.param_groups[0]["lr"])

    optimizer, scheduler = build(config, steps=6)
    rates = [float(optimizer.learning_rate.value)]
    for index, number in enumerate(PLATEAU):
        if index == 3:
            state = {"rate": scheduler.state_dict(), "optimizer": optimizer.state_dict()}
            (tmp_path / "state.pt").write_bytes(archived(state))
            saved = read_archive(tmp_path / "state.pt")
            optimizer, scheduler = build(config)
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["rate"])
            assert float(optimizer.learning_rate.value) == rates[-1]
        scheduler.step()
        scheduler.observe({"another": 7.0})
        scheduler.observe({"loss": float("nan")})
        scheduler.observe({"loss": number})
        rates.append(float(optimizer.learning_rate.value))
    assert rates == pytest.approx(expected, rel=1e-6)
    assert len(set(rates)) > 1


def test_a_function_is_taken_from_python() -> None:
    optimizer, scheduler = build(LRSchedulerConfig(name="LambdaLR", options={"lr_lambda": lambda i: 1.0 / (1 + i)}))
    scheduler.step()
    assert float(optimizer.learning_rate.value) == START / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ReduceLROnPlateau"}, "ReduceLROnPlateau needs metric"),
        ({"name": "StepLR", "options": {"step_size": 1}, "metric": "ppo/kl"}, "StepLR takes no metric"),
        ({"name": "SequentialLR", "options": {"milestones": [2]}}, "SequentialLR needs schedulers"),
        (
            {"name": "ChainedScheduler", "schedulers": [LRSchedulerConfig(name="ReduceLROnPlateau", metric="ppo/kl")]},
            "ChainedScheduler cannot hold a ReduceLROnPlateau",
        ),
        (
            {
                "name": "SequentialLR",
                "options": {"milestones": [1, 2]},
                "schedulers": [LRSchedulerConfig(name="StepLR")],
            },
            "SequentialLR does not take the options .*step_size",
        ),
        ({"name": "CosineLR"}, "lr_scheduler 'CosineLR' is unknown; did you mean"),
        ({"name": "LRScheduler"}, "lr_scheduler 'LRScheduler' is unknown; did you mean"),
        ({"name": "StepLR"}, "StepLR does not take the options .*step_size"),
        ({"name": "StepLR", "options": {"step_size": 1, "gama": 0.5}}, "does not take the options .*gama"),
        ({"name": "OneCycleLR", "options": {"max_lr": 0.01, "total_steps": 2.5}}, "not take the options .*total_steps"),
        ({"name": "MultiStepLR", "options": {"milestones": [[2]]}}, "MultiStepLR"),
    ],
)
def test_a_scheduler_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(LRSchedulerConfig(**settings), steps=6)
