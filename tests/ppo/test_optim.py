"""The optimizer against torch.optim, its state, what it refuses, and that nothing else moves weights."""

from __future__ import annotations

import ast
import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import understudy
from understudy.core.schedules import Schedule
from understudy.ppo.optim import (
    Optimizer,
    OptimizerConfig,
    gradient_step,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def loss_of(net: nn.Module, step: int) -> Tensor:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(step))
    return (net(x) - x[:, :2]).square().mean() * (0.1 if step % 2 else 3.0)


RULES: dict[str, tuple[OptimizerConfig, Any]] = {
    "adam": (OptimizerConfig(learning_rate=0.01), lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-5)),
    "adam with decay": (
        OptimizerConfig(learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-8),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
    ),
    "adamw": (
        OptimizerConfig(kind="adamw", learning_rate=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, eps=1e-5),
    ),
    "sgd": (OptimizerConfig(kind="sgd", learning_rate=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd with momentum": (
        OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "rmsprop": (
        OptimizerConfig(kind="rmsprop", learning_rate=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-5),
    ),
    "rmsprop with everything": (
        OptimizerConfig(kind="rmsprop", learning_rate=0.01, momentum=0.9, weight_decay=0.1, alpha=0.9),
        lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-5, momentum=0.9, weight_decay=0.1, alpha=0.9),
    ),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("limit", [None, 0.5])
def test_moves_as_torch_does(name: str, limit: float | None) -> None:
    config, factory = RULES[name]
    ours, theirs = network(), network()
    optimizer = Optimizer(ours.parameters(), OptimizerConfig(**{**vars(config), "max_grad_norm": limit}))
    reference = factory(theirs.parameters())
    clipped = []
    for step in range(20):
        norm = gradient_step(optimizer, loss_of(ours, step))
        reference.zero_grad()
        loss_of(theirs, step).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit or math.inf)
        reference.step()
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-6)
        clipped.append(limit is not None and bool(expected > limit))
    assert len(set(clipped)) == (1 if limit is None else 2)  # some of the gradients were clipped, some were not
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_one_adam_step_by_hand() -> None:
    """g = (3, 4) is clipped from norm 5 to 1: (0.6, 0.8). Without bias m = g and v = g^2: p -= lr g / (|g| + eps)."""
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Optimizer([p], OptimizerConfig(learning_rate=0.1, eps=0.1, max_grad_norm=1.0))
    norm = gradient_step(optimizer, (p * torch.tensor([3.0, 4.0])).sum())
    assert float(norm) == 5.0
    expected = torch.tensor([1.0 - 0.1 * 0.6 / 0.7, 2.0 - 0.1 * 0.8 / 0.9])
    torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_two_sides_are_clipped_apart() -> None:
    """(3, 4) is clipped to (0.6, 0.8), (0.5) stays; together the norm 5.02 would scale both."""
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    config = OptimizerConfig(kind="sgd", learning_rate=1.0, max_grad_norm=1.0)
    for apart, expected in ((1, [-0.6, -0.8, -0.5]), (0, [-3 / 5.0249, -4 / 5.0249, -0.5 / 5.0249])):
        with torch.no_grad():
            p.zero_(), q.zero_()
        optimizer = Optimizer([p, q], config, apart=apart)
        norm = gradient_step(optimizer, (p * torch.tensor([3.0, 4.0])).sum() + 0.5 * q.sum())
        assert float(norm) == pytest.approx(25.25**0.5)
        torch.testing.assert_close(torch.cat((p, q)).detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- parameters


def test_parameters_are_views_of_one_vector_and_stay_modules() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = Optimizer(net.parameters())
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))
    assert {p.untyped_storage().data_ptr() for p in net.parameters()} == {optimizer.flat.untyped_storage().data_ptr()}
    other = network(1)
    net.load_state_dict(other.state_dict())
    starts = [p.storage_offset() for p in net.parameters()]
    assert starts == [0, 16, 32, 48]  # whole blocks of 64 bytes: 15, 5, 10 and 2 numbers
    for p, q in zip(net.parameters(), other.parameters()):
        assert torch.equal(optimizer.flat[p.storage_offset() :][: p.numel()], q.detach().flatten())
    gradient_step(optimizer, loss_of(net, 0))
    between = torch.ones(64, dtype=torch.bool)
    for p in net.parameters():
        between[p.storage_offset() : p.storage_offset() + p.numel()] = False
        assert not torch.equal(optimizer.flat[p.storage_offset() :][: p.numel()], torch.zeros(p.numel()))
    assert (optimizer.flat[between] == 0).all()
    copied = copy.deepcopy(net)
    gradient_step(optimizer, loss_of(net, 1))
    assert not torch.equal(next(net.parameters()), next(copied.parameters()))


def test_shared_parameters_count_once() -> None:
    tied = nn.Linear(3, 3, bias=False)
    plain = copy.deepcopy(tied)
    optimizer = Optimizer(
        [*tied.parameters(), *tied.parameters(), nn.Parameter(torch.zeros(()))], OptimizerConfig(kind="sgd")
    )
    assert optimizer.flat.numel() == 32  # a block for 9 numbers, and a 0-D parameter has its place, too
    x = torch.ones(2, 3)
    gradient_step(optimizer, tied(tied(x)).sum())
    reference = torch.optim.SGD(plain.parameters(), lr=3e-4)
    plain(plain(x)).sum().backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    reference.step()
    torch.testing.assert_close(tied.weight, plain.weight)


