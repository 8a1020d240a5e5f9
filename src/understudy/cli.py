"""The command line: train, evaluate, export, record, plot, motions, list. Heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_type_hints

from understudy.version import __version__

if TYPE_CHECKING:
    from understudy.runs.folder import Run

USAGE = """\
usage: understudy COMMAND ...

PPO plus any combination of expert signals.

commands:
  train RECIPE [--options]    train from the start; `train RECIPE --help` lists every option
  train --resume RUN          continue a run from its newest checkpoint
  evaluate RUN [--options]    score a trained policy, film it
  export RUN [--options]      write a trained policy as one file that needs no understudy (ONNX, TorchScript)
  record RUN --output ID      play a trained policy, keep the episodes as demonstrations (or, --motion, as clips)
  plot RUN [RUN ...]          draw learning curves
  motions inspect FILE        fields, length, ranges, gaps and a picture of a motion file
  motions convert FILE OUT    read a pickled (or any) motion file, write it as .npz
  list [recipes|parts|envs]   what there is

options:
  -h, --help    this text; every command has its own
  --version     version of understudy
  --debug       show the traceback of an error

examples:
  understudy train ppo --env.id CartPole-v1 --total-steps 100000 --seed 1
  understudy evaluate runs/ppo-CartPole-v1-20260101-120000 --episodes 20 --video
