"""What the documentation says is so: names, options, tables, code blocks, messages, links and examples."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from tests.fresh import Fresh

import understudy as us
from understudy import cli
from understudy.core import origin_names as ORIGIN_MODULE
from understudy.data.motions.fields import FieldTable
from understudy.data.motions.files import read_motions
from understudy.parts import PARTS
from understudy.parts.shared import discriminator
from understudy.recipes import RECIPES
from understudy.runs.codec import from_plain
from understudy.runs.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = {
    page.name: page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
CODE_PAGES = [name for name, page in PAGES.items() if "```python" in page.read_text()]
PLANNED = ("BehaviorCloning", "Teacher", "Gail", "Airl", "MotionPrior", "Advisor", "Estimator")
NO_OPTIONS = ("env.step", "evaluation.json", "policy.pth", "ppo.py")  # they look like options
METRIC_GROUPS = ("episode", "ppo", "reward", "time")

ORIGINS = {
    (section, table): options
    for section, tables in yaml.safe_load((ROOT / "tests" / "test_docs_options.yaml").read_text()).items()
    for table, options in tables.items()
}
"""(section, table) of docs/coming-from.md -> every option of that page, as words."""


# ---------------------------------------------------------------------------------------------- what exists


def field_type(path: str) -> Any:
    """The type of a dotted path through `TrainConfig`; ValueError if there is none."""
    kind: Any = TrainConfig
    for name in path.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=3)
            raise ValueError(f"no option {path!r} ({name!r} is not in {kind}; near: {near})")
        kind = hints[name]
        inner = [x for x in typing.get_args(kind) if dataclasses.is_dataclass(x)]
        kind = inner[0] if typing.get_origin(kind) in (typing.Union, types.UnionType) and inner else kind
    return kind


def check_path(text: str) -> None:
    """`ppo.surrogate` or `ppo.surrogate = "a2c"`: the option exists, and the value fits it."""
    path, _, value = text.partition(" = ")
    hint = field_type(path)
    if value:
        from_plain(hint, yaml.safe_load(value), path)


def find(name: str) -> Any:
    """What `us.a.b` or `understudy.a.b` means; ValueError if it means nothing."""
    head, *rest = name.split(".")
    target: Any = us if head == "us" else importlib.import_module(head)
    for index, part in enumerate(rest):
        try:
            target = getattr(target, part)
        except AttributeError:
            module = ".".join(("understudy", *rest[: index + 1]))
            if head == "us" or importlib.util.find_spec(module) is None:
                raise ValueError(f"{name} does not exist: {target} has no {part}") from None
            target = importlib.import_module(module)
    return target


def check_public(text: str) -> None:
    """`us.X.y` or `us.X(option=)`: the name exists, and takes the option."""
    match = re.fullmatch(r"((?:us|understudy)[\w.]*)(?:\((\w+)=\))?", text)
    assert match, f"{text!r} is no public name"
    target, option = find(match[1]), match[2]
    if option is not None and option not in inspect.signature(target).parameters:
        raise ValueError(f"{match[1]} has no option {option!r}: {list(inspect.signature(target).parameters)}")


@pytest.fixture(scope="module")
def metric_names() -> set[str]:
    """The metrics of an iteration, and those that the training loop adds."""
    env = us.make_env("CartPole-v1", 2)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(hidden_sizes=(8,)))
    ppo = us.PPO(env, policy, us.PPOConfig(num_steps=8, epochs=1, minibatches=1, warmup_steps=0, capture="eager"))
    adversarial = {f"gail/{name}" for name in discriminator.STATISTICS}
    evaluation = {"evaluation/return", "evaluation/return_std", "evaluation/length"}
    offline = {"offline/loss", "offline/validation_loss", "time/epoch"}  # of OfflineTraining.epoch
    said = {"episode/success"}  # by environments whose info has is_success
    return {*ppo.iterate(), "time/elapsed", *said, *offline, *evaluation, *adversarial}


def check_reference(text: str, metrics: set[str]) -> None:
    """A name in the middle column, of any kind."""
    if "/" in text:
        assert text in metrics, f"no metric {text!r}"
    elif re.match(r"(us|understudy)\b", text):
        check_public(text)
    else:
        check_path(text)


# ---------------------------------------------------------------------------------------------- coming from


def rows(page: str) -> Iterator[tuple[str, str, list[str]]]:
    """(section, subsection, cells) of every row of every table of a page."""
    section = subsection = ""
    lines = iter((ROOT / "docs" / page).read_text().splitlines())
    for line in lines:
        if line.startswith("## "):
            section, subsection = line[3:], ""
        elif line.startswith("### "):
            subsection = line[4:]
        elif line.startswith("|"):
            next(lines)  # the header's rule
            for row in lines:
                if not row.startswith("|"):
                    break
                yield section, subsection, [cell.strip() for cell in row.strip("|").split("|")]


TABLE = [row for row in rows("coming-from.md") if row[0] in {section for section, _ in ORIGINS}]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}-{row[2][0]}".replace(" ", "_"))
def test_the_name_on_our_side_exists(row: tuple[str, str, list[str]], metric_names: set[str]) -> None:
    cells = row[2]
    assert len(cells) == 3, f"{cells}: a row has three cells"
    _, here, differs = cells
    if here == "none":
        assert differs or "*" in cells[0], f"{cells}: say why there is no such option"
    elif here.startswith("planned: "):
        part = here.removeprefix("planned: ")
        assert part in PLANNED, f"{part} is no part of the plan"
        assert part not in vars(us.parts), f"{part} is there now: name its option instead of {here!r}"
    else:
        names = re.findall(r"`([^`]*)`", here)
        assert ", ".join(f"`{name}`" for name in names) == here, f"{here!r}: names in backticks, with commas between"
        for name in names:
            check_reference(name, metric_names)
    for name in re.findall(r"`((?:us|understudy)\.[^`]*|(?:ppo|policy|env)\.[^`]*)`", differs):
        check_reference(name, metric_names)


@pytest.mark.parametrize("origin", ORIGINS, ids=lambda origin: "-".join(origin).replace(" ", "_"))
def test_every_option_of_the_origin_is_answered(origin: tuple[str, str]) -> None:
    answered = {
        name for section, sub, cells in TABLE if (section, sub) == origin for name in re.findall(r"`([^`]*)`", cells[0])
    }
    assert set(ORIGINS[origin].split()) <= answered


def origin_names() -> dict[str, tuple[str, ...]]:
    """Other libraries' names of options -> paths and `Class.option` here, equal names first; from the tables."""
    found: dict[str, dict[str, None]] = {}
    for _, _, (theirs, ours, _) in TABLE:
        paths = []
        for text in re.findall(r"`([^`]*)`", ours):
            if option := re.fullmatch(r"(?:us|understudy)\.(?:\w+\.)*(\w+Config)\((\w+)=\)", text):
                paths.append(f"{option[1]}.{option[2]}")
            elif "/" not in text and not text.startswith(("us.", "understudy.")):
                paths.append(text.partition(" = ")[0])
        for name in re.findall(r"`([^`]*)`", theirs):
            name = name.rpartition(".")[2]
            if re.fullmatch(r"\w+", name):
                found.setdefault(name, {}).update(dict.fromkeys(paths))
    return {
        name: tuple(sorted(paths, key=lambda path: path.rpartition(".")[2] != name))
        for name, paths in sorted(found.items())
        if paths and list(paths) != [name]
    }


