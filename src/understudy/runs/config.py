"""`TrainConfig`: everything a training is, as one frozen record that a YAML file reproduces exactly."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml

from understudy.core import ranks
from understudy.core.borders import LONGEST_YAML, parse_yaml
from understudy.core.check import Config, Filled, In
from understudy.core.schedules import Condition, Probability, Schedule, Unconditional
from understudy.envs.registry import EnvConfig, KwargValue
from understudy.nn.protocol import PolicyConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.ppo.optim import LearningRate
from understudy.ppo.part import PartConfig
from understudy.runs.codec import PART_TAG, check_imports, from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """When and how the policy is scored on an environment of its own, with frozen statistics."""

    PREFIX = "evaluation."

    interval: Annotated[int | None, In(1)] = None
    """Environment steps between evaluations while training; None: only at the end."""
    episodes: Annotated[int, In(0, 100_000)] = 10
    """Episodes per evaluation; 0: never evaluate."""
    deterministic: bool = True
    """Take the mode of the action distribution instead of a sample."""
    video: bool = False
    """Film a few seconds at the end (needs the extra `video`)."""
    env_kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Environment options that differ from training; they override `env.kwargs`: {"repeat_failed": False}."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """When checkpoints are written. One is always written at the end, on SIGINT / SIGTERM and when a worker dies."""

    PREFIX = "checkpoint."

    interval: Annotated[int | None, In(1)] = 100_000
    """Environment steps between checkpoints; None: only at the end."""
    keep_last: Annotated[int, In(1)] = 3
    """How many of them to keep; best.pt is kept besides."""
    reset_env: bool = False
    """Reset the environment at every checkpoint, so that a resumed run equals an uninterrupted one bit for bit even
    where the environment's state cannot be saved. Cuts the episodes that are running at that moment."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Config):
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    PREFIX = "logging."

    console: bool = True
    """Live table on a terminal, one line every few seconds elsewhere."""
    tensorboard: bool = True
    """TensorBoard event files in the run folder."""
    wandb: bool = False
    """Weights & Biases (needs the extra `wandb`)."""
    wandb_project: str = "understudy"
    """Weights & Biases project."""
    mlflow: bool = False
    """MLflow (needs the extra `mlflow`), at the tracking server that MLflow's own settings name."""
    mlflow_experiment: str = "understudy"
    """MLflow experiment."""
    loggers: tuple[str, ...] = ()
    """Further loggers: names from `understudy list loggers`, or "module:attribute", a class or function that makes
    one."""


