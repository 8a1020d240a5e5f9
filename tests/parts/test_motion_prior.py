"""Motion prior: windows, rewards and masks by hand, one normaliser for both sides, and that it learns a motion."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tests.parts.harness import context_of
from torch import Tensor

from understudy.data.motions.files import MotionClip, write_motions
from understudy.data.motions.library import MotionsConfig
from understudy.envs.base import Step
from understudy.nn.heads import DistributionConfig
from understudy.nn.policy import ActorCritic, PolicyConfig
from understudy.parts.motion_prior import MotionPrior, MotionPriorConfig, frame_windows, tracking_reward
from understudy.parts.shared.discriminator import DiscriminatorConfig, discriminator_loss
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartContext
from understudy.ppo.ppo import PPO

T, N = 6, 2
SMALL = DiscriminatorConfig(hidden_sizes=(8,), disc_update_num=2, loss="least_squares")
SPACE = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (2,), np.float32)})


class Swing:
    """A `VecEnv` of pendulums without gravity: position and velocity, the action is the velocity; episodes of 20 steps.

    Where an episode ends, `final_obs` is its last observation and `obs` the next one's first.
    """

    def __init__(self, num_envs: int, steps: int = 20) -> None:
        self.num_envs, self.device, self.length = num_envs, torch.device("cpu"), steps
        self.observation_space = SPACE
        self.action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.generator = torch.Generator()

    def reset(self, seed: int | None = None) -> TensorDict:
        self.generator.manual_seed(seed or 0)
        self.position = torch.rand(self.num_envs, generator=self.generator) * 2.0 - 1.0
        self.velocity = torch.zeros(self.num_envs)
        self.steps = torch.arange(self.num_envs) % self.length
        return self._obs()

    def step(self, action: Tensor) -> Step:
        self.velocity = action.squeeze(-1)
        self.position = (self.position + 0.1 * self.velocity).clamp(-2.0, 2.0)
        self.steps = self.steps + 1
        final, ended = self._obs(), self.steps >= self.length
        fresh = torch.rand(self.num_envs, generator=self.generator) * 2.0 - 1.0
        self.position = torch.where(ended, fresh, self.position)
        self.velocity = torch.where(ended, 0.0, self.velocity)
        self.steps = torch.where(ended, 0, self.steps)
        never = torch.zeros_like(ended)
        return Step(self._obs(), torch.zeros(self.num_envs), never, ended, final, {})

    def close(self) -> None:
        pass

    def _obs(self) -> TensorDict:
        return TensorDict({"policy": torch.stack((self.position, self.velocity), -1)}, batch_size=[self.num_envs])


@pytest.fixture
def clips(tmp_path: Path) -> str:
    """A motion that always moves up at 0.5."""
    t = np.arange(21) * 0.1
    frames = np.stack((-1.0 + 0.5 * t, 0.5 + 0 * t), axis=1)
    clip = MotionClip(name="up", fields=("policy[0]", "policy[1]"), frames=frames, frame_time=0.1)
    return str(write_motions(tmp_path / "up.npz", [clip]))


def swing_context(num_envs: int = N, num_steps: int = T, space: spaces.Dict = SPACE) -> PartContext:
    env = Swing(1)
    policy = ActorCritic(env.observation_space, env.action_space, PolicyConfig(hidden_sizes=(8,)))
    return context_of(space, env.action_space, policy, num_envs, name="motion", num_steps=num_steps)


def build(clips: str, context: PartContext | None = None, **options: Any) -> MotionPrior:
    torch.manual_seed(0)
    settings = {"motions": MotionsConfig(files=(clips,)), "step_time": 0.1, "discriminator": SMALL, **options}
    return MotionPriorConfig(**settings).build(context or swing_context())


def rollout_of(obs: Tensor, **flags: Tensor) -> TensorDict:
    """A rollout from features `[T + 1, N, D]` of one unbroken motion."""
    steps, envs = len(obs) - 1, obs.shape[1]
    no = torch.zeros(steps, envs, dtype=torch.bool)
    columns = {"terminated": no, "truncated": no, "is_first": no, "valid": ~no, **flags}
    data = TensorDict({**columns, "task_reward": torch.zeros(steps, envs)}, batch_size=[steps, envs])
    data["obs"] = TensorDict({"policy": obs[:-1]}, batch_size=[steps, envs])
    data["next_obs"] = TensorDict({"policy": obs[1:]}, batch_size=[steps, envs])
    return data


def counting(steps: int = T) -> Tensor:
    """Features `[steps + 1, N, 2]`: frame t of environment n is (t, 100 n + t)."""
    t = torch.arange(steps + 1.0)
    return torch.stack((t.unsqueeze(-1).expand(-1, N), t.unsqueeze(-1) + 100.0 * torch.arange(N)), dim=-1)


# ------------------------------------------------------------------------------------------------------ windows


def test_windows_by_hand() -> None:
    x = torch.arange(5.0).view(5, 1, 1)  # frames 0 .. 4; 0 and 1 are of the rollout before, H = 4
    valid, first = torch.ones(5, 1, dtype=torch.bool), torch.zeros(5, 1, dtype=torch.bool)
    following = x[2:] + 1.0
    windows, whole = frame_windows(x, following, valid, first, 4)
    assert windows.flatten(-3).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert whole.all()
    first[3] = True  # an episode began at frame 3: the windows that begin before it and go past it are broken
    assert frame_windows(x, following, valid, first, 4)[1].flatten().tolist() == [True, False, False]
    first[3], valid[1] = False, False
    assert frame_windows(x, following, valid, first, 4)[1].flatten().tolist() == [False, False, True]
    two, whole = frame_windows(x[2:], following, valid[2:], ~first[2:], 2)  # H = 2 spans one transition: always whole
    assert two.flatten(-3).tolist() == [[2, 3], [3, 4], [4, 5]]
    assert whole.all()
    one, _ = frame_windows(x[2:], following, valid[2:], first[2:], 1)
    assert one.flatten().tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="need 2 frames of history"):
        frame_windows(x[1:], following, valid[1:], first[1:], 4)


def test_windows_reach_into_the_rollout_before_and_never_across_episodes(clips: str) -> None:
    part = build(clips, frames=3)
    obs = counting(2 * T)
    part.update(None, rollout_of(obs[: T + 1]))  # type: ignore[arg-type]
    first = torch.zeros(T, N, dtype=torch.bool)
    first[3, 1] = True
    ended = torch.zeros(T, N, dtype=torch.bool)
    ended[2, 1] = True
    rows, whole = part._rows(rollout_of(obs[T:], is_first=first, truncated=ended))
    assert rows[0, 0].tolist() == [5, 5, 6, 6, 7, 7]  # frames 5, 6 and the next, 7
    assert rows[0, 1].tolist() == [5, 105, 6, 106, 7, 107]
    assert whole[:, 0].all()
    # step 2 ends the episode, step 3 has no frame before the episode's first
    assert whole[:, 1].tolist() == [True, True, False, False, True, True]
    assert (rows[2:4, 1] == 0.0).all()


def test_nothing_is_known_before_the_first_rollout(clips: str) -> None:
    _, whole = build(clips, frames=4)._rows(rollout_of(counting()))
    assert whole[:, 0].tolist() == [False, False, True, True, True, True]


def test_ending_steps_are_left_out_or_judged_by_terminal_features(clips: str) -> None:
    ended = torch.zeros(T, N, dtype=torch.bool)
    ended[1, 0] = True
    for flag in ("terminated", "truncated"):
        rollout = rollout_of(counting(), **{flag: ended})
        left_out, judged = build(clips), build(clips, ending_steps="terminal")
        assert torch.equal(left_out._rows(rollout)[1], ~ended)
        assert left_out.reward(rollout)[1, 0] == 0.0
        rows, whole = judged._rows(rollout)
        assert whole.all()
        assert rows[1, 0].tolist() == [1, 1, 2, 2]  # the true last observation, not the next episode's first


def test_rows_left_out_may_hold_anything(clips: str) -> None:
    part = build(clips)
    obs, valid = counting(), torch.ones(T, N, dtype=torch.bool)
    obs[3, 1] = math.nan
    valid[2:4, 1] = False
    rollout = rollout_of(obs, valid=valid)
    assert torch.isfinite(part.reward(rollout)).all()
    assert all(torch.isfinite(x) for x in part.update(None, rollout).values())  # type: ignore[arg-type]


def test_an_experts_steps_are_rewarded_but_not_shown_as_the_policys(clips: str) -> None:
    part = build(clips)
    rollout = rollout_of(counting())
    rollout["on_policy"] = torch.zeros(T, N, dtype=torch.bool)
    assert (part.reward(rollout) != 0.0).any()
    assert part.update(None, rollout)["logit_pi"] == 0.0  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize(
    ("form", "scaled", "expected"),
    [
        ("least_squares", False, 1.0 - 0.25 * (0.5 - 1.0) ** 2),
        ("least_squares", True, 0.1 * (1.0 - 0.25 * (0.5 - 1.0) ** 2)),
        ("softplus", False, math.log(1.0 + math.exp(0.5))),
    ],
)
def test_the_style_reward_by_hand(clips: str, form: str, scaled: bool, expected: float) -> None:
    part = build(clips, reward_form=form, scale_by_step_time=scaled)
    with torch.no_grad():
        for p in part.discriminator.network.parameters():
            p.zero_()
        part.discriminator.outputs[0].bias.fill_(0.5)  # every score is 0.5
    torch.testing.assert_close(part.reward(rollout_of(counting())), torch.full((T, N), expected))


def test_tracking_by_hand() -> None:
    error = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([math.exp(-12.5 / 4.0), 1.0], dtype=torch.float64)
    torch.testing.assert_close(tracking_reward(error, "exp", 2.0), expected, rtol=1e-12, atol=0.0)
    expected = torch.tensor([-2.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tracking_reward(error, "distance", 2.0), expected, rtol=1e-12, atol=0.0)


def test_tracking_is_a_reward_for_being_where_the_reference_is(clips: str) -> None:
    space = spaces.Dict({**SPACE.spaces, "reference": SPACE["policy"]})
    options = {"tracking_observations": ("reference",), "tracking_weight": 2.0, "tracking_form": "distance"}
    part = build(clips, swing_context(space=space), tracking_scale=1.0, **options)
    rollout = rollout_of(counting())
    reference = rollout["next_obs", "policy"].clone()
    reference[2, 0, 0] += 3.0
    rollout["next_obs", "reference"] = reference
    tracking = part._tracking(rollout)
    assert tracking[2, 0].item() == pytest.approx(-3.0 * part.normalizer.scale[0].item(), rel=1e-5)
    assert tracking.count_nonzero() == 1
    style = build(clips, swing_context(space=space)).reward(rollout)
    torch.testing.assert_close(part.reward(rollout), style + 2.0 * tracking)
    assert part.update(None, rollout)["tracking_reward"] == tracking.mean()  # type: ignore[arg-type]


def test_weights_make_the_lerp(clips: str) -> None:
    """ppo.reward_weight l and reward_weight 1 - l: r = (1 - l) style + l task."""
    env = Swing(N)
    step = env.step
    env.step = lambda action: step(action)._replace(reward=torch.full((N,), 2.0))  # type: ignore[method-assign]
    policy = ActorCritic(env.observation_space, env.action_space, PolicyConfig(hidden_sizes=(8,)))
    part = build(clips, reward_weight=0.7)
    styles = []
    own_reward = part.reward
    part.reward = lambda rollout: styles.append(own_reward(rollout)) or styles[-1]  # type: ignore[assignment, func-returns-value]
    ppo = PPO(env, policy, PPOConfig(num_steps=T, minibatches=1, reward_weight=0.3), {"motion": part}, total_steps=100)
    ppo.iterate()
    torch.testing.assert_close(ppo.collector.data["reward"], 0.7 * styles[0] + 0.3 * 2.0)


# -------------------------------------------------------------------------------------------------- normalising


def test_one_normalizer_keeps_the_gap_that_two_lose(clips: str) -> None:
    """Clips ~ N(1, 0.3), policy ~ N(-0.5, 1): whitened apart their means agree, through one map they are far apart."""
    generator = torch.Generator().manual_seed(0)
    expert, policy = (m + s * torch.randn(4096, 2, generator=generator) for m, s in ((1.0, 0.3), (-0.5, 1.0)))
    apart = [(x - x.mean(0)) / x.std(0) for x in (expert, policy)]
    assert (apart[0].mean(0) - apart[1].mean(0)).abs().max() < 1e-5
    part = build(clips)
    part.normalizer.count.zero_()
    part.normalizer.update(expert)
    part.normalizer.update(policy)
    ours = [part._normalize(torch.cat((x, x), dim=-1)) for x in (expert, policy)]
    gap = ours[0].mean(0) - ours[1].mean(0)
    assert gap.min() > 1.4  # 1.5 / sqrt(0.75^2 + (0.09 + 1) / 2), the spread of both together: 1.43
    # and a discriminator of means alone: useless in the first case, right in the second
    scores = [(x[:, 0], y[:, 0]) for x, y in (apart, ours)]
    blind, seeing = (
        discriminator_loss(y - (x.mean() + y.mean()) / 2, x - (x.mean() + y.mean()) / 2) for x, y in scores
    )
    assert seeing < blind - 0.3


def test_the_normalizer_is_frozen_while_it_scores_and_moves_once_an_update(clips: str) -> None:
    part = build(clips)
    rollout = rollout_of(counting())
    before = part.normalizer.shift.clone()
    count = part.normalizer.count.item()
    part.reward(rollout)
    assert torch.equal(part.normalizer.shift, before)
    seen: list[Tensor] = []
    fit = part.discriminator.fit

    def spy(*args: Any) -> Any:
        seen.append(part.normalizer.shift.clone())
        return fit(*args)

    part.discriminator.fit = spy  # type: ignore[method-assign]
    part.update(None, rollout)  # type: ignore[arg-type]
    assert torch.equal(seen[0], before)
    assert not torch.equal(part.normalizer.shift, before)
    assert part.normalizer.count.item() == count + T * N + part.discriminator.num_expert_rows * 2


# ------------------------------------------------------------------------------------------------ health, errors


def test_saturation_is_measured_and_reported(clips: str, caplog: pytest.LogCaptureFixture) -> None:
    part = build(clips)
    rollout = rollout_of(counting())
    with torch.no_grad():
        for p in part.discriminator.network.parameters():
            p.zero_()
        part.discriminator.outputs[0].bias.fill_(-1.0)
    part.discriminator.fit = lambda *args: {}  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        for _ in range(60):
            part.reward(rollout)
            metrics = part.update(None, rollout)  # type: ignore[arg-type]
    assert metrics["saturated"] == 1.0
    assert metrics["style_reward"] == 0.0
    assert sum("is saturated" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"motions": MotionsConfig()}, "name motion files in parts.motion.motions.files"),
        ({"fields": ("policy[0]",)}, r"1 fields for 2 style features: name one for each of policy\[0\]"),
        ({"fields": ("policy[0]", "polcy[1]")}, r"did you mean policy\[1\]"),
        ({"columns": (0, 2)}, "columns names 2, but the observations have columns 0 to 1"),
        ({"frames": 30}, "shorter than the window of 30 frames"),
        ({"frames": 0}, "at least 1"),
        ({"step_time": 0.0}, "step_time must be at least 0.0001"),
        ({"ending_steps": "terminals"}, "did you mean terminal"),
        ({"observations": ("polcy",)}, "policy"),
        ({"tracking_weight": 1.0}, "name the reference's observations"),
    ],
)
def test_bad_options_are_refused(clips: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(clips, **options)


def test_chosen_columns_are_compared_with_the_fields_named_for_them(clips: str) -> None:
    part = build(clips, columns=(1,), fields=("policy[0]",), frames=1)
    assert part.library.fields == ("policy[0]",)
    assert part._rows(rollout_of(counting()))[0][0].tolist() == [[1.0], [101.0]]


# ------------------------------------------------------------------------------------------- the simulator's expert

REFERENCE = spaces.Dict(
    {
        "policy": SPACE["policy"],
        "ref_obs": spaces.Box(-np.inf, np.inf, (2, 1), np.float32),  # two frames of one feature
        "ref_motion": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    }
)
WINDOWS = {"observations": ("ref_obs",), "expert_observations": ("ref_motion",), "frames": 1}


def with_reference(**flags: Tensor) -> TensorDict:
    """Step t of environment n: the robot shows (t, t), its reference (100 n + t, -1)."""
    rollout = rollout_of(counting(), **flags)
    t = torch.arange(T + 1.0).view(-1, 1).expand(-1, N)
    own, reference = torch.stack((t, t), -1).unsqueeze(-1), torch.stack((t + 100.0 * torch.arange(N), -t / t), -1)
    for key, steps in (("obs", slice(0, T)), ("next_obs", slice(1, T + 1))):
        rollout[key, "ref_obs"], rollout[key, "ref_motion"] = own[steps], reference.nan_to_num(-1.0)[steps]
    return rollout


def test_the_expert_is_what_the_simulator_shows_at_the_steps_that_count() -> None:
    context = swing_context(space=REFERENCE)
    part = MotionPriorConfig(discriminator=SMALL, **WINDOWS).build(context)
    ended = torch.zeros(T, N, dtype=torch.bool)
    ended[2] = ended[:, 1] = True  # environment 1, and time 2: next observations 1, 2, 4, 5, 6 of environment 0 remain
    rollout = with_reference(terminated=ended)
    rows, whole = part._rows(rollout)
    drawn = part._expert_rows(rollout, whole)
    assert drawn.shape == (part.discriminator.num_expert_rows, 1, 2)
    assert {tuple(x) for x in drawn.flatten(1).tolist()} == {(t, -1.0) for t in (1.0, 2.0, 4.0, 5.0, 6.0)}
    assert rows[0, 0].tolist() == [1.0, 1.0]
    assert part.normalizer.fresh
    reward = part.reward(rollout)
    assert reward[ended].abs().max() == 0.0
    assert reward[~ended].max() > 0.0
    assert not part.normalizer.fresh
    metrics = part.update(None, rollout)  # type: ignore[arg-type]
    torch.testing.assert_close(metrics["loss"], metrics["loss_pi"] + metrics["loss_exp"])
    nothing = part._expert_rows(rollout, torch.zeros_like(whole))
    assert nothing.isfinite().all()  # a rollout of ends: nobody learns from these rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 2}, "hold whole windows of the expert: set frames=1"),
        ({"motions": MotionsConfig(files=("clip.npz",))}, "leave fields and motions.files out"),
        ({"expert_observations": ("policy", "ref_motion")}, "expert_observations have 4 columns, the style features 2"),
        ({"expert_observations": ("ref_motions",)}, "did you mean ref_motion"),
    ],
)
def test_a_wrong_expert_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionPriorConfig(**{**WINDOWS, **options}).build(swing_context(space=REFERENCE))


# ----------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("loss", ["least_squares", "bce"])
def test_it_learns_to_move_like_the_clips(clips: str, loss: str) -> None:
    """Without a task reward, the velocity of a policy that knows nothing becomes the clips' 0.5."""
    torch.manual_seed(0)
    env = Swing(32)
    policy = ActorCritic(
        env.observation_space,
        env.action_space,
        PolicyConfig(hidden_sizes=(32,), distribution=DistributionConfig(init_std=0.5)),
    )
    part = build(
        clips,
        swing_context(32, 32),
        columns=(1,),
        reward_form="least_squares" if loss == "least_squares" else "softplus",
        discriminator=DiscriminatorConfig(
            hidden_sizes=(32,),
            loss=loss,  # type: ignore[arg-type]
            disc_update_num=8,
            gradient_penalty=0.3,
            penalty_on="both",
            replay_size=4096,
            optimizer=OptimizerConfig(learning_rate=3e-3),
        ),
    )
    config = PPOConfig(
        num_steps=32,
        epochs=4,
        minibatches=2,
        gamma=0.9,
        reward_weight=0.0,
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    ppo = PPO(env, policy, config, {"motion": part}, total_steps=100_000)
    velocities = []
    for _ in range(30):
        ppo.iterate()
        velocities.append(ppo.collector.data["executed_action"].mean().item())
    # the two sides overshoot one another in turn
    assert sum(velocities[-8:]) / 8 == pytest.approx(0.5, abs=0.1)
    assert ppo.collector.data["executed_action"].std() < 0.3