def without_counterpart() -> dict[str, str]:
    """Other libraries' options that do not exist here, and what the tables say instead."""
    found: dict[str, str] = {}
    for _, _, (theirs, ours, why) in TABLE:
        for name in re.findall(r"`([\w.]+)`", theirs) if ours == "none" and why else ():
            same = re.fullmatch(r"as `(\w+)`", why)
            found.setdefault(name.rpartition(".")[2], found.get(same[1], why) if same else why)
    return {name: why for name, why in sorted(found.items()) if name not in origin_names()}


def test_names_of_other_libraries_are_known_to_the_messages() -> None:
    expected, nowhere = origin_names(), without_counterpart()
    if os.environ.get("UPDATE_DOCS"):
        lines = [f"{name}: {' '.join(paths)}" for name, paths in expected.items()]
        said = [f"{name}: {why}" for name, why in nowhere.items()]
        page = Path(ORIGIN_MODULE.__file__)
        for place, text in (("_TEXT", "; ".join(lines)), ("_NOWHERE", " | ".join(said))):
            text = textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)
            head, _, rest = page.read_text().partition(f'\n{place} = """\\\n')
            page.write_text(f'{head}\n{place} = """\\\n{text}\n"""{rest.partition(chr(34) * 3)[2]}')
        return
    told = (ORIGIN_MODULE.ORIGIN_NAMES, ORIGIN_MODULE.NO_COUNTERPART)
    assert (expected, nowhere) == told, "run UPDATE_DOCS=1 python -m pytest tests/test_docs.py"
    assert expected["eps_clip"] == ("ppo.clip_epsilon",)
    assert nowhere["sde_sample_freq"] == nowhere["use_sde"]


