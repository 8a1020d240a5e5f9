"""Misbehaving environments, each trained, loaded and evaluated, and compared with a sound twin.

    python -m benchmarks.faults.environments --seed 0 --count 200

The right answer to each is known: the weights and the score of the sound twin, or one error that names the thing. The
fault begins with the first reset, the first step, a later step, or the first reset inside a step. Prints the findings
and a summary, writes results/environments.md.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

HERE = "benchmarks.faults.environments"
RESULTS = Path(__file__).parent / "results"
SPACES: dict[str, spaces.Space[Any]] = {
    "real": spaces.Box(-100, 100, (3,), np.float32),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "class": spaces.Discrete(12, start=2),
    "bits": spaces.MultiBinary(3),
    "names": spaces.Dict({"a.b": spaces.Box(-100, 100, (3,), np.float32), "x/y": spaces.Discrete(12)}),
}


class Fault(NamedTuple):
    """`bend` changes what an environment has at `place`; `right`: part of the error, empty where it is to train."""

    name: str
    place: str  # obs, reward, a flag, info, step, reset, call (of step and reset), space, action, init, close
    bend: Callable[[Any], Any]
    right: str = ""
    space: str = "real"


def _raise(error: BaseException) -> Any:
    raise error


def _reused() -> Callable[[Any], Any]:
    """The same array every time, which the environment goes on changing."""
    memory = np.zeros(3, np.float32)

    def bend(obs: np.ndarray) -> np.ndarray:
        memory[:] = obs
        return memory

    return bend


FAULTS = [
    # the same numbers in another form: as the sound twin
    Fault("obs-list", "obs", lambda x: x.tolist()),
    Fault("obs-tuple", "obs", lambda x: tuple(x.tolist())),
    Fault("obs-float64", "obs", lambda x: x.astype(np.float64)),
    Fault("obs-tensor", "obs", torch.as_tensor),
    Fault("obs-reversed-view", "obs", lambda x: x[::-1].copy()[::-1]),
    Fault("obs-big-endian", "obs", lambda x: x.astype(">f4")),
    Fault("obs-same-array", "obs", _reused()),
    Fault("bytes-int64", "obs", lambda x: x.astype(np.int64), space="bytes"),
    Fault("bytes-list", "obs", lambda x: x.tolist(), space="bytes"),
    Fault("class-array", "obs", lambda x: np.array(x), space="class"),
    Fault("class-int16", "obs", np.int16, space="class"),
    Fault("bits-bool", "obs", lambda x: x.astype(bool), space="bits"),
    Fault("names", "obs", dict, space="names"),
    Fault("names-more", "obs", lambda x: {**x, "other": "text"}, space="names"),
    Fault("reward-array", "reward", lambda r: np.array([r])),
    Fault("reward-list", "reward", lambda r: [r]),
    Fault("reward-scalar-array", "reward", np.array),
    Fault("reward-tensor", "reward", lambda r: torch.tensor([r])),
    Fault("flag-int", "terminated", int),
    Fault("flag-array", "terminated", lambda f: np.array([f])),
    Fault("flag-float", "truncated", float),
    Fault("flag-tensor", "truncated", torch.tensor),
    Fault("info-odd", "info", lambda _: {"text": "x", "none": None, "list": [1, 2], "object": object()}),
    Fault("info-none", "info", lambda _: None),
    Fault("info-changing", "info", lambda _: {f"k{random.randrange(9)}": random.choice((1.0, "x", np.zeros(2)))}),
    Fault("obs-grad", "obs", lambda x: torch.as_tensor(x).requires_grad_()),
    Fault("step-list", "step", list),
    Fault("close-raises", "close", lambda _: _raise(OSError("no such window"))),
    # what cannot be meant: one error that names it
    Fault("obs-none", "obs", lambda _: None, "the observation is None"),
    Fault("obs-short", "obs", lambda x: x[:1], r"shape \(1,\).*says \(3,\)"),
    Fault("obs-long", "obs", lambda x: np.append(x, 0), r"shape \(4,\).*says \(3,\)"),
    Fault("obs-batched", "obs", lambda x: x[None], r"shape \(1, 3\).*says \(3,\)"),
    Fault("obs-number", "obs", lambda x: float(x[0]), r"shape \(\).*says \(3,\)"),
    Fault("obs-text", "obs", lambda _: "left", "the observation is 'left'"),
    Fault("obs-texts", "obs", lambda x: [str(y) for y in x], "the observation is .*not numbers"),
    Fault("obs-objects", "obs", lambda x: x.astype(object), "the observation is .*not numbers"),
    Fault("obs-ragged", "obs", lambda _: [[1.0], [1.0, 2.0]], "no array can hold"),
    Fault("obs-complex", "obs", lambda x: x.astype(complex), "the observation is .*not numbers"),
    Fault("obs-dict", "obs", lambda x: {"state": x}, "the observation is .*not numbers"),
    Fault("bytes-floats", "obs", lambda x: x / 255.0, "float64.*whole numbers", "bytes"),
    Fault("bytes-large", "obs", lambda x: x.astype(np.int64) + 256, "holds 2[0-9]+, but its space", "bytes"),
    Fault("bytes-negative", "obs", lambda x: -1 - x.astype(np.int64), "holds -[0-9]+, but its space", "bytes"),
    Fault("class-float", "obs", float, "float64.*whole numbers", "class"),
    Fault("bits-floats", "obs", lambda x: x * 0.5, "float64.*whole numbers", "bits"),
    Fault("names-missing", "obs", lambda x: {"a.b": x["a.b"]}, "observation 'x/y' is missing.*has 'a.b'", "names"),
    Fault("names-array", "obs", lambda x: x["a.b"], "is missing: the environment's observation is a ndarray", "names"),
    Fault("obs-set", "obs", lambda x: {*x.tolist(), 0.5}, "the observation is {"),
    Fault("obs-bfloat16", "obs", lambda x: torch.as_tensor(x).bfloat16(), "no array can hold"),
    Fault("reward-decimal", "reward", Decimal, r"the reward is Decimal\("),
    Fault("reward-complex", "reward", complex, r"the reward is .*\(complex\)"),
    Fault("reward-too-long", "reward", lambda _: 10**400, "the reward is 1000"),
    Fault("flag-two", "terminated", lambda _: 2, r"terminated is 2 \(int\)"),
    Fault("raises-memory", "call", lambda _: _raise(MemoryError()), "raised MemoryError in .*without a message"),
    Fault("raises-stop", "call", lambda _: _raise(StopIteration()), "raised StopIteration in"),
    Fault("space-wide", "space", lambda _: spaces.Discrete(10**11), "classes would take"),
    Fault("action-wide", "action", lambda _: spaces.Discrete(10**11), "outputs would take"),
    Fault("reward-none", "reward", lambda _: None, "the reward is None"),
    Fault("reward-text", "reward", str, "the reward is '"),
    Fault("reward-arrays", "reward", lambda r: np.full(3, r), "the reward is array"),
    Fault("reward-dict", "reward", lambda r: {"x": r}, "the reward is {'x'"),
    Fault("flag-none", "terminated", lambda _: None, "terminated is None"),
    Fault("flag-text", "truncated", str, "truncated is '"),
    Fault("flag-list", "terminated", lambda f: [f, f], "terminated is \\["),
    Fault("flag-nan", "truncated", lambda _: float("nan"), "truncated is nan"),
    Fault("step-four", "step", lambda r: (*r[:3], r[4]), "step returned 4 values"),
    Fault("step-three", "step", lambda r: r[:3], "step returned 3 values"),
    Fault("step-none", "step", lambda _: None, "step returned a NoneType"),
    Fault("reset-alone", "reset", lambda r: r[0], "reset returned a ndarray"),
    Fault("reset-three", "reset", lambda r: (*r, 0), "reset returned 3 values"),
    Fault("raises-key", "call", lambda _: _raise(KeyError("contact")), "raised KeyError in (step|reset): 'contact'"),
    Fault("raises-value", "call", lambda _: _raise(ValueError("domain")), "raised ValueError in (step|reset): domain"),
    Fault("raises-silent", "call", lambda _: _raise(AssertionError()), "raised AssertionError in .*without a message"),
    Fault("init-type-error", "init", lambda _: _raise(TypeError("a + b")), "raised TypeError in its constructor: a"),
    Fault("init-runtime", "init", lambda _: _raise(RuntimeError("no GPU")), "raised RuntimeError in its constructor"),
    Fault("space-tuple", "space", lambda s: spaces.Tuple((s, s)), "Tuple space"),
    Fault("space-text", "space", lambda _: spaces.Text(5), "Text space"),
    Fault("space-sequence", "space", spaces.Sequence, "Sequence space"),
    Fault("space-none", "space", lambda _: None, "observation_space must be a gymnasium.Space"),
    Fault("space-empty", "space", lambda _: spaces.Box(-1, 1, (0,), np.float32), "have no entries"),
    Fault("action-text", "action", lambda _: spaces.Text(5), "Text action space"),
    Fault("action-integers", "action", lambda _: spaces.Box(0, 5, (2,), np.int64), "a Box of actions is floating"),
    Fault("action-empty", "action", lambda _: spaces.Box(-1, 1, (0,), np.float32), "a Box of actions is floating"),
]
BY_NAME = {fault.name: fault for fault in FAULTS}
ONSETS = {"obs": (0, 1, 7, -1), "call": (0, 1, 7, -1), "reset": (0, -1), "init": (0,), "space": (0,), "action": (0,)}
"""Calls from which on a fault shows: the first reset, the first step, a later one; -1: a reset inside a step."""


class Walk(gym.Env[Any, Any]):
    """A short walk whose numbers all matter; a fault shows from the call `onset` on (-1: in resets after the first)."""

    def __init__(self, fault: str = "", onset: int = 0, space: str = "real") -> None:
        self.fault, self.onset = BY_NAME.get(fault), onset
        self.space = space
        self.observation_space = self._bent("space", SPACES[space])
        self.action_space = self._bent("action", spaces.Discrete(2))
        self.calls = self.resets = self.x = self.t = 0
        self._bent("init", None)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = int(self.np_random.integers(0, 3)), 0
        self.resets += 1
        self._bent("call", None)
        result = self._bent("reset", (self._bent("obs", self._observation()), self._bent("info", {})))
        self.calls += 1
        return result

    def step(self, action: Any) -> Any:
        self.x, self.t = self.x + (1 if action else -1), self.t + 1
        self._bent("call", None)
        terminated, truncated = self.x > 4, self.t == 6
        obs, reward = self._bent("obs", self._observation()), self._bent("reward", 0.25 * self.x)
        flags = self._bent("terminated", terminated), self._bent("truncated", truncated)
        result = self._bent("step", (obs, reward, *flags, self._bent("info", {})))
        self.calls += 1
        return result

    def close(self) -> None:
        self._bent("close", None)

    def _bent(self, place: str, value: Any) -> Any:
        if self.fault is None or self.fault.place != place:
            return value
        if place in ("space", "action", "init", "close"):
            return self.fault.bend(value)
        inside = self.resets > 1 and self.t == 0
        return self.fault.bend(value) if (inside if self.onset < 0 else self.calls >= self.onset) else value

    def _observation(self) -> Any:
        real = np.array([self.x, self.t, 1 / (self.t + 1)], np.float32)
        if self.space == "bytes":
            return np.array([self.x + 10, self.t, 200], np.uint8)
        if self.space == "class":
            return min(self.t + 3, 13)
        if self.space == "bits":
            return np.array([self.x > 1, self.t > 2, self.x > self.t], np.int8)
        return {"a.b": real, "x/y": self.t} if self.space == "names" else real


for _fault in FAULTS:
    for _onset in ONSETS.get(_fault.place, (1, 7)):
        _options = {"fault": _fault.name, "onset": _onset, "space": _fault.space}
        gym.register(f"Fault-{_fault.name}-{_onset + 1}-v0", f"{HERE}:Walk", kwargs=_options)
for _space in SPACES:
    gym.register(f"Sound-{_space}-v0", f"{HERE}:Walk", kwargs={"space": _space})


class Outcome(NamedTuple):
    """What a training came to."""

    code: int
    said: str
    weights: dict[str, torch.Tensor]
    score: float


def train(env_id: str, seed: int, folder: Path) -> Outcome:
    """Train, load and evaluate."""
    import understudy as us
    from understudy.types import UnderstudyError

    config = us.TrainConfig(
        env=us.EnvConfig(id=f"{HERE}:{env_id}", num_envs=2),
        total_steps=48,
        seed=seed,
        run_dir=str(folder / f"{env_id}-{seed}"),
        ppo=us.PPOConfig(num_steps=16, minibatches=2, epochs=1),
        policy=us.PolicyConfig(hidden_sizes=(8,)),
        evaluation=us.EvaluationConfig(episodes=2),
        logging=us.LoggingConfig(console=False, tensorboard=False),
        device="cpu",
        torch_threads=1,
    )
    try:
        run = us.train(config).path
    except (ValueError, ImportError, UnderstudyError) as error:  # one line on the command line
        return Outcome(1, str(error), {}, float("nan"))
    except Exception as error:
        return Outcome(-1, f"Traceback: {type(error).__name__}: {error}", {}, float("nan"))
    policy = us.load(run, allow=[HERE])
    return Outcome(0, "", dict(policy.state_dict()), us.evaluate(run, episodes=4, allow=[HERE]).mean_return)


def judge(fault: Fault, found: Outcome, sound: Outcome) -> str:
    """What is wrong with an outcome; empty if it is the right answer."""
    if found.code < 0:
        return found.said
    if fault.right:
        said = " ".join(found.said.split())
        return "" if found.code and re.search(fault.right, said) else f"expected {fault.right!r}, got {said[-300:]!r}"
    if found.code:
        return f"refused: {found.said[-300:]!r}"
    same = all(torch.equal(x, sound.weights[name]) for name, x in found.weights.items())
    return "" if same and found.score == sound.score else f"score {found.score} beside {sound.score}, weights {same}"


def campaign(seed: int, count: int, folder: Path) -> tuple[list[str], int]:
    """Findings and the number of trainings, over `count` pairs of fault and onset."""
    draw, sound = random.Random(seed), {}
    pairs = [(fault, onset) for fault in FAULTS for onset in ONSETS.get(fault.place, (1, 7))]
    draw.shuffle(pairs)
    findings = []
    chosen = (pairs * (count // len(pairs) + 1))[:count]
    for fault, onset in chosen:
        number = draw.randrange(3)
        if (fault.space, number) not in sound:
            sound[fault.space, number] = train(f"Sound-{fault.space}-v0", number, folder)
        # a folder takes one training
        place = folder / f"{len(os.listdir(folder))}"
        place.mkdir()
        found = train(f"Fault-{fault.name}-{onset + 1}-v0", number, place)
        wrong = judge(fault, found, sound[fault.space, number])
        if wrong:
            findings.append(f"{fault.name} from call {onset}: {wrong}")
    return findings, len(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        findings, count = campaign(args.seed, args.count, Path(folder))
    summary = f"{count} trainings of {len(FAULTS)} misbehaving environments: {len(findings)} with a wrong answer"
    print(*findings, summary, sep="\n")
    RESULTS.mkdir(exist_ok=True)
    command = f"python -m {HERE} --seed {args.seed} --count {args.count}"
    lines = ["# environments", "", f"- `{command}`", f"- {summary}", *(f"- {finding}" for finding in findings), ""]
    (RESULTS / "environments.md").write_text("\n".join(lines))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
