"""Pictures of the motion benchmark: joint angles over a gait cycle, health of the discriminator, films side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.table import canvas

if TYPE_CHECKING:
    from benchmarks.motion.gait import Task

FILM_SECONDS = 10.0
GIF_START, GIF_SECONDS, GIF_FPS, GIF_HEIGHT = 2.0, 2.4, 12.5, 180


def draw(results: Sequence[Mapping[str, Any]], clips: Mapping[str, Any], task: Task, path: Path) -> None:
    """One panel for each joint (bold: the method's lowest seed), then scores, share of saturated scores and returns."""
    columns, joints = 3, list(task.joints)
    rows = -(-(len(joints) + 3) // columns)
    figure = canvas(4.2 * columns, 2.7 * rows)
    panels = [figure.add_subplot(rows, columns, k + 1) for k in range(len(joints) + 3)]
    methods = list(dict.fromkeys(r["method"] for r in results))
    colors = {method: f"C{k}" for k, method in enumerate(methods)}
    for axes, k in zip(panels, range(len(joints))):
        _draw_joint(axes, k, results, clips, colors)
        axes.set_title(joints[k], fontsize=9)
    panels[0].legend(fontsize=6)
    scores, saturated, returns = panels[len(joints) :]
    for result in results:
        color, wide = colors[result["method"]], _width(result, results)
        for name, style in (("logit_pi", "-"), ("logit_exp", "--")):
            scores.plot(*_curve(result[name]), color=color, lw=wide, ls=style)
        saturated.plot(*_curve(result["saturated"]), color=color, lw=wide)
        returns.plot(*_curve(result["curve"]), color=color, lw=wide)
    scores.set_title("discriminator's mean scores (dashed: clips)", fontsize=9)
    saturated.set_title("share of saturated scores", fontsize=9)
    saturated.set_ylim(-0.02, 1.02)
    returns.set_title("task return while training", fontsize=9)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_joint(axes: Any, k: int, results: Sequence[Mapping[str, Any]], clips: Mapping[str, Any], colors: Any) -> None:
    bins = len(clips["cycle"])
    phase = (np.arange(bins) + 0.5) / bins
    mean, deviation = (np.array(clips[name], dtype=float)[:, k] for name in ("cycle", "cycle_deviation"))
    axes.fill_between(phase, mean - deviation, mean + deviation, color="0.85")
    axes.plot(phase, mean, color="0.2", lw=2.0, label=f"clips, {clips['frequency']:.2f} Hz")
    many = len({r["method"] for r in results}) > 4  # then only one seed of each
    for result in results:
        wide = _width(result, results)
        if many and wide < 1.0:
            continue
        label = f"{result['method']}, {result['frequency']:.2f} Hz" if wide > 1.0 else None
        cycle = np.array(result["cycle"], dtype=float)[:, k]
        axes.plot(phase, cycle, color=colors[result["method"]], lw=wide, label=label)
    axes.set_xlabel("share of the gait cycle", fontsize=7)
    axes.set_ylabel("rad", fontsize=7)


def _width(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> float:
    lowest = min(r["seed"] for r in results if r["method"] == result["method"])
    return 1.5 if result["seed"] == lowest else 0.4


def _curve(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def film_run(run: Path, path: Path, env_id: str) -> None:
    """Film one episode of a run's policy, in the environment as it is, wherever the run started its episodes."""
    from understudy.runs.folder import read_policy
    from understudy.tools.film import film

    policy, config = read_policy(run)
    env = dataclasses.replace(config.env, id=env_id, kwargs={})
    made = film(policy, env, path, seed=0, deterministic=True)
    if made is not None:
        raise SystemExit(f"{run.name}: no film: {made}")


def side_by_side(films: Mapping[str, Path], path: Path) -> str:
    """One film of all of them next to each other, in the order given, named; what it shows, as a sentence."""
    import imageio.v2 as imageio
    from PIL import Image, ImageDraw

    readers: list[Any] = [imageio.get_reader(file) for file in films.values()]
    fps = readers[0].get_meta_data()["fps"]
    with imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2) as writer:  # type: ignore[arg-type]
        for number, frames in enumerate(zip(*readers)):
            if number >= FILM_SECONDS * fps:
                break
            whole = Image.fromarray(np.concatenate(frames, axis=1))
            for place, name in enumerate(films):
                corner = (place * whole.width // len(films) + 10, 8)
                ImageDraw.Draw(whole).text(
                    corner, name, fill="white", stroke_width=2, stroke_fill="black", font_size=22
                )
            writer.append_data(np.asarray(whole))
    return f"{path}, from left to right: {', '.join(films)}"


def shorten(film: Path, path: Path) -> str:
    """A few seconds of a film as a small GIF, for pages that show no films."""
    import imageio.v2 as imageio
    from PIL import Image

    reader: Any = imageio.get_reader(film)
    fps = reader.get_meta_data()["fps"]
    frames = [Image.fromarray(frame) for frame in reader]
    times = np.arange(GIF_START, min(GIF_START + GIF_SECONDS, len(frames) / fps), 1.0 / GIF_FPS)
    chosen = [frames[int(time * fps)] for time in times]
    small = [x.resize((round(x.width * GIF_HEIGHT / x.height), GIF_HEIGHT)).quantize(64) for x in chosen]
    small[0].save(path, save_all=True, append_images=small[1:], duration=round(1000 / GIF_FPS), loop=0, optimize=True)
    return str(path)