def test_a_wrong_name_is_found(metric_names: set[str]) -> None:
    for wrong in (
        "ppo.clip",
        'ppo.loss_critic_type = "l3"',
        "us.ClipPPOLos",
        "us.ClipPPOLoss(clip=)",
        "ppo/klx",
        "policies",
    ):
        with pytest.raises((ValueError, AssertionError)):
            check_reference(wrong, metric_names)


# ---------------------------------------------------------------------------------------------- all pages


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, info: str) -> list[str]:
    """The fenced blocks of a page with that info string."""
    return re.findall(rf"^```{info}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_names_in_the_text_exist(name: str, metric_names: set[str]) -> None:
    for text in re.findall(r"`([^`\n]*)`", prose(PAGES[name])):
        if re.fullmatch(r"(us|understudy)\.[\w.]+(\(\w+=\))?", text):
            check_public(text)
        elif re.fullmatch(r"(ppo|policy|env|evaluation|checkpoint|logging)(\.\w+)+( = .*)?", text):
            if text not in NO_OPTIONS:
                check_path(text)
        elif re.fullmatch(rf"({'|'.join(METRIC_GROUPS)})/\w+", text):
            assert text in metric_names, f"no metric {text!r}"


def test_public_names_need_no_other_import(fresh: Fresh) -> None:
    names = sorted({n for page in PAGES.values() for n in re.findall(r"`(us\.[\w.]+)[`(]", page.read_text())})
    assert len(names) > 30
    # one attribute chain per line: a module that only another name's import has loaded would hide a mistake
    code = "import understudy as us\n" + "\n".join(sorted(names, key=lambda n: ("parts" in n, "envs" in n, n)))
    fresh("-c", code)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"<!--.*?-->", "", prose(page), flags=re.DOTALL)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            path = re.sub(r"^(\.\./)?src/understudy", str(Path(us.__file__).parent), path)  # or where it is installed
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{name} links {target}, which does not exist"
            headings = (
                [
                    re.sub(r"[^\w -]", "", h).lower().replace(" ", "-")
                    for h in re.findall(r"^#+ (.*)", prose(linked), re.M)
                ]
                if anchor
                else []
            )
            assert not anchor or anchor in headings, f"{name} links {target}, which has no such heading"