"""

USER_ERROR = 2
RUN_ERROR = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class UsageError(Exception):
    """The command line itself is wrong; the message says how to mend it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code (0 fine, 1 run-time failure, 2 user error)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except BrokenPipeError:  # `understudy list envs | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (Python flushes stdout once more at exit)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        print(f"understudy: error: {error}", *_notes(error), sep="\n", file=sys.stderr)
        return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else USER_ERROR
    if words[0] == "--version":
        print(f"understudy {__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "export": _export,
        "record": _record,
        "plot": _plot,
        "motions": _motions,
        "list": _list,
    }
    if words[0] not in commands:
        raise UsageError(f"unknown command {words[0]!r}; {_nearest(words[0], commands)}")
    return commands[words[0]](words[1:])


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that needs no traceback; None for a bug."""
    from understudy.types import CheckpointError, UnderstudyError

    if isinstance(error, UsageError | ValueError | ImportError | CheckpointError):
        return USER_ERROR
    return RUN_ERROR if isinstance(error, UnderstudyError | OSError) else None


def _notes(error: BaseException) -> list[str]:
    return error.__notes__ if "__notes__" in vars(error) else []


# ---------------------------------------------------------------------------------------------------- train


def _train(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        return _train_without_recipe(words)
    from understudy.recipes import find_recipe

    name, options = words[0], words[1:]
    recipe = find_recipe(name)
    import tyro

    from understudy.recipes.imitation import takes_demonstrations, with_demonstrations
    from understudy.runs.config import TrainConfig

    default, description = recipe(), recipe.__doc__ or ""
    source, options = _take_option("--demonstrations", options)
    if source is not None:
        default = with_demonstrations(default, source)
    if takes_demonstrations(default):
        description += "\n\n--demonstrations SOURCE: a path or local Minari id, for all parts that learn from them."
    config = tyro.cli(
        TrainConfig,
        default=default,
        args=options,
        prog=f"understudy train {name}",
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
    )
    from understudy.training.loop import train

    _show_notes()
    return _report(train(config))


def _show_notes() -> None:
    """What the library logs about its inputs (the demonstrations' score, say) goes to stderr, as plain sentences."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("understudy").setLevel(logging.INFO)


def _take_option(name: str, words: list[str]) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, and the other words."""
    for place, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}="), words[:place] + words[place + 1 :]
        if word == name:
            if place + 1 == len(words):
                raise UsageError(f"{name} needs a value")
            return words[place + 1], words[:place] + words[place + 2 :]
    return None, words


def _train_without_recipe(words: list[str]) -> int:
    parser = _Parser(
        prog="understudy train",
        usage="understudy train RECIPE [--options]\n       understudy train --resume RUN [--total-steps N]",
        description="Train. `understudy list recipes` shows the recipes, `understudy train RECIPE --help` the options.",
    )
    parser.add_argument("--resume", metavar="RUN", type=Path, help="folder of the run to continue")
    parser.add_argument("--total-steps", type=int, help="new budget in environment steps (default: the run's own)")
    chosen = parser.parse_args(words)
    if chosen.resume is None:
        from understudy.recipes import RECIPES

        raise UsageError(f"train what? Name a recipe ({', '.join(sorted(RECIPES))}), or --resume RUN")
    from understudy.training.loop import resume

    return _report(resume(chosen.resume, total_steps=chosen.total_steps))


def _report(run: Run) -> int:
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by}; continue with: understudy train --resume {run.path}")
    if run.evaluation is not None:
        print(run.evaluation.sentence())
    print(f"run: {run.path}")
    return 0


# ------------------------------------------------------------------------------------------------- evaluate


def _evaluate(words: list[str]) -> int:
    parser = _Parser(prog="understudy evaluate", description="Score a trained policy on whole episodes.")
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of a run (its newest checkpoint), or a checkpoint"
    )
    parser.add_argument("--episodes", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=int, help="seed of environments and sampling (default: as in training)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--deterministic", action="store_true", default=True, help="take the mode (default)")
    how.add_argument("--sample", dest="deterministic", action="store_false", help="sample actions")
    parser.add_argument(
        "--video", metavar="PATH", nargs="?", type=Path, const=Path(), help="film an episode (default: RUN/video.mp4)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    chosen = parser.parse_args(words)
    from understudy.runs.folder import read_policy
    from understudy.tools.evaluate import evaluate
    from understudy.tools.play import evaluation_seed

    policy, config = read_policy(chosen.run)
    video = chosen.video
    if video == Path():
        video = (chosen.run if chosen.run.is_dir() else chosen.run.parent) / "video.mp4"
    result = evaluate(
        policy,
        env=config.evaluation_env(),
        episodes=chosen.episodes,
        seed=evaluation_seed(config.seed) if chosen.seed is None else chosen.seed,
        deterministic=chosen.deterministic,
        video=video,
    )
    print(result.sentence())
    if result.video is not None:
        print(f"video: {result.video}")
    if result.video_error is not None:
        print(f"understudy: no video: {result.video_error}", file=sys.stderr)
    if chosen.json:
        print(json.dumps({"run": str(chosen.run), "env": config.env.id, **result.to_dict()}))
    return 0


# -------------------------------------------------------------------------------- export and record


def _export(words: list[str]) -> int:
    parser = _Parser(prog="understudy export", description="Write a trained policy as one file, checked as written.")
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of a run (its newest checkpoint), or a checkpoint"
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "torchscript", "safetensors"),
        default="onnx",
        help="onnx (default) and torchscript act alone, safetensors holds the weights",
    )
    parser.add_argument("--output", metavar="PATH", type=Path, help="file to write (default: RUN/policy.onnx, say)")
    chosen = parser.parse_args(words)
    from understudy.runs.folder import read_policy
    from understudy.tools.export import SUFFIXES, export_policy

    policy, config = read_policy(chosen.run)
    folder = chosen.run if chosen.run.is_dir() else chosen.run.parent
    output = chosen.output or folder / f"policy{SUFFIXES[chosen.format]}"
    path = export_policy(policy, output, chosen.format, config.env.id, config.env.segments)
    print(f"policy: {path} (acts as the checkpoint does)")
    return 0


def _record(words: list[str]) -> int:
    parser = _Parser(
        prog="understudy record", description="Play whole episodes and keep them as demonstrations or motion clips."
    )
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--expert", metavar="ENV", help="play the scripted expert of this environment instead of a run")
    parser.add_argument("--episodes", type=int, default=25, help="how many (default: 25)")
    parser.add_argument(
        "--output", required=True, metavar="ID", help="id of the Minari dataset to make, or a .npz path"
    )
    parser.add_argument("--format", choices=("minari", "npz"), help="default: npz if the output ends in .npz")
    parser.add_argument("--seed", type=int, help="seed of environments and sampling")
    parser.add_argument(
        "--sample", dest="deterministic", action="store_false", help="sample actions (default: the mode)"
    )
    parser.add_argument("--motion", action="store_true", help="write motion clips (.npz), one of each episode, instead")
    parser.add_argument("--step-time", type=float, help="of clips: seconds between observations (MuJoCo tasks tell it)")
    chosen = parser.parse_args(words)
    if chosen.motion and (chosen.run is None or chosen.expert is not None or chosen.format is not None):
        raise UsageError("--motion plays a run: understudy record RUN --motion --output clips.npz")
    if not chosen.motion and chosen.step_time is not None:
        raise UsageError("--step-time is the time between frames of motion clips: it goes with --motion")
    from understudy.envs.registry import EnvConfig
    from understudy.tools.record import record

    recorded = record(
        chosen.output,
        run=chosen.run,
        expert_of=None if chosen.expert is None else EnvConfig(id=chosen.expert),
        episodes=chosen.episodes,
        seed=chosen.seed,
        deterministic=chosen.deterministic,
        file_format="motion" if chosen.motion else chosen.format,
        frame_time=chosen.step_time,
    )
    print(recorded.sentence())
    print(f"{'motion clips' if chosen.motion else 'demonstrations'}: {recorded.path}")
    return 0


# ----------------------------------------------------------------------------------------------------- plot


def _plot(words: list[str]) -> int:
    parser = _Parser(prog="understudy plot", description="Draw the learning curves of runs into one PNG.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--output", metavar="PATH", type=Path, help="PNG to write (default: learning-curve.png in RUN)")
    parser.add_argument("--metric", default="episode/return", help="what to draw (default: episode/return)")
    parser.add_argument("--title", help="title (default: the environment)")
    chosen = parser.parse_args(words)
    from understudy.runs.folder import RunFolder
    from understudy.tools.plot import plot_learning_curves

    short = len({path.name for path in chosen.runs}) == len(chosen.runs)
    folders = {path.name if short else str(path): RunFolder(path) for path in chosen.runs}
    envs = dict.fromkeys(folder.env_id() for folder in folders.values())
    output = plot_learning_curves(
        {label: folder.metrics for label, folder in folders.items()},
        chosen.output or chosen.runs[0] / "learning-curve.png",
        title=", ".join(envs) if chosen.title is None else chosen.title,
        metric=chosen.metric,
    )
    print(f"learning curve: {output}")
    return 0


# -------------------------------------------------------------------------------------------------- motions


def _motions(words: list[str]) -> int:
    actions = {"inspect": _inspect_motions, "convert": _convert_motions}
    if not words or words[0] not in actions:
        what = f"unknown action {words[0]!r}; {_nearest(words[0], list(actions))}" if words else "motions what?"
        raise UsageError(f"{what} (understudy motions inspect FILE | convert FILE OUTPUT)")
    return actions[words[0]](words[1:])


def _inspect_motions(words: list[str]) -> int:
    parser = _Parser(prog="understudy motions inspect", description="Say what a motion file holds, and draw it.")
    parser.add_argument("file", metavar="FILE", type=Path, help="motion file: .npz or JSON text")
    parser.add_argument("--text-fields", nargs="+", default=(), help="names of the columns of text that has none")
    parser.add_argument("--picture", metavar="PATH", type=Path, help="PNG to write (default: FILE.png)")
    chosen = parser.parse_args(words)
    from understudy.data.motions.files import read_motions
    from understudy.data.motions.report import describe, draw_clips

    clips = read_motions(chosen.file, chosen.text_fields)
    print(describe(clips))
    print(f"picture: {draw_clips(clips, chosen.picture or chosen.file.with_suffix('.png'))}")
    return 0


def _convert_motions(words: list[str]) -> int:
    parser = _Parser(
        prog="understudy motions convert",
        description="Read a motion file, write it as our .npz. This is the only command that opens pickles (st_gym's "
        "refmotion). It takes containers, numbers, text and numpy arrays from one, refuses everything else, and runs "
        "nothing of it.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="pickle, joblib file, JSON text or .npz")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help=".npz to write")
    parser.add_argument("--text-fields", nargs="+", default=(), help="names of the columns of text that has none")
    chosen = parser.parse_args(words)
    from understudy.data.motions.files import is_pickle, read_motions, write_motions
    from understudy.data.motions.pickled import read_pickled_motions

    pickled = is_pickle(chosen.file)
    clips = read_pickled_motions(chosen.file) if pickled else read_motions(chosen.file, chosen.text_fields)
    write_motions(chosen.output, clips)
    kind = "pickle (data only, nothing of it was run)" if pickled else "motion file"
    print(f"read {len(clips)} clips from the {kind} {chosen.file}")
    print(f"wrote {chosen.output}")
    return 0


# ----------------------------------------------------------------------------------------------------- list


def _list(words: list[str]) -> int:
    tables = {"recipes": _recipes, "parts": _parts, "envs": _envs}
    parser = _Parser(prog="understudy list", description="List recipes, parts and environments, one line each.")
    parser.add_argument("what", nargs="?", choices=sorted(tables), help="only this table")
    what = parser.parse_args(words).what
    for name, table in tables.items():
        if what == name:
            _print_table(table())
        elif what is None:
            print(f"{name}:")
            _print_table(table(), indent="  ")
    return 0


def _recipes() -> list[tuple[str, str]]:
    from understudy.recipes import RECIPES, summary

    return [(name, summary(recipe)) for name, recipe in sorted(RECIPES.items())]


def _parts() -> list[tuple[str, str]]:
    from understudy.parts import PARTS
    from understudy.recipes import summary

    # what `build` returns is the part itself, whose docstring says more than its config's
    return [(name, summary(get_type_hints(part.build)["return"])) for name, part in sorted(PARTS.items())]


def _envs() -> list[tuple[str, str]]:
    from understudy.envs.registry import list_envs

    return [(entry.id, f"{entry.backend}: {entry.summary}") for entry in list_envs()]


def _print_table(rows: Sequence[tuple[str, str]], indent: str = "") -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{indent}{name:<{width}}  {text}".rstrip())


# -------------------------------------------------------------------------------------------------- parsing


class _Parser(argparse.ArgumentParser):
    """argparse that raises `UsageError` and names the nearest options to a misspelt one."""

    def __init__(self, **settings: str) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def parse_args(self, words: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """All words must be known. Raises UsageError."""
        chosen, unknown = self.parse_known_args(words)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            misspelt = next((word for word in unknown if word.startswith("-")), unknown[0])
            raise UsageError(f"unknown option {misspelt!r}; {_nearest(misspelt, known)}; see `{self.prog} --help`")
        return chosen

    def error(self, message: str) -> NoReturn:
        """Called by argparse for everything it finds wrong."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _nearest(name: str, known: Sequence[str] | dict[str, Callable[[list[str]], int]]) -> str:
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


if __name__ == "__main__":
    sys.exit(main())
