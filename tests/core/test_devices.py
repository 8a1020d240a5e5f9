from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from understudy.core.devices import denormals_flushed
from understudy.ppo.ppo import PPO


def flushing() -> bool:
    return not bool(torch.full((1,), 1e-30).mul(1e-9).any())


@pytest.fixture(autouse=True)
def _not_flushing() -> None:
    torch.set_flush_denormal(False)


def test_they_are_zero_inside_and_numbers_outside() -> None:
    with denormals_flushed():
        assert flushing()
        assert torch.full((1,), 1e-37).mul(1.0).item() > 0.0  # a normal float stays
    assert not flushing()


def test_a_setting_of_the_caller_stays() -> None:
    torch.set_flush_denormal(True)
    with denormals_flushed():
        pass
    assert flushing()
    torch.set_flush_denormal(False)


def test_an_error_restores() -> None:
    with pytest.raises(KeyError), denormals_flushed():
        raise KeyError
    assert not flushing()


def test_an_iteration_flushes(make_ppo: Callable[..., PPO], scripted_env: type[Any], monkeypatch: Any) -> None:
    ppo = make_ppo(scripted_env())
    seen = []
    loss = ppo.loss_and_gradient
    monkeypatch.setattr(ppo, "loss_and_gradient", lambda batch: (seen.append(flushing()), loss(batch))[1])
    ppo.iterate()
    assert seen
    assert all(seen)
    assert not flushing()