def help_options(*command: str) -> set[str]:
    """The options in the help text of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert cli.main([*command, "--help"]) == 0
    return set(re.findall(r"--[a-z][\w.-]*", text.getvalue()))


def test_options_in_the_text_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = {command: help_options(command) for command in ("evaluate", "export", "record", "plot", "list")}
    parts = {field.name.replace("_", "-") for part in PARTS.values() for field in dataclasses.fields(part)}
    trains = help_options("train", "ppo") | help_options("train", "dagger")
    known["train"] = {*help_options("train"), *trains, *(f"--parts.NAME.{name}" for name in parts)}
    known["demos"] = help_options("demos", "inspect")
    known["motions"] = help_options("motions", "inspect") | help_options("motions", "convert")
    known["train"] |= help_options("train", "appo") | help_options("train", "tppo")
    for name, page in PAGES.items():
        for line in re.findall(r"^understudy .*$", "\n".join(blocks(page, "bash")), re.M):
            command, *words = line.split("#")[0].split()[1:]
            assert command in known, f"{name}: {line}"
            if command == "train" and not words[0].startswith("--"):
                assert words[0] in RECIPES, f"{name}: {line}"
            options = {word for word in words if word.startswith("--")} - known[command]
            unknown = {re.sub(r"^--parts\.\w+", "--parts.NAME", option) for option in options} - known[command]
            assert not unknown, f"{name}: {line} has unknown options {unknown}"
        everywhere = {"--debug", "--help"}.union(*known.values())
        for option in re.findall(r"`[^`\n]*?(--[a-z][\w.-]*)", prose(page)):
            generic = re.sub(r"^--parts\.\w+", "--parts.NAME", option)
            assert generic in everywhere, f"{name} names the option {option}, which does not exist"


def test_every_piece_of_the_fault_campaign_is_on_its_page() -> None:
    pieces = {path.stem for path in (ROOT / "benchmarks" / "faults").glob("*.py")} - {"__init__", "mutate"}
    named = set(re.findall(r"`python -m benchmarks\.faults\.(\w+)`", PAGES["reliability.md"].read_text()))
    assert pieces
    assert pieces <= named


def test_make_targets_in_the_text_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for name, page in PAGES.items():
        named = set(re.findall(r"(?:`|^)make (\w+)", page.read_text(), re.M))
        assert named <= targets, f"{name} names make {named - targets}"


# ---------------------------------------------------------------------------------------------- code and messages


def fits(expected: str, output: str) -> bool:
    """Whether a quoted line is in the output: white space, boxes and what ... stands for aside."""
    pattern = r"\s+".join(".*?".join(map(re.escape, word.split("..."))) for word in expected.split())
    return re.search(pattern, " ".join(re.sub(r"[│─╭╮╰╯]", " ", output).split())) is not None


def test_fits() -> None:
    assert fits("a (... cases) b", "x a\n│ (3 cases) │ b")
    assert not fits("a c", "a b c")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder that is not empty, and the registries as they were afterwards."""
    from understudy.envs.makers import ENVS

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    parts, tasks = set(PARTS), set(ENVS)
    yield tmp_path
    for name in PARTS.keys() - parts:
        del PARTS[name]
    for name in ENVS.keys() - tasks:
        del ENVS[name]


