from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import understudy as us
from understudy.core.check import Config, In, checked, nearest
from understudy.core.schedules import Number, Schedule
from understudy.runs.codec import from_plain


@dataclass(frozen=True, kw_only=True)
class Sample(Config):
    PREFIX = "sample."

    share: Annotated[Number, In(0.0, 1.0)] = 0.5
    count: Annotated[int | None, In(1)] = None
    rate: Annotated[float, In(0.0, without=(0.0,))] = 1.0
    kind: Literal["first", "second"] = "first"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    place: Path = Path()
    words: dict[str, int] | None = None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, r"^sample\.share must lie in \[0, 1\], got 1\.5$"),
        ({"share": Schedule.parse("linear:0.5:2")}, r"share must lie in \[0, 1\]"),
        ({"share": float("nan")}, "share must"),
        ({"count": 0}, r"^sample\.count must be at least 1, got 0$"),
        ({"count": 1.0}, "count must be a whole number"),
        ({"count": True}, "count must be a whole number"),
        ({"rate": 0}, "rate must be greater than 0, got 0"),
        ({"kind": "frist"}, r"kind must be one of first, second \(did you mean first\?\), got 'frist'"),
        ({"sizes": (1, "x")}, "sizes must in each entry be a whole number"),
        ({"sizes": 3}, "sizes must be a list of whole numbers"),
        ({"pair": (1,)}, "pair must have 2 values"),
        ({"place": "x"}, "place must be a Path, got 'x'"),
        ({"words": {"a": "b"}}, "words must in each entry be a whole number"),
    ],
)
def test_a_config_says_what_does_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(**settings)


def test_what_fits_is_taken() -> None:
    sample = Sample(share=Schedule.parse("linear:1:0"), count=3, sizes=[1, 2], words={"a": 1})  # type: ignore[arg-type]
    assert sample.sizes == (1, 2)


def test_nearest() -> None:
    assert nearest("pppo", ["ppo", "tppo", "appo", "gail"]) == "did you mean ppo?"
    assert nearest("behaviour", ["behavior-cloning", "gail"]) == "did you mean behavior-cloning?"
    assert nearest("x", ["b", "a"]) == "known: a, b"
    assert nearest("cartpole-V1", ["CartPole-v1"]) == "did you mean CartPole-v1?"
    assert nearest("x", []) == "none is known"


PPO = "PPOConfig has no option"
NOT_HERE = "another library's option, which does not exist here"
EXPLORES = "a memory or `init_std` explores instead"


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (us.PPOConfig, "eps_clip", f"{PPO} 'eps_clip'; it is called clip_epsilon here"),
        (us.PPOConfig, "use_sde", f"{PPO} 'use_sde'; {NOT_HERE}: noise is independent in every step; {EXPLORES}"),
        (us.PPOConfig, "lam", f"{PPO} 'lam'; it is called gae_lambda here"),
        (us.PPOConfig, "learning_rate", f"{PPO} 'learning_rate'; it is called ppo.optimizer.learning_rate here"),
        (us.TrainConfig, "lam", "TrainConfig has no option 'lam'; it is called ppo.gae_lambda here"),
        (us.parts.AdvisorConfig, "fixed_alpha", "AdvisorConfig has no option 'fixed_alpha'; it is called alpha here"),
        (us.PPOConfig, "clip_epslon", f"{PPO} 'clip_epslon'; did you mean clip_epsilon?"),
        (us.OptimizerConfig, "lr", "OptimizerConfig has no option 'lr'; did you mean learning_rate?"),
    ],
)
def test_an_unknown_option_names_ours(kind: type, option: str, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        kind(**{option: 1})
    if kind is us.PPOConfig:
        said = re.sub(rf"{PPO} '(\w+)'", r"there is no option ppo.\1", message)
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            from_plain(us.PPOConfig, {option: 1}, "ppo")


def test_a_config_shows_its_options() -> None:
    options = inspect.signature(us.PPOConfig).parameters
    assert [*options] == [field.name for field in dataclasses.fields(us.PPOConfig)]
    assert options["gamma"].default == 0.99
    changed = us.PPOConfig(gamma=0.5)
    assert pickle.loads(pickle.dumps(changed)) == copy.deepcopy(changed) == changed


def test_initials_stand_for_names_of_several_words_only() -> None:
    known = [f"rate_{word}" for word in ("alpha", "april", "amber", "angle")] + ["radius", "reach"]
    assert nearest("ra", known) == "did you mean rate_alpha or rate_amber or rate_angle?"
    assert nearest("r", known).startswith("known: ")


def test_a_checked_function_names_unknown_options_and_checks_values() -> None:
    @checked
    def build(size: Annotated[int, In(1)], *, gae_lambda: float = 0.9, other: Any = None) -> tuple[int, float]:
        return size, gae_lambda

    assert build(3, gae_lambda=1) == (3, 1)
    assert list(inspect.signature(build).parameters) == ["size", "gae_lambda", "other"]
    for call, error, message in (
        (lambda: build(3, gae_lamda=1.0), TypeError, r"build has no option 'gae_lamda'; did you mean gae_lambda\?"),
        (lambda: build(3, lam=1.0), TypeError, r"build has no option 'lam'; it is called gae_lambda here"),
        (lambda: build(0), ValueError, "build: size must be at least 1, got 0"),
        (lambda: build(3, gae_lambda="much"), ValueError, "build: gae_lambda must be a number, got 'much'"),
    ):
        with pytest.raises(error, match=message):
            call()