def test_a_parameter_outside_the_loss_does_not_move() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Optimizer([used, unused])
    gradient_step(optimizer, used.sum())
    gradient_step(optimizer, used.sum())
    assert torch.equal(unused.detach(), torch.ones(2))
    assert not torch.equal(used.detach(), torch.ones(2))


def test_no_parameters_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        Optimizer([])


@pytest.mark.parametrize("kind", ["adam", "sgd", "rmsprop"])
def test_state_comes_back(kind: Any) -> None:
    config = OptimizerConfig(kind=kind, momentum=0.9, learning_rate=0.01)
    straight, stopped, resumed = network(), network(), network(1)
    one, two, three = (Optimizer(net.parameters(), config) for net in (straight, stopped, resumed))
    for step in range(3):
        gradient_step(one, loss_of(straight, step))
        gradient_step(two, loss_of(stopped, step))
    two.learning_rate.value.fill_(0.02)  # as an adaptive schedule does
    one.learning_rate.value.fill_(0.02)
    resumed.load_state_dict(stopped.state_dict())
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    for step in range(3, 6):
        gradient_step(one, loss_of(straight, step))
        gradient_step(three, loss_of(resumed, step))
    assert torch.equal(one.flat, three.flat)
    assert three.learning_rate.value == torch.tensor(0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "rmsprop"])
def test_a_non_finite_gradient_skips_the_step_and_is_counted(kind: Any, bad: float) -> None:
    net = network()
    optimizer = Optimizer(net.parameters(), OptimizerConfig(kind=kind, momentum=0.9, weight_decay=0.1))
    gradient_step(optimizer, loss_of(net, 0))
    before = {name: x.clone() for name, x in optimizer.state_dict().items()}
    flat = optimizer.flat.clone()
    gradient_step(optimizer, loss_of(net, 1) + next(net.parameters())[2, 1] * bad)
    assert torch.equal(optimizer.flat, flat)
    assert optimizer.skipped == 1.0
    for name, x in optimizer.state_dict().items():
        assert name == "skipped" or torch.equal(x, before[name]), name
    gradient_step(optimizer, loss_of(net, 2))
    assert torch.isfinite(optimizer.flat).all()
    assert not torch.equal(optimizer.flat, flat)


def test_a_stop_leaves_everything_as_it_is() -> None:
    net = network()
    optimizer = Optimizer(net.parameters())
    flat = optimizer.flat.clone()
    gradient_step(optimizer, loss_of(net, 0), stop=torch.tensor(True))
    assert torch.equal(optimizer.flat, flat)
    assert optimizer.steps == 0.0
    assert optimizer.skipped == 0.0
    gradient_step(optimizer, loss_of(net, 0), stop=torch.tensor(False))
    assert not torch.equal(optimizer.flat, flat)


def test_gradients_may_be_filled_by_hand() -> None:
    p = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    optimizer = Optimizer([p], OptimizerConfig(kind="sgd", learning_rate=0.5, max_grad_norm=None))
    optimizer.grads[0].copy_(torch.tensor([[0.2, -0.4]]))
    norm = gradient_step(optimizer)
    torch.testing.assert_close(norm, torch.tensor(math.sqrt(0.2)))
    torch.testing.assert_close(p.detach(), torch.tensor([[0.9, 2.2]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adm"}, "optimizer.kind must be one of adam, adamw, sgd, rmsprop .did you mean adam"),
        ({"learning_rate": -1e-3}, r"learning_rate must lie in \[0, 1\]"),
        ({"learning_rate": math.nan}, "learning_rate must be finite"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be greater than 0"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 0.99999\]"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\)"),
        ({"eps": -1.0}, r"eps must lie in \[1e-12, 1\]"),
        ({"weight_decay": -0.1}, r"weight_decay must lie in \[0, 1\]"),
        ({"momentum": -0.1}, r"momentum must lie in \[0, 1\)"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


# ---------------------------------------------------------------------- learning rates


def test_the_learning_rate_is_a_schedule_of_its_own() -> None:
    p = nn.Parameter(torch.tensor(1.0))
    rate = Schedule.parse("linear:0.4:0:4it")
    optimizer = Optimizer([p], OptimizerConfig(kind="sgd", learning_rate=rate, max_grad_norm=None))
    for iteration in range(4):
        optimizer.learning_rate.advance(0, iteration, 1, 1)
        gradient_step(optimizer, p)
    torch.testing.assert_close(p.detach(), torch.tensor(1.0 - 0.4 - 0.3 - 0.2 - 0.1))


# ---------------------------------------------------------------------- the only place


def test_nothing_else_in_the_library_steps_an_optimizer() -> None:
    """No `.backward()` but in optim.py, no `torch.optim` but there and for a scheduler's stand-in, `move` once."""
    root = Path(understudy.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                if node.attr in ("backward", "zero_grad"):
                    found.append(f"{name}: .{node.attr}")
                if node.attr == "optim" and isinstance(node.value, ast.Name) and node.value.id == "torch":
                    found.append(f"{name}: torch.optim")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "move":
                found.append(f"{name}: .move()")
    # in Tianshou's words the optimizer is the user's
    theirs = ("ppo/optim.py", "interop/tianshou/")
    assert {line for line in found if not line.startswith(theirs)} == {"ppo/lr_scheduler.py: torch.optim"}
    assert found.count("ppo/optim.py: .move()") == 2  # a CPU's and an accelerator's
