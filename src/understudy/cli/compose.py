"""Compose a training from words: a recipe, a config file over it, parts added and removed, and options over all."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import arg

from understudy.cli import RANK
from understudy.cli.usage import USAGE, ComposingOptions, Modules, WithoutRecipe
from understudy.cli.words import parse
from understudy.core.schedules import Schedule
from understudy.data.demonstrations.read import open_recording
from understudy.envs.simulators import simulator_of
from understudy.interop.rsl_rl import from_config
from understudy.parts.advisor import AdvisorConfig
from understudy.ppo.part import PartConfig
from understudy.recipes import RECIPES, find_recipe
from understudy.runs.codec import check_imports, part_kind
from understudy.runs.config import LoggingConfig, TrainConfig, read_config
from understudy.runs.folder import Run
from understudy.training import loop
from understudy.training.start import networks_of


@dataclass(frozen=True, kw_only=True)
class Composition(ComposingOptions):
    """What a training is made of, before its options are parsed."""

    def compose(self, recipe: Callable[..., TrainConfig] | None, **facts: Any) -> TrainConfig:
        """The training, before options. Raises ValueError for an unknown name and for a file that does not fit."""
        if self.config is not None:
            config = self._read(self.config, None if recipe is None else recipe(**facts))
        elif recipe is not None:
            config = recipe(**facts)
        else:
            raise ValueError(_no_recipe())
        parts = dict(config.parts)
        for name in self.without:
            if name not in parts:
                raise ValueError(f"--without {name}: the parts are {', '.join(parts) or 'none'}")
            del parts[name]
        for text in self.with_:
            name, part = new_part(text)
            if name in parts:
                raise ValueError(f"there is a part {name!r} already: add another with --with {name}_2={text}")
            parts[name] = part
        config = dataclasses.replace(config, parts=parts, allow_imports=self.allow_import)
        return config if self.demonstrations is None else with_demonstrations(config, self.demonstrations)

    def _read(self, path: Path, over: TrainConfig | None) -> TrainConfig:
        if not path.is_file():
            raise ValueError(f"--config {path}: there is no such file")
        config = read_config(path, over=over, allow=self.allow_import)
        own_folder = config.run_dir is not None and Path(config.run_dir).resolve() == path.parent.resolve()
        return dataclasses.replace(config, run_dir=None) if own_folder else config  # a new run is not that run


@dataclass(frozen=True)
class Training:
    """All words of `understudy train RECIPE`: those that composed it, and its options."""

    composition: Annotated[Composition, arg(name="")]
    config: Annotated[TrainConfig, arg(name="")]


def parse_training(words: Sequence[str]) -> Callable[[], None]:
    """What `understudy train WORDS` does, ready to run. Raises ValueError, and leaves with SystemExit as tyro does."""
    recipe = words[0] if words and not words[0].startswith("-") else None
    options = list(words[1:] if recipe else words)
    program = f"understudy train {recipe or '--config FILE'}"
    if any(word == "--resume" or word.startswith("--resume=") for word in options):
        if recipe is not None:
            raise ValueError(f"--resume continues a run with the run's own recipe: leave {recipe!r} out")
        known = ("--resume", "--total-steps", "--allow-import")
        why = "a resumed run keeps its options, except --total-steps; for others: --config RUN/config.yaml"
        return parse(_resuming, options, "understudy train --resume", known, otherwise=why)
    composition, unknown = tyro.cli(Composition, prog=program, args=options, return_unknown_args=True, add_help=False)
    if recipe is None and composition.config is None and unknown:  # help, or an error
        alone = ("--resume", *_option_names(Composition()))
        parse(WithoutRecipe, options, "understudy train", alone, otherwise=_no_recipe(), description=USAGE)
    make = None if recipe is None else find_recipe(recipe)
    if recipe == "ppo":
        make = with_task_numbers(find_recipe(recipe))

    def complete(config: TrainConfig) -> TrainConfig:
        chosen = parse(
            Training,
            options,
            program,
            (*_option_names(composition), *_option_names(config)),
            default=Training(composition, config),
            description=(make.__doc__ if make else None) or USAGE,
            config=(tyro.conf.AvoidSubcommands,),
        )
        return chosen.config

    config = complete(base := composition.compose(make))
    if make is not None and (facts := facts_for(make, config)) != facts_for(make, make()):
        config = complete(base := composition.compose(make, **facts))  # the same words over the recipe as it fits them
    if config.start_from is not None and composition.config is None:
        theirs = networks_of(config.start_from, config.allowed, base.policy)
        if theirs is not None:  # another program's networks, and the same words over them
            config = complete(dataclasses.replace(base, policy=theirs))
    return functools.partial(_start, config)


SIMULATED = {"cuda": 4096, "cpu": 64}
"""Copies of a simulator's task where nobody says how many."""


