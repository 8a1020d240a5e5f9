"""The commands on files of motions and of demonstrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from understudy.cli.register import NO_ENV, EnvOptions, Flag, command
from understudy.core.quiet import quiet
from understudy.data.motions.options import MotionFormat, ReadOptions

Reading = Annotated[ReadOptions, arg(name="")]  # its options stand beside the command's own
NOTHING_SAID = ReadOptions()

motion_app, demo_app = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()


@command("motions inspect", motion_app)
def inspect_motions(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    *,
    reading: Reading = NOTHING_SAID,
    picture: Path | None = None,
) -> None:
    """Describe a motion file (fields, length, ranges, gaps), and draw it.

    Args:
        file: Motion file of any format; nothing of a pickle is run.
        reading: What the file does not say.
        picture: PNG to write; None: FILE.png.
    """
    from understudy.data.motions.pickled import read_any_motions
    from understudy.data.motions.report import describe, draw_clips

    clips = read_any_motions(file, reading)
    print(describe(clips))
    print(f"picture: {draw_clips(clips, picture or file.with_suffix('.png'))}")


@command("motions convert", motion_app)
def convert_motions(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    output: Annotated[Positional[Path], arg(metavar="OUTPUT")],
    /,
    *,
    reading: Reading = NOTHING_SAID,
    to: MotionFormat = "ours",
    rate: float | None = None,
    clip: str | None = None,
    bodies: Flag = False,
) -> None:
    """Read a motion file of any format, write it as our .npz or in another program's format.

    Pickles are opened as well: containers, numbers, text and numpy arrays are taken from one, everything else is
    refused, and nothing of it runs.

    Args:
        file: Motion file, a pickle as well.
        output: The file to write.
        reading: What the file does not say.
        to: Format to write; those of other programs hold one clip, with joints and bodies in the robot's order (mjlab
            depth first, beyond-mimic breadth first as Isaac Lab).
        rate: Frames per second to write; None: the file's, and 50 for mjlab and beyond-mimic, which play one a step.
        clip: The clip to write; None: all, of which formats of other programs take one.
        bodies: Add all bodies of the robot to our .npz, by its kinematics.
    """
    from understudy.data.motions.convert import convert
    from understudy.data.motions.files import is_pickle

    clips = convert(file, output, reading, to=to, rate=rate, clip=clip, bodies=bodies)
    kind = "pickle (data only, nothing of it was run)" if is_pickle(file) else "motion file"
    print(f"read {len(clips)} clips from the {kind} {file}")
    print(f"wrote {output}" + ("" if to == "ours" else f" in the format {to}"))


@command("motions film", motion_app)
def film_motions(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    *,
    reading: Reading = NOTHING_SAID,
    clip: str | None = None,
    output: Path | None = None,
) -> None:
    """Film a clip on its robot (--robot), as MP4; without a robot draw its fields.

    Args:
        file: Motion file of any format; nothing of a pickle is run.
        reading: What the file does not say.
        clip: The clip to film; None: the first.
        output: File to write; None: FILE.mp4, without a robot FILE.png.
    """
    from understudy.data.motions.convert import choose
    from understudy.data.motions.pickled import read_any_motions
    from understudy.tools.film import prepare_offscreen_rendering

    prepare_offscreen_rendering()  # before MuJoCo is imported, which reads the robot
    chosen = choose(read_any_motions(file, reading), clip, file)[0]
    if reading.robot:
        from understudy.data.motions.robots import Robot
        from understudy.tools.clips import film_clip

        print(f"film: {film_clip(chosen, Robot(reading.robot), output or file.with_suffix('.mp4'))}")
    else:
        from understudy.data.motions.report import draw_clips

        print(f"picture: {draw_clips([chosen], output or file.with_suffix('.png'))}; --robot makes a film")


@command("demos inspect", demo_app)
def inspect_demonstrations(
    file: Annotated[Positional[str], arg(metavar="FILE")],
    /,
    *,
    env: EnvOptions = NO_ENV,
    subset: str = "",
    file_observations: tuple[str, ...] = (),
    output: Path | None = None,
) -> None:
    """Describe demonstrations (episodes, returns, ranges, gaps), draw them, try whether they fit an environment.

    Args:
        file: File or folder of any format that `list demos` names, or the id of a local Minari dataset.
        env: Environment to try them on.
        subset: Only the trajectories of this list in the file.
        file_observations: Vectors of the file, joined into the one that the environment has.
        output: PNG to write; None: no picture.
    """
    from understudy.data.demonstrations.report import describe, draw, fit_environment, read_report

    tried = env.config()
    with quiet("understudy"):  # what would be warned of is in the text
        report = read_report(file, subset)
        print(describe(report))
        if output is not None:
            print(f"picture: {draw(report, output)}")
        if tried is not None:
            said, problems = fit_environment(report, file, replace(tried, num_envs=1), subset, file_observations)
            if problems:
                raise ValueError("\n".join((f"these demonstrations do not fit {tried.id} ({said}):", *problems)))
            print(f"fits {tried.id}: {said}")
