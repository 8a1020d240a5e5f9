"""The options of `understudy train` before any recipe: without an import of torch, so that its help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

Several = UseAppendAction[tuple[str, ...]]
Modules = Annotated[Several, arg(metavar="MODULE")]

USAGE = """Train a policy: `understudy train RECIPE [--options]`.

`understudy list recipes` shows the recipes, `understudy train RECIPE --help` all options, also those of parts that
--with adds. With --config FILE the recipe may be omitted. Some that every recipe has: --total-steps, --seed, --run-dir,
--env.id, and --start-from RUN for the weights of an earlier run. `understudy train --resume RUN` continues a run."""


@dataclass(frozen=True, kw_only=True)
class ComposingOptions:
    """Words that say what a training is made of."""

    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """YAML to lay over the recipe: any run's config.yaml, or a few options of your own. A whole one needs no recipe."""
    with_: Annotated[Several, arg(name="with", metavar="[NAME=]PART")] = ()
    """Add a part: a registered one (`understudy list parts`), or your own as NAME=module:Config. NAME is its key
    (default: PART, with _ for -), --parts.NAME.* are its options."""
    without: Annotated[Several, arg(metavar="NAME")] = ()
    """Remove a part."""
    demonstrations: Annotated[str | None, arg(metavar="SOURCE")] = None
    """A path or local Minari id for all parts that learn from demonstrations, played in the environment they are of."""
    allow_import: Modules = ()
    """Modules that FILE, the demonstrations' environment and the policies loaded while training may import, which runs
    their code."""


@dataclass(frozen=True, kw_only=True)
class WithoutRecipe(ComposingOptions):
    """The options of `understudy train` alone: what its help shows, and where misspelt ones are looked for."""

    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """Continue a run from its newest checkpoint (with --total-steps N: up to there) instead of starting one."""
