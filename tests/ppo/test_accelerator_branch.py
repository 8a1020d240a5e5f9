"""The branch that an accelerator takes, on a CPU that pretends to be one: the same training, two host syncs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from understudy.core import devices
from understudy.envs.base import Step
from understudy.parts import MirrorSpec, RandomNetworkDistillationConfig, SymmetryConfig
from understudy.ppo.optim import OptimizerConfig, gradient_step
from understudy.ppo.part import Part, PartContext, Rewards
from understudy.tasks.point_mass import PointMass

aten = torch.ops.aten
N = 8


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it: from there on, whatever is built believes that reading a number is expensive."""
    return lambda: monkeypatch.setattr(devices, "host_is_device", lambda device: False)


class HostReads:
    """Counts what would wait for an accelerator: numbers read, shapes that depend on values, copies to the host."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.on_host: dict[int, Tensor] = {}  # what was copied there, and what was made of it: free to read

    def __enter__(self) -> HostReads:
        reads, quiet = self, [False]

        class Below(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if not quiet[0]:
                    reads.found.extend(_waits(func, args))
                return func(*args, **(kwargs or {}))

        class Above(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                free = any(id(x) in reads.on_host for x in tree_leaves((args, kwargs)))
                if not free and func in _UNSEEN:
                    reads.found.append(func.__name__)
                quiet[0] = free
                result = func(*args, **(kwargs or {}))
                quiet[0] = False
                if free or func is Tensor.cpu:
                    reads.on_host |= {id(x): x for x in tree_leaves(result) if isinstance(x, Tensor)}
                return result

        self.modes = (Above(), Below())
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


_UNSEEN = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__)  # no dispatcher sees these


def _waits(func: Any, args: Any) -> list[str]:
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        return [f"{func} by a mask" for x in args[1] if x is not None and x.dtype == torch.bool]
    waits = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
    return [str(func)] if waits else []


def with_parts(make_ppo: Any, names: tuple[str, ...], **options: Any) -> Any:
    """PointMass with the registered parts in `names`."""
    env = PointMass(N, max_episode_steps=7)
    mirror = MirrorSpec(permutation=(0, 1, 2, 3), sign=(1.0, -1.0, 1.0, -1.0))
    wide = MirrorSpec(permutation=(0, 1, 2, 3, 4, 5), sign=(1.0, -1.0) * 3)
    action = MirrorSpec(permutation=(0, 1), sign=(1.0, -1.0))
    builders: dict[str, Any] = {
        "rnd": RandomNetworkDistillationConfig(num_outputs=4, predictor_hidden_sizes=(8,)).build,
        "symmetry": SymmetryConfig(
            observations={"policy": mirror, "critic": wide}, action=action, augmentation_coef=0.5
        ).build,
        "reads": Reads,
    }
    plain = make_ppo(env, **options)  # only for its policy: parts look at its head
    steps = plain.config.num_steps
    contexts = {name: PartContext.of(env, plain.policy, name=name, num_steps=steps, seed=1) for name in names}
    parts = {name: builders[name](context) for name, context in contexts.items()}
    return make_ppo(PointMass(N, max_episode_steps=7), parts=parts, **options)


class Reads(Part, Rewards):
    """A part that waits for the device."""

    @property
    def reward_weight(self) -> Tensor:
        return torch.tensor(1.0)

    def reward(self, rollout: TensorDict) -> Tensor:
        return rollout["task_reward"] * rollout["task_reward"].mean().item()


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {"warmup_steps": 4},
    "kl": {"desired_kl": 0.01, "target_kl": 0.002, "value_clip": 0.2, "entropy_coef": 0.01, "dual_clip": 3.0},
    "normalised": {"reward_normalization": True, "value_normalization": "standardize", "recompute_advantage": True},
    "sgd": {"optimizer": OptimizerConfig(kind="sgd", momentum=0.9, learning_rate=0.1), "target_kl": 0.002},
    "rmsprop": {"optimizer": OptimizerConfig(kind="rmsprop", momentum=0.9), "target_kl": 0.002},
}


@pytest.mark.parametrize(
    ("options", "memory", "parts"),
    [
        ("defaults", "none", ()),
        ("kl", "none", ()),
        ("normalised", "none", ()),
        ("sgd", "none", ()),
        ("rmsprop", "none", ()),
        ("defaults", "lstm", ()),
        ("kl", "lstm", ()),
        ("kl", "none", ("rnd",)),
        ("kl", "none", ("symmetry",)),
        ("kl", "none", ("rnd", "symmetry")),
        ("kl", "lstm", ("rnd",)),
    ],
)
def test_at_most_two_host_syncs_an_iteration(
    make_ppo: Any, accelerator: Any, options: str, memory: str, parts: tuple[str, ...]
) -> None:
    accelerator()
    ppo = with_parts(make_ppo, parts, policy={"memory": memory}, minibatches=2, **OPTIONS[options])
    ppo.iterate()  # records the programs
    for _ in range(2):
        with HostReads() as reads:
            ppo.iterate()
        assert len(reads.found) <= 2, reads.found
    assert torch.isfinite(ppo.optimizer.flat).all()


def test_a_part_that_reads_is_caught(make_ppo: Any, accelerator: Any) -> None:
    accelerator()
    ppo = with_parts(make_ppo, ("reads",))
    ppo.iterate()
    with HostReads() as reads:
        ppo.iterate()
    assert len(reads.found) == 3


@pytest.mark.parametrize(
    "name", ["item", "bool", "float", "cpu", "tolist", "numpy", "nonzero", "mask", "assign", "equal"]
)
def test_every_way_of_reading_is_counted(name: str) -> None:
    x = torch.arange(3.0)
    ways: dict[str, Callable[[], Any]] = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool((x > 0).any()),
        "float": lambda: float(x[0]),
        "cpu": x.cpu,
        "tolist": x.tolist,
        "numpy": x.numpy,
        "nonzero": x.nonzero,
        "mask": lambda: x[x > 0],
        "assign": lambda: x.__setitem__(x > 0, 1.0),
        "equal": lambda: torch.equal(x, x),
    }
    with HostReads() as reads:
        ways[name]()
    assert len(reads.found) == 1
    with HostReads() as reads:
        (x[torch.tensor([0, 1])] + torch.where(x > 0, x, 0.0).sum()).clone()
    assert reads.found == []


# ---------------------------------------------------------------------- the same training


def both_ways(build: Callable[[], Any], accelerator: Any, iterations: int = 3) -> tuple[Any, Any, dict, dict]:
    """A run as on a CPU and one as on an accelerator, with the metrics of their last iterations."""
    runs = []
    for i in range(2):
        if i:
            accelerator()
        torch.manual_seed(0)
        ppo = build()
        for _ in range(iterations):
            metrics = ppo.iterate()
        runs.append((ppo, {k: v for k, v in metrics.items() if not k.startswith("time/") and v == v}))
    (cpu, a), (fake, b) = runs
    return cpu, fake, a, b


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("options", OPTIONS)
def test_trains_to_the_same_weights(
    scripted_env: Any, make_ppo: Any, accelerator: Any, options: str, memory: str
) -> None:
    """Terminations and time limits everywhere, and for some of the options a stop in the middle of an iteration."""
    if memory == "lstm" and options == "normalised":
        pytest.skip("recompute_advantage needs a feed-forward policy")
    chosen = {"optimizer": OptimizerConfig(learning_rate=1e-2), **OPTIONS[options], "epochs": 4, "minibatches": 2}
    iterations = 1 if "target_kl" in chosen else 3  # a CPU that stops does not shuffle for the epochs left out
    cpu, fake, a, b = both_ways(
        lambda: make_ppo(scripted_env(4), policy={"memory": memory}, **chosen), accelerator, iterations
    )
    assert cpu.collector.host_is_device
    assert not fake.collector.host_is_device
    torch.testing.assert_close(fake.optimizer.flat, cpu.optimizer.flat, rtol=1e-4, atol=1e-5)
    assert a.keys() == b.keys()
    for name, number in a.items():
        assert b[name] == pytest.approx(number, rel=1e-2, abs=1e-4), name
    if "target_kl" in chosen:
        assert cpu.optimizer.steps < 4 * 2  # it did stop


def test_the_adaptive_rate_rests_after_a_stop(make_ppo: Any, accelerator: Any) -> None:
    options: dict[str, Any] = {"desired_kl": 1e-5, "target_kl": 1e-4, "epochs": 6, "minibatches": 4}
    options["optimizer"] = OptimizerConfig(learning_rate=1e-2)
    cpu, fake, a, b = both_ways(lambda: make_ppo(PointMass(N), **options), accelerator, iterations=1)
    assert cpu.optimizer.steps < 12
    assert fake.optimizer.steps == cpu.optimizer.steps
    assert float(fake.optimizer.learning_rate.value) == float(cpu.optimizer.learning_rate.value)
    assert a["ppo/kl"] == pytest.approx(b["ppo/kl"], rel=1e-4)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "rmsprop"])
def test_a_skipped_step_leaves_everything_as_it_is(
    scripted_env: Any, make_ppo: Any, accelerator: Any, kind: Any
) -> None:
    accelerator()
    ppo = make_ppo(scripted_env(4), optimizer=OptimizerConfig(kind=kind, momentum=0.9, weight_decay=0.1))
    ppo.iterate()
    optimizer = ppo.optimizer
    before = {name: x.clone() for name, x in optimizer.state_dict().items()}
    flat = optimizer.flat.clone()
    optimizer.grad.fill_(torch.nan)
    gradient_step(optimizer)
    optimizer.grad.fill_(1.0)
    gradient_step(optimizer, stop=torch.tensor(True))
    assert torch.equal(optimizer.flat, flat)
    after = optimizer.state_dict()
    assert after.pop("skipped") == before.pop("skipped") + 1
    for name, x in before.items():
        assert torch.equal(after[name], x), name
    gradient_step(optimizer, stop=torch.tensor(False))
    assert not torch.equal(optimizer.flat, flat)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_rows_that_did_not_end_may_hold_anything_in_their_final_observation(
    scripted_env: Any, make_ppo: Any, accelerator: Any, memory: str
) -> None:
    accelerator()

    def garbage(t: int, step: Step) -> Step:
        ended = (step.terminated | step.truncated).unsqueeze(-1)
        step.final_obs["policy"].masked_fill_(~ended, torch.nan)  # type: ignore[index]
        return step

    ppo = make_ppo(scripted_env(4, edit=garbage), policy={"memory": memory})
    for _ in range(2):
        metrics = ppo.iterate()
    assert ppo.last_report == ""
    assert metrics["ppo/skipped_steps"] == 0.0


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_without_final_observations_it_warns_once(
    scripted_env: Any, make_ppo: Any, accelerator: Any, memory: str
) -> None:
    accelerator()
    ppo = make_ppo(scripted_env(4, gives_final=False), policy={"memory": memory})
    with pytest.warns(UserWarning, match="does not give final observations"):
        ppo.iterate()
    ppo.iterate()
    data = ppo.collector.data
    rows = data["truncated"]
    assert rows.any()
    # the critic has moved since, but not its input: V(s_t) at a time limit
    assert torch.equal(data["next_value"][rows], data["value"][rows])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_real_accelerator_waits_twice(make_ppo: Any, memory: str) -> None:
    ppo = make_ppo(PointMass(N, device="cuda", max_episode_steps=7), policy={"memory": memory}, **OPTIONS["kl"])
    ppo.iterate()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as caught:
            ppo.iterate()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 2
    assert isinstance(ppo.policy, nn.Module)