@pytest.mark.parametrize("name", CODE_PAGES)
def test_code_blocks_run(
    name: str, elsewhere: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The blocks of a page run one after another in one namespace; trainings are shortened."""
    module = types.ModuleType("docs_page")
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    found = re.findall(r"^```(python|text output)\n(.*?)^```", PAGES[name].read_text(), flags=re.DOTALL | re.MULTILINE)
    output = ""
    try:
        for kind, text in found:
            if kind == "python":
                caplog.clear()
                short = re.sub(r"total_steps=[\d_]{5,}", "total_steps=2048", text)
                exec(compile(short, name, "exec"), vars(module))
                out, err = capfd.readouterr()
                output = out + err + caplog.text
            else:
                assert all(fits(line, output) for line in text.splitlines()), output
    finally:
        del sys.modules[module.__name__]


def console_cases() -> list[tuple[str, str]]:
    text = "\n".join(blocks(PAGES["troubleshooting.md"], "console"))
    return [(case.split("\n")[0], "\n".join(case.split("\n")[1:])) for case in re.split(r"^\$ ", text, flags=re.M)[1:]]


@pytest.mark.parametrize(("command", "expected"), console_cases(), ids=lambda text: text.split("\n")[0])
def test_quoted_messages(command: str, expected: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "wandb" in command and importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    assert cli.main(command.split()[1:]) == 2
    output = "".join(capsys.readouterr())
    for line in expected.strip().splitlines():
        assert fits(line, output), f"{line!r} is not in\n{output}"


def run_example(name: str) -> Callable[..., Any]:
    """`main` of an example file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    main: Callable[..., Any] = module.main
    return main


def test_example_train_from_python(elsewhere: Path) -> None:
    returns = run_example("train_from_python")(total_steps=4096, run_dir=elsewhere / "run")
    assert len(returns) == 3
    assert min(returns) >= 8


def test_example_own_loop() -> None:
    assert run_example("own_loop_with_clip_ppo_loss")(total_steps=12_000) > 40  # about 22 with random actions


def test_example_custom_part(elsewhere: Path) -> None:
    run = run_example("custom_part")(total_steps=6000, run_dir=elsewhere / "run")
    first, last = run.metrics[0], run.metrics[-1]
    assert last["expert/cross_entropy"] < first["expert/cross_entropy"]
    assert (run.path / "config.yaml").read_text().count("part: example_custom_part:BalancerConfig") == 1


def test_example_residual_trunk(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    run = run_example("residual_trunk")(total_steps=2048, run_dir=elsewhere / "run")
    assert run.policy.config.trunk == "residual_trunk:ResidualMLP"


def test_example_attention_memory(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    run = run_example("attention_memory")(total_steps=6000, run_dir=elsewhere / "run")
    assert run.policy.state_size == 8 * 32 + 2 * 8
    assert run.evaluation.mean_return > 0.9  # without a memory, 0.5


def test_example_tensordict_modules(elsewhere: Path) -> None:
    run = run_example("tensordict_modules")(total_steps=1024, run_dir=elsewhere / "run")
    assert run.policy.built_from is None


def test_example_poisoned_doors_demo(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    sentences = run_example("poisoned_doors_demo")(total_steps=2000, output=elsewhere / "demo")
    assert list(sentences) == ["behaviour cloning", "PPO", "ADVISOR"]
    output = capsys.readouterr().out
    assert all(sentence.startswith(name) and sentence in output for name, sentence in sentences.items())
    assert (elsewhere / "demo" / "poisoned-doors.png").is_file()


def test_example_trot_clips(elsewhere: Path) -> None:
    clips = read_motions(run_example("trot_clips")(elsewhere / "trot.npz"))
    example = sys.modules["example_trot_clips"]
    for clip in clips:
        table = FieldTable(clip.name, clip.fields, clip.frames, clip.frame_time)
        for leg, hip, side in zip(example.LEGS, example.HIPS, example.SIDES):
            angles = table.select([f"{leg}_{joint}_joint_dof_pos" for joint in ("hip", "thigh", "calf")])
            foot = table.select([f"{leg}_foot_pos_{axis}_b" for axis in "xyz"])
            assert abs(hip + example.forward_kinematics(angles, side) - foot).max() < 1e-6
            standing = foot[:, 2] < foot[:, 2].min() + 1e-6
            assert 0.5 < standing.mean() < 0.6
        assert (table["FR_foot_pos_z_b"] == table["RL_foot_pos_z_b"]).all()  # diagonal legs together
        forward, _, turning = (float(word) for word in clip.name.split()[1:])
        assert abs(table["root_vel_x_b"] - forward).max() < 0.01
        hip_y = -(0.04675 + 0.08)  # a standing foot does not slip over the ground
        assert abs(table["FR_foot_vel_x_b"][2:18] + forward - turning * hip_y).max() < 1e-4


def test_example_ant_trot_clips(elsewhere: Path) -> None:
    pytest.importorskip("mujoco")
    first, second = read_motions(run_example("ant_trot_clips")(elsewhere / "ant.npz", episodes=2))
    assert (first.frames[0] != second.frames[0]).any()
    for clip in (first, second):
        assert len(clip.frames) == 401  # upright to the end
        angles, forward = clip.frames[100:, 5:13], clip.frames[100:, 13]
        assert forward.mean() > 0.8
        hips, ankles = angles[:, 0::2], angles[:, 1::2]
        backwards = hips * (1.0, 1.0, -1.0, -1.0)
        together = np.corrcoef(backwards.T)  # legs 1 and 3, 2 and 4; the pairs half a cycle apart
        assert min(together[0, 2], together[1, 3], -together[0, 1]) > 0.8
        assert (np.abs(ankles) < 1.3).all()


def test_example_onnx_policy(elsewhere: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from understudy.tools.export import export_policy

    env = us.make_env("CartPole-v1", 1)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(memory="gru", memory_size=4))
    path = export_policy(policy, elsewhere / "policy.onnx")
    returns = run_example("onnx_policy")(path, "CartPole-v1", episodes=2)
    assert len(returns) == 2
    assert min(returns) >= 8


def test_example_onnx_policy_cuts_segments(elsewhere: Path) -> None:
    """The exported policy gets the segments that it was trained with: it plays as the policy itself does."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from understudy.envs.registry import EnvConfig
    from understudy.tools.export import export_policy

    segments = {"policy": {"place": 1, "speed": 1, "angle": 1, "spin": 1}}
    env = EnvConfig(id="CartPole-v1", num_envs=1, segments=segments).make("cpu", 0)
    groups = ("policy/angle", "policy/spin")
    torch.manual_seed(0)
    policy = us.ActorCritic(env.observation_space, env.action_space, us.PolicyConfig(actor_groups=groups))
    with torch.no_grad():
        policy.head.linear.weight.normal_()
    path = export_policy(policy, elsewhere / "policy.onnx", segments=segments)
    (played,) = run_example("onnx_policy")(path, "CartPole-v1", episodes=1, seed=3)
    obs, total, over = env.reset(3), 0.0, False
    while not over:
        step = env.step(policy.act(obs)[0])
        obs, total, over = step.obs, total + float(step.reward), bool(step.terminated | step.truncated)
    env.close()
    assert played == total


STOOL = """
<mujoco><worldbody><body name="trunk"><freejoint/><site name="imu"/><geom type="box" size=".2 .2 .05" mass="4"/>{legs}
</body></worldbody>
<sensor><gyro name="imu_ang_vel" site="imu"/><velocimeter name="imu_lin_vel" site="imu"/></sensor></mujoco>
"""
LEG = """
<body pos="{x} {y} 0"><joint name="{name}" axis="0 1 0"/>
<geom type="capsule" fromto="0 0 0 0 0 -.2" size=".02" mass=".2"/></body>
"""


def test_example_deploy_in_mujoco(elsewhere: Path) -> None:
    """Observations and commands are what the file's contract says, in the file's order of joints."""
    for package in ("onnx", "onnxscript", "onnxruntime", "mujoco"):
        pytest.importorskip(package)
    from understudy.tools.export import export_policy

    names = ["d", "a", "c", "b"]  # the policy's order; the model has another one
    corners = zip("abcd", (0.15, 0.15, -0.15, -0.15), (0.15, -0.15, 0.15, -0.15))
    legs = "".join(LEG.format(name=name, x=x, y=y) for name, x, y in corners)
    (elsewhere / "stool.xml").write_text(STOOL.format(legs=legs))
    terms = {"base_ang_vel": 3, "projected_gravity": 3, "joint_pos": 4, "joint_vel": 4, "actions": 4, "command": 3}
    robot = {
        "joint_names": names,
        "joint_stiffness": [30.0] * 4,
        "joint_damping": [1.0] * 4,
        "joint_armature": [0.05] * 4,
        "default_joint_pos": [0.1, -0.2, 0.3, -0.4],
        "action_scale": [0.5, 0.25, 0.5, 0.25],
        "observation_names": list(terms),
        "observation_terms_scale": [1.0, 1.0, 2.0, 1.0, 1.0, 1.0],
        "observation_terms_clip": [[-math.inf, math.inf]] * 5 + [[-0.3, 0.3]],
        "observation_terms_history_length": [0, 0, 2, 0, 0, 0],
        "step_dt": 0.02,
        "default_root_pos": [0.0, 0.0, 0.25],
    }
    spaces = gym.spaces
    size = sum(terms.values()) + 4
    policy = us.ActorCritic(
        spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (size,), np.float32)}),
        spaces.Box(-np.inf, np.inf, (4,), np.float32),
        us.PolicyConfig(action_bound="none", action_scaling="off"),
    )
    path = export_policy(policy, elsewhere / "stool.onnx", robot=json.loads(json.dumps(robot)))
    trunk = run_example("deploy_in_mujoco")(path, elsewhere / "stool.xml", (0.5, 0.0, 0.0), 1.0, None)
    assert trunk.shape == (50, 3)
    assert 0.15 < trunk[-1, 2] < 0.25  # on its legs

    example = sys.modules["example_deploy_in_mujoco"]
    pilot = example.Pilot(path)
    stool = example.Robot(elsewhere / "stool.xml", pilot.contract)
    assert stool.data.joint("d").qpos == 0.1
    stool.data.joint("a").qpos, stool.data.joint("a").qvel = 0.0, 2.0
    seen = pilot.observe(stool, np.array([0.5, 0.0, 0.1]))
    joints = [0.0, 0.4, 0.0, 0.0]  # twice (0 - -0.2), second in the policy's order
    expected = [0, 0, 0, 0, 0, -1, *joints, *joints, 0, 2, 0, 0, 0, 0, 0, 0, 0.3, 0, 0.1]
    assert seen == pytest.approx(expected, abs=1e-6)
    action, _ = policy.act({"policy": torch.from_numpy(seen)[None]})
    targets = pilot(stool, np.array([0.5, 0.0, 0.1]))
    expected = np.array([0.1, -0.2, 0.3, -0.4]) + np.array([0.5, 0.25, 0.5, 0.25]) * action[0].numpy()
    assert targets == pytest.approx(expected, abs=1e-5)
    (elsewhere / "other.xml").write_text((elsewhere / "stool.xml").read_text().replace('name="d"', 'name="e"'))
    with pytest.raises(SystemExit, match="has no joint 'd', which the policy moves; it has a, b, c"):
        example.Robot(elsewhere / "other.xml", pilot.contract)


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert all(f'run_example("{path.stem}")' in source for path in (ROOT / "examples").glob("*.py"))


# ---------------------------------------------------------------------------------------------- option tables


def field_docs(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, its own and those it inherits."""
    docs = {}
    for owner in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                assert isinstance(doc.value, ast.Constant)
                docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


def type_words(hint: Any) -> str:
    """A type for readers: number or schedule, whole number, list of, ..."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        members = [member for member in inner if member is not type(None)]
        words = ["number or schedule"] if us.Schedule in members else [type_words(member) for member in members]
        return " or ".join([*words, "none"] if len(members) < len(inner) else words)
    if origin is tuple:
        return f"list of {type_words(inner[0])}s" if inner[-1] is Ellipsis else f"{len(inner)} {type_words(inner[0])}s"
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return f"mapping to {type_words(inner[1])}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(hint, f"`{hint.__name__}`")


def option_table(kind: type, prefix: str) -> Iterator[str]:
    """The table of a config dataclass, then those of the dataclasses inside it."""
    docs, hints, nested = field_docs(kind), typing.get_type_hints(kind), []
    yield from ("| option | type | default | meaning |", "|---|---|---|---|")
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner = [x for x in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(x) and x is not us.Schedule]
        if inner and inner[0] is not kind and typing.get_origin(hint) is not dict:
            nested.append((inner[0], f"{prefix}{field.name}."))
        if dataclasses.is_dataclass(hint) or field.name == "recipe":  # recipe only names the run
            continue
        default = field.default
        if default is dataclasses.MISSING:
            default = "required" if field.default_factory is dataclasses.MISSING else field.default_factory()
        words = "required" if default == "required" else f"`{default!r}`"
        meaning = docs.get(field.name, "").replace("|", "or").replace("<", "&lt;")
        yield f"| `{prefix}{field.name}` | {type_words(hint)} | {words} | {meaning} |"
    for child, path in nested:
        if isinstance(child, type) and path != "parts.":
            yield from ("", f"### `{path[:-1]}`", "", *option_table(child, path))


def option_tables() -> str:
    lines = ["### the training", "", *option_table(TrainConfig, "")]
    for name, part in PARTS.items():
        lines += ["", f"### part `{name}`", "", f"`us.parts.{part.__name__}`; the paths are below the part's name.", ""]
        lines += option_table(part, "")
    return "\n".join(lines)


def test_the_option_tables_are_those_of_the_code() -> None:
    page = PAGES["configuration.md"]
    text = page.read_text()
    begin, end = "<!-- options:begin -->\n", "<!-- options:end -->"
    head, rest = text.split(begin)
    found, tail = rest.split(end)
    expected = f"\n{option_tables()}\n\n"
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(head + begin + expected + end + tail)
        return
    changed = "\n".join(difflib.unified_diff(found.splitlines(), expected.splitlines(), "docs", "code", lineterm=""))
    assert not changed, f"run UPDATE_DOCS=1 python -m pytest tests/test_docs.py\n{changed}"