@dataclass(frozen=True, kw_only=True)
class DaggerConfig(Config):
    """Rounds of collecting with a mixture of expert and learner, each followed by epochs on all data so far."""

    PREFIX = "offline.dagger."

    expert: str = ""
    """A run or checkpoint to ask, or "labels": the environment's own expert (observation group "expert_action")."""
    rounds: Annotated[int, In(1)] = 10
    """Rounds after the first one, which is the expert's alone."""
    episodes_per_round: Annotated[int, In(1, 100_000)] = 3
    """Whole episodes of a round, at least."""
    steps_per_round: Annotated[int, In(1, 1_000_000)] = 500
    """Steps of a round, at least."""
    beta: Annotated[Probability, Unconditional()] = field(
        default_factory=lambda: Schedule(kind="linear", start=1.0, length=15, unit="iterations")
    )
    """Probability that the expert's action is executed, a number or a schedule over the rounds (as iterations)."""


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(Config):
    """Epochs over the demonstrations of the behavior-cloning part, before the first environment step."""

    PREFIX = "offline."

    epochs: Annotated[int, In(1)] = 100
    """Passes over the demonstrations, at most (with DAgger: in each round)."""
    learning_rate: Annotated[LearningRate, Unconditional()] = 1e-3
    """Step size, a number or a schedule over the epochs (`linear:1e-3:0`); the optimizer is ppo.optimizer's."""
    lr_scheduler: LRSchedulerConfig | None = None
    """A torch.optim.lr_scheduler, stepped once per epoch; a plateau by `offline/loss` or `offline/validation_loss`."""
    validation_fraction: Annotated[float, In(0.0, 1.0, without=(1.0,))] = 0.1
    """Share of the trajectories that is held out; the policy that fits them best is kept. 0: the last one is kept."""
    patience: Annotated[int | None, In(1)] = 20
    """Stop after so many epochs without a better fit of what is held out; None: never."""
    evaluation_interval: Annotated[int | None, In(1)] = None
    """Epochs between evaluations in the environment; None: only at the end."""
    dagger: DaggerConfig | None = None
    """Ask an expert about the states that the learner visits, in rounds; None: the demonstrations are all there is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scheduler is not None and isinstance(self.learning_rate, Schedule):
            raise ValueError("at most one mechanism may change offline.learning_rate: drop lr_scheduler or schedule")


@dataclass(frozen=True, kw_only=True)
class StartConfig(Config):
    """How much of `start_from` is taken."""

    PREFIX = "start."

    critic: Annotated[str, Filled()] = "same"
    """Where the critic comes from: "same" (with the actor), "fresh" (untrained), another run or file (a teacher's)."""
    std: Annotated[float | None, In(1e-4, 1e4)] = None
    """Standard deviation to explore with anew; None: the one that it had."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A complete training: what `us.train` runs, what `config.yaml` holds, what the command line edits."""

    total_steps: Annotated[int, In(0)]
    """Environment steps, over all environments together; the last rollout may exceed it. 0: only offline training."""
    seed: Annotated[int, In(0)] = 0
    """Seed of everything: weights, environments, minibatches, parts, evaluation."""
    run_dir: Annotated[str | None, Filled()] = None
    """Folder to write; None: runs/<recipe>-<environment>-<time>."""
    start_from: Annotated[str | None, Filled()] = None
    """A run, a checkpoint, rsl_rl's `model_*.pt` or Stable-Baselines3's zip, whose policy (weights, deviation,
    observation normaliser) to start from; everything else is new. None: fresh weights. To go on with an interrupted
    run, use `resume` instead."""
    start: StartConfig = field(default_factory=StartConfig)
    """How much of `start_from` is taken."""
    allow_imports: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Python modules that the policies loaded while training (teachers, experts, `start_from`) may import; on the
    command line `--allow-import`. What a file says here counts for nothing: its reader allows."""
    recipe: Annotated[str, tyro.conf.Suppress] = "custom"
    """Name of the recipe this came from; only used to name the run."""
    device: str = "auto"
    """Torch device of policy and rollouts; "auto" takes a GPU if there is one."""
    stop_when: str | None = None
    """End the training when a logged metric gets there, `evaluation/return>=475` (or `<=`); None: after total_steps."""
    torch_threads: Annotated[int | None, In(1, 512)] = None
    """Threads of torch's CPU operators; None: 1 where networks and minibatches are small, else torch's choice."""
    env: EnvConfig
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    parts: dict[str, PartConfig] = field(default_factory=dict)
    """Expert signals by name; the name is their rollout key, metric prefix and checkpoint key."""
    offline: OfflineConfig | None = None
    """Training on demonstrations alone, before PPO (or, with total_steps 0, instead of it)."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run_dir is not None:  # a shell does not see the ~ of a file or of Python
            object.__setattr__(self, "run_dir", os.path.expanduser(self.run_dir))
        if self.offline is None and self.total_steps == 0:
            raise ValueError("total_steps must be at least 1 (0 only goes with offline training), got 0")
        if self.start_from is None and self.start != StartConfig():
            raise ValueError("start.critic and start.std are about start_from: name what to start from")
        if self.stop_when is not None:
            self._check_stop_when(self.stop_when)
        for name in self.parts:
            if not name.isidentifier():
                raise ValueError(f"a part is named {name!r}; use a plain identifier such as 'gail' or 'teacher_2'")

    def _check_stop_when(self, text: str) -> None:
        try:
            condition = Condition.parse(text)
        except ValueError as error:
            raise ValueError(f"stop_when: {error}") from None
        intervals = (self.evaluation.interval, None if self.offline is None else self.offline.evaluation_interval)
        never = self.evaluation.episodes == 0 or intervals == (None, None)
        if condition.metric.startswith("evaluation/") and never:
            raise ValueError(
                f"stop_when waits for {condition.metric}, but nothing is evaluated before the end: set "
                "evaluation.interval, and evaluation.episodes to at least 1"
            )

    @property
    def allowed(self) -> tuple[str, ...]:
        """Modules that a policy loaded while training may import: those of the trained one, and `allow_imports`."""
        return (*self.policy.modules, *self.allow_imports)

    def evaluation_env(self) -> EnvConfig:
        """The environment that the policy is scored on: the training's, with the options of the evaluation."""
        return dataclasses.replace(self.env, kwargs={**self.env.kwargs, **self.evaluation.env_kwargs})

    def torch_device(self) -> torch.device:
        """The device that `device` names; for each process of torchrun another GPU. Raises ValueError if it lacks."""
        if self.device == "auto":
            return ranks.own_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {self.device!r} cannot be used ({reason}); try 'auto' or 'cpu'") from error
        return ranks.own_device(device)


def to_yaml(config: TrainConfig) -> str:
    """The config as YAML; `from_yaml` gives an equal config back."""
    return yaml.dump(to_plain(config), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def from_yaml(text: str, *, over: TrainConfig | None = None, allow: Collection[str] | None = ()) -> TrainConfig:
    """A config from YAML; with `over`, the YAML may be partial: what it names replaces what that config has.

    A part under the name of another kind of part replaces it whole. Raises ValueError for bad YAML, unknown keys (with
    the nearest names), values that do not fit, and for a `module:attribute` outside of `allow` (see `from_plain`),
    which becomes `allow_imports`; None allows all that the YAML names.
    """
    plain = parse_yaml(text)
    if not isinstance(plain, dict):
        raise ValueError(f"the config must be a mapping of options, got {plain!r:.200}")
    if allow is not None:
        check_imports(plain, allow)
        plain["allow_imports"] = [*allow]
    if over is not None:
        plain = _merged(to_plain(_with_one_rate(over, plain)), plain)
    return from_plain(TrainConfig, plain, allow=None)


def _with_one_rate(over: TrainConfig, plain: dict[str, Any]) -> TrainConfig:
    """`over` without its schedule of the learning rate, where the YAML names another mechanism that moves it."""
    ppo = plain.get("ppo")
    rate = over.ppo.optimizer.learning_rate
    moved = isinstance(ppo, dict) and (ppo.get("lr_scheduler") or ppo.get("desired_kl"))
    if not moved or not isinstance(rate, Schedule):
        return over
    optimizer = dataclasses.replace(over.ppo.optimizer, learning_rate=rate.value(0, 0, 1, 1))
    return dataclasses.replace(over, ppo=dataclasses.replace(over.ppo, optimizer=optimizer))


def whole_yaml(config: TrainConfig) -> str:
    """`to_yaml` under a line that counts its options, by which `read_config` knows whether any are missing."""
    return f"# {_count(to_plain(config))} options\n{to_yaml(config)}"


def read_config(path: Path, *, over: TrainConfig | None = None, allow: Collection[str] = ()) -> TrainConfig:
    """`from_yaml` of a file, which its errors name; also raises ValueError if options of a `whole_yaml` are missing."""
    try:
        text = read_yaml(path)
        config = from_yaml(text, over=over, allow=allow)
        counted, found = re.match(r"# (\d+) options\n", text), _count(parse_yaml(text))
        if counted and found < int(counted[1]):
            raise ValueError(
                f"the first line counts {counted[1]} options, but there are {found}: restore the others, or delete "
                "that line to give them their defaults"
            )
        return config
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


def _count(plain: Any) -> int:
    return sum(map(_count, plain.values())) if isinstance(plain, dict) and plain else 1


def read_yaml(path: Path) -> str:
    """The text of a YAML file, as far as `parse_yaml` reads it."""
    with path.open(encoding="utf-8") as file:
        return file.read(LONGEST_YAML + 1)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    if new.get(PART_TAG, old.get(PART_TAG)) != old.get(PART_TAG):
        return new
    return old | {key: _merged(old[key], inner) if key in old else inner for key, inner in new.items()}


class _Dumper(yaml.SafeDumper):
    """Lists on one line: [64, 64]."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
