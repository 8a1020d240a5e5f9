"""One function per command: its signature is the command's options, its docstring the help."""

from __future__ import annotations

import functools
import inspect
import json as json_text
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from understudy.cli import USER_ERROR, files
from understudy.cli.register import COMMANDS, NO_ENV, EnvOptions, Flag, app, command
from understudy.cli.usage import USAGE, Modules, WithoutRecipe
from understudy.cli.words import parse as parse_words
from understudy.core.check import nearest
from understudy.core.registry import Registry, load_object
from understudy.data.motions.options import ReadOptions
from understudy.version import __version__

DESCRIPTION = """PPO plus any combination of expert signals. Every command has its own --help.

understudy train ppo --env.id CartPole-v1 --total-steps 100000 --seed 1

understudy train ppo --with gail --demonstrations demos.npz

understudy evaluate runs/ppo-CartPole-v1-20260101-120000 --episodes 20 --video

--version shows the version, --debug the traceback of an error."""

OptionalPath = Annotated[
    Path | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[PATH]",
        instance_from_str=lambda words: Path(*words),
        is_instance=lambda value: value is None or isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""`--video PATH`, or `--video` alone for the empty path; None: the option is not there."""
RunPath = Annotated[Positional[Path], arg(metavar="RUN")]

REGISTRIES = {
    "recipes": "understudy.recipes:RECIPES",
    "parts": "understudy.parts:PARTS",
    "loggers": "understudy.training.loggers:LOGGERS",
}


def parse(words: Sequence[str]) -> Callable[[], None]:
    """The command that these words call, with its options, ready to run.

    Raises ValueError for an unknown command, and leaves with SystemExit as tyro does, its help or its message printed.
    """
    if list(words) == ["--version"]:
        return lambda: print(f"understudy {__version__}")
    if list(words) in (["train", "--help"], ["train", "-h"]):
        parse_words(WithoutRecipe, words[1:], "understudy train", (), description=USAGE)
    if words and words[0] == "train":  # its options depend on the recipe, the config file and the parts
        from understudy.cli.compose import parse_training

        return parse_training(words[1:])
    size = 2 if words and words[0] in ("motions", "demos") else 1
    name = " ".join(words[:size])
    if name in COMMANDS:
        function = COMMANDS[name]
        known = [f"--{option.replace('_', '-')}" for option in _options(function)]
        return parse_words(_bound(function), words[size:], f"understudy {name}", known)
    if len(words) >= size and not words[size - 1].startswith("-"):
        raise ValueError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")
    try:
        app.cli(prog="understudy", description=DESCRIPTION, args=words or ["--help"])
    except SystemExit as stop:
        raise SystemExit(stop.code if words else USER_ERROR) from None
    raise AssertionError("help and errors leave with SystemExit")


def _options(function: Callable[..., None]) -> list[str]:
    """Names of a command's options."""
    names = list(inspect.signature(function).parameters)
    return names + [field.name for field in fields(ReadOptions)] if "reading" in names else names


def _bound(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The function with its arguments, to be called once all words are parsed: its errors are not the parser's."""

    @functools.wraps(function)
    def bind(*arguments: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(function, *arguments, **options)

    return bind


@command("train")
def train() -> None:
    """Train: `train RECIPE [--options]`, `train --config FILE`, or continue: `train --resume RUN`."""


@command("evaluate")
def evaluate(
    run: RunPath,
    /,
    *,
    env: EnvOptions = NO_ENV,
    episodes: int = 10,
    seed: int | None = None,
    deterministic: Flag = False,
    sample: Flag = False,
    video: OptionalPath = None,
    json: Flag = False,
    allow_import: Modules = (),
) -> None:
    """Score a trained policy on whole episodes, film it.

    Args:
        run: Folder of a run (its newest checkpoint), a checkpoint, or another program's file, as us.load reads them.
        episodes: Number of episodes.
        seed: Seed of environments and sampling; None: as in training.
        deterministic: Take the mode of the action distribution; this is the default.
        sample: Sample actions.
        video: Film an episode; without PATH to RUN/video.mp4.
        json: Print one JSON object on the last line.
        allow_import: Modules that the run's policy and environment may import, which runs their code.
    """
    from understudy.runs.folder import open_checkpoint
    from understudy.tools.evaluate import evaluate

    if deterministic and sample:
        raise ValueError("--deterministic is not allowed with --sample")
    other = env.config()
    result = evaluate(
        run,
        env=other,
        episodes=episodes,
        seed=seed,
        deterministic=not sample,
        video=_folder(run) / "video.mp4" if video == Path() else video,
        allow=allow_import,
    )
    print(result.sentence())
    if result.video is not None:
        print(f"video: {result.video}")
    if result.video_error is not None:
        print(f"understudy: no video: {result.video_error}", file=sys.stderr)
    if json:
        played = open_checkpoint(run).stored["env"]["id"] if other is None else other.id
        print(json_text.dumps({"run": str(run), "env": played, **result.to_dict()}))


@command("export")
def export(
    run: RunPath,
    /,
    *,
    format: Literal["onnx", "torchscript", "safetensors"] = "onnx",
    output: Path | None = None,
    robot: Path | None = None,
    allow_import: Modules = (),
) -> None:
    """Write a trained policy as one file that needs no understudy, and check that it acts as the policy does.

    Args:
        run: Folder of a run (its newest checkpoint), a checkpoint, or rsl_rl's or Stable-Baselines3's.
        format: onnx and torchscript act alone, safetensors holds the weights.
        output: File to write; None: `policy` with the format's ending, in RUN.
        robot: JSON of what a robot has to know (mjlab's keys); None: what the simulator told, RUN/robot.json.
        allow_import: Modules that the run's policy may import, which runs their code.
    """
    from understudy.nn.policy import ActorCritic
    from understudy.runs.folder import load_foreign, read_policy, read_robot
    from understudy.tools.export import SUFFIXES, export_policy

    told, path = read_robot(run, robot), output or _folder(run) / f"policy{SUFFIXES[format]}"
    if (foreign := load_foreign(run, allow_import)) is None:
        policy, config = read_policy(run, allow=allow_import, env=False)
        path = export_policy(policy, path, format, config.env.id, config.env.segments, told)
    elif isinstance(foreign, ActorCritic):
        path = export_policy(foreign, path, format, robot=told)
    else:
        raise ValueError(f"{run} only acts: it has no networks to export")
    print(f"wrote {path} (checked: same actions as the checkpoint)")


@command("record")
def record(
    run: Annotated[Positional[Path | None], arg(metavar="RUN")] = None,
    /,
    *,
    output: str,
    expert: str | None = None,
    env: EnvOptions = NO_ENV,
    episodes: int = 25,
    format: Literal["minari", "npz"] | None = None,
    seed: int | None = None,
    sample: Flag = False,
    motion: Flag = False,
    step_time: float | None = None,
    allow_import: Modules = (),
) -> None:
    """Play whole episodes and keep them as demonstrations or motion clips.

    Args:
        run: Folder of a run, a checkpoint, or another program's file, as us.load reads them.
        output: Id of the Minari dataset to make, or a .npz path.
        expert: Play the scripted expert of this environment instead of a run.
        episodes: Number of episodes.
        format: None: npz if the output ends in .npz, else minari.
        seed: Seed of environments and sampling.
        sample: Sample actions instead of taking the mode.
        motion: Write motion clips (.npz) instead, one of each episode.
        step_time: Of clips: seconds between observations; MuJoCo tasks tell it.
        allow_import: Modules that the run's policy and environment may import, which runs their code.
    """
    if motion and (run is None or expert is not None or format is not None):
        raise ValueError("--motion plays a run: understudy record RUN --motion --output clips.npz")
    if not motion and step_time is not None:
        raise ValueError("--step-time is the time between frames of motion clips: it goes with --motion")
    from understudy.envs.registry import EnvConfig
    from understudy.tools.record import record

    recorded = record(
        output,
        run=run,
        expert_of=None if expert is None else EnvConfig(id=expert),
        env=env.config(),
        episodes=episodes,
        seed=seed,
        deterministic=not sample,
        file_format="motion" if motion else format,
        frame_time=step_time,
        allow=allow_import,
    )
    print(recorded.sentence(), f"{'motion clips' if motion else 'demonstrations'}: {recorded.path}", sep="\n")


@command("plot")
def plot(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")],
    /,
    *,
    output: Path | None = None,
    metric: str = "episode/return",
    title: str | None = None,
) -> None:
    """Draw the learning curves of runs into one PNG; runs that differ in nothing but their seed become one curve.

    Args:
        runs: Folders of runs.
        output: PNG to write; None: learning-curve.png in the first RUN.
        metric: What to draw.
        title: None: the environment.
    """
    from understudy.runs.folder import RunFolder
    from understudy.tools.plot import group_seeds, plot_learning_curves

    if not runs:
        raise ValueError("name the folders of the runs to draw")
    envs = dict.fromkeys(str(RunFolder(run).read_plain()["env"]["id"]) for run in runs)
    path = plot_learning_curves(
        {label: [RunFolder(run).metrics for run in group] for label, group in group_seeds(runs).items()},
        output or runs[0] / "learning-curve.png",
        title=", ".join(envs) if title is None else title,
        metric=metric,
    )
    print(f"learning curve: {path}")


@command("list")
def list_everything(
    what: Positional[Literal["all", "recipes", "parts", "envs", "loggers", "demos", "motions"]] = "all", /
) -> None:
    """List recipes, parts, environments, loggers, formats of demonstrations and of motions, one line each.

    Args:
        what: Only this table.
    """
    for name in ("recipes", "parts", "envs", "loggers", "demos", "motions"):
        if what in ("all", name):
            rows = _table(name)
            width = max(map(len, rows), default=0)
            lines = [f"{entry:<{width}}  {text}".rstrip() for entry, text in rows.items()]
            print(*lines if what == name else (f"{name}:", *(f"  {line}" for line in lines)), sep="\n")


def _table(name: str) -> Mapping[str, str]:
    """Name -> one line."""
    if name == "envs":
        from understudy.envs.registry import list_envs

        return {entry.id: f"{entry.backend}: {entry.summary}" for entry in list_envs()}
    if name == "motions":
        from understudy.data.motions.formats import FORMATS as MOTION_FORMATS

        return {known.name: known.looks for known in MOTION_FORMATS}
    if name == "demos":
        from understudy.data.demonstrations.formats import FORMATS

        return {entry: known.looks for entry, known in FORMATS.items()}
    registry: Registry[Any] = load_object(REGISTRIES[name])
    return {entry: registry.summary(entry, strip="Config") for entry in registry}  # the part's, not its config's


def _folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent


app.command(files.motion_app, name="motions", help="Inspect motion files, convert them, film them.")
app.command(files.demo_app, name="demos", help="Inspect demonstrations.")