def with_task_numbers(recipe: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """A recipe that takes the numbers which a simulator registers for its task (rsl_rl's), where it registers some."""

    @functools.wraps(recipe)
    def make(**facts: Any) -> TrainConfig:
        simulator = simulator_of(facts.get("env_id", ""))
        numbers = None if simulator is None else simulator[0].numbers(simulator[1])
        if numbers is None:
            return recipe(**facts)
        copies = facts["num_envs"]
        if copies == recipe().env.num_envs:  # nobody said
            copies = SIMULATED["cuda" if torch.cuda.is_available() else "cpu"]
        config = from_config(numbers, env_id=facts["env_id"], num_envs=copies)
        return dataclasses.replace(config, recipe="ppo", logging=LoggingConfig())  # where to log is not the task's

    return make


def facts_for(recipe: Callable[..., TrainConfig], config: TrainConfig) -> dict[str, Any]:
    """What the recipe fits itself to, as far as it has such parameters, from a config that the user has completed."""
    facts = {
        "env_id": config.env.id,
        "num_envs": config.env.num_envs,
        "memory": config.policy.memory,
        "total_steps": config.total_steps,
    }
    return {name: facts[name] for name in inspect.signature(recipe).parameters if name in facts}


def _no_recipe() -> str:
    return f"no recipe is given: name one ({', '.join(RECIPES)}), a file with --config FILE, or a run with --resume RUN"


def new_part(text: str) -> tuple[str, PartConfig]:
    """Name and default config of `[NAME=]PART`. Raises ValueError for an unknown part or one that has no defaults."""
    name, equals, kind_name = text.partition("=")
    if not equals:
        name, kind_name = text.replace("-", "_"), text
        if ":" in text:
            raise ValueError(f"--with {text}: name your part, --with NAME={text}")
    kind = part_kind(kind_name, f"--with {text}")
    missing = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is missing]
    if required:
        raise ValueError(f"--with {text}: give {kind.__name__}.{required[0]} a default, or add the part with --config")
    return name, kind()


def with_demonstrations(config: TrainConfig, source: str) -> TrainConfig:
    """`config` with these demonstrations for every part that learns from some, in the environment they were made in.

    Where some parts have no other teacher, the others (ADVISOR with an expert in the environment) stay as they are.
    Raises ValueError if no part does, or as `open_recording` where nothing can be read from `source`.
    """
    parts = config.parts.items()
    learners = {n: p for n, p in parts if any(field.name == "demonstrations" for field in dataclasses.fields(p))}
    if not learners:
        raise ValueError(
            f"{config.recipe} takes no --demonstrations: no part ({', '.join(config.parts) or 'it has none'}) learns "
            "from any; add one with --with"
        )
    with open_recording(source) as recording:
        env_id = str(recording.metadata.get("env", config.env.id))
    if env_id != config.env.id:
        check_imports({"id": env_id}, config.allow_imports, source)
    needy = {n: p for n, p in learners.items() if not (isinstance(p, AdvisorConfig) and p.use_rollout_labels)}
    taught = {n: dataclasses.replace(p, **{"demonstrations": source}) for n, p in (needy or learners).items()}
    return dataclasses.replace(config, parts=config.parts | taught, env=dataclasses.replace(config.env, id=env_id))


def _resuming(
    *,
    resume: Annotated[Path, arg(metavar="RUN")],
    total_steps: int | None = None,
    allow_import: Modules = (),
) -> Callable[[], None]:
    """Continue a run from its newest checkpoint.

    Args:
        resume: Folder of the run, or one of its checkpoints.
        total_steps: New budget in environment steps; None: the run's own.
        allow_import: Modules that the run's config may import, which runs their code.
    """
    return lambda: _report(loop.resume(resume, total_steps=total_steps, allow=allow_import))


def _start(config: TrainConfig) -> None:
    # what the library logs about its inputs (the demonstrations' score) goes to stderr, as plain sentences
    logging.basicConfig(format=f"rank {RANK}: %(message)s" if RANK else "%(message)s")
    logging.getLogger("understudy").setLevel(logging.WARNING if RANK else logging.INFO)
    _report(loop.train(config))


def _report(run: Run) -> None:
    if RANK:
        return
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by}; continue with: understudy train --resume {run.path}")
    if run.evaluation is not None:
        print(run.evaluation.sentence())
    print(f"run: {run.path}")


def _option_names(value: Any, prefix: str = "--") -> Iterator[str]:
    """Options of a dataclass and of the dataclasses below it."""
    for name, inner in vars(value).items():
        option = prefix + name.strip("_").replace("_", "-")
        below = inner if isinstance(inner, Mapping) else {"": inner}
        for key, config in below.items():
            if dataclasses.is_dataclass(config) and not isinstance(config, Schedule):
                yield from _option_names(config, f"{option}.{key}." if key else f"{option}.")
        if not dataclasses.is_dataclass(inner) or isinstance(inner, Schedule):
            yield option
