"""`from_config`: the configuration of an rsl_rl or st_rl training as a `TrainConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from understudy.core.check import In
from understudy.envs.registry import EnvConfig
from understudy.interop.rsl_rl.extensions import rnd, symmetry
from understudy.interop.rsl_rl.facts import Facts, ObservationSets
from understudy.interop.rsl_rl.networks import read_models, read_policy
from understudy.interop.rsl_rl.reading import Block, attempt
from understudy.interop.rsl_rl.st_rl import ALGORITHMS, add_parts
from understudy.nn.protocol import PolicyConfig
from understudy.parts.teacher import TeacherConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.optim import OptimizerConfig
from understudy.ppo.part import PartConfig
from understudy.runs.config import CheckpointConfig, LoggingConfig, TrainConfig

_IGNORED = (
    *("device", "class_name", "runner_class_name", "experiment_name", "run_name", "resume", "load_run"),
    *("load_checkpoint", "checkpoint", "resume_path", "clip_actions", "upload_model", "wandb_tags", "multi_gpu"),
    *("neptune_project", "log_interval", "inference_mode_rollout", "storage", "init_member_classes", "use_wandb"),
)
"""What belongs to the script, to the simulator's wrapper, or to where files lie."""


def from_config(
    train_cfg: Any,
    *,
    env: Any = None,
    env_id: str = "simulator",
    num_envs: int | None = None,
    teachers: tuple[str, ...] = (),
) -> TrainConfig:
    """The training that a configuration of rsl_rl (2 to 5) or st_rl describes: a dict or a dataclass, left as it is.

    Initialisation, optimizer, clipping and defaults are the origin's; docs/coming-from.md lists what differs. `env`,
    the environment that it will train in, tells the number of copies, the observation groups, the step's time and
    what a symmetry function does; without it `num_envs` is 4096 unless given. `env_id` names it in the run, and
    builds it where no object is given. `teachers` are checkpoints, in place of `teacher_ac_path`.

    Raises ValueError with one sentence for every key that is unknown (with the nearest known one), that has a value of
    the wrong kind, or that cannot be expressed.
    """
    problems: list[str] = []
    facts = Facts.of(env, num_envs, problems)
    runner = Block(train_cfg, "", problems)
    runner.merge("runner")
    algorithm = runner.block("algorithm") or Block({}, "algorithm.", problems)
    algorithm.merge("ppo")
    name = algorithm.class_name(runner.take("algorithm_class_name", str, "PPO"), (*ALGORITHMS, "Distillation"))
    policy = runner.block("policy")
    sets = ObservationSets.read(runner, facts)
    recent = policy is None or sets.given or any(key.endswith("_obs_normalization") for key in policy.left)
    num_steps = runner.take("num_steps_per_env", int, 24)
    parts: dict[str, PartConfig] = {}

    if policy is None:
        networks = read_models(runner, name == "Distillation")
    else:
        runner.ignore("actor", "critic")
        default = runner.take("policy_class_name", str, "StudentTeacher" if name == "Distillation" else "ActorCritic")
        networks = read_policy(policy, default, normalized=_normalized(runner, algorithm))
    if name == "Distillation":
        ppo, parts["teacher"] = _distillation(algorithm, num_steps, sets, facts, teachers)
    else:
        ppo = _ppo(algorithm, num_steps, recent=recent, apart=policy is None)
        ppo = symmetry(algorithm, ppo, facts, sets, parts)
        rnd(algorithm, ppo, facts, sets, parts)
        networks = dataclasses.replace(networks, actor_groups=sets.actor, critic_groups=sets.critic)
        st_rl = Block({}, "policy.", problems) if policy is None else policy
        ppo, networks = add_parts(name, algorithm, st_rl, ppo, networks, sets, facts, teachers, parts)
    algorithm.ignore("device")
    config = _train_config(runner, name, ppo, networks, parts, sets, facts, env_id)
    for block in (runner, algorithm, *([] if policy is None else [policy])):
        block.close()
    if problems:
        raise ValueError("this configuration cannot become a TrainConfig: " + "; ".join(dict.fromkeys(problems)))
    return config


def _train_config(
    runner: Block,
    name: str,
    ppo: PPOConfig,
    networks: PolicyConfig,
    parts: dict[str, PartConfig],
    sets: ObservationSets,
    facts: Facts,
    env_id: str,
) -> TrainConfig:
    """All of it, with the runner's own keys."""
    steps = ppo.num_steps * facts.num_envs
    if "max_iterations" not in runner:
        runner.problems.append("max_iterations is missing: say how many iterations to train")
    iterations = runner.take("max_iterations", Annotated[int, In(1)], 1)
    runner.ignore("check_for_nan")  # looked for in any case
    runner.refuse("torch_compile_mode", "set ppo.capture to 'compile' or 'cudagraph' in the result instead")
    runner.refuse("ckpt_manipulator", "change the policy's weights in Python, and give it to us.train(policy=)")
    runner.refuse("pretrain_iterations", "clone the data set before PPO instead (us.recipes.bc)", unless=(0,))
    runner.ignore(*_IGNORED)
    options = {
        "recipe": name.lower(),
        "total_steps": iterations * steps + warm_up_steps(ppo, networks, facts.num_envs),
        "seed": runner.take("seed", Annotated[int, In(0)], 0),
        "checkpoint": CheckpointConfig(interval=runner.take("save_interval", Annotated[int, In(1)], 50) * steps),
        "logging": _logging(runner),
        "env": EnvConfig(id=env_id, num_envs=facts.num_envs, segments=sets.segments),
    }
    return TrainConfig(**options, policy=networks, ppo=ppo, parts=parts)


def warm_up_steps(ppo: PPOConfig, networks: PolicyConfig, num_envs: int) -> int:
    """Steps before the first iteration, which give the normaliser its first statistics."""
    return min(ppo.warmup_steps, ppo.num_steps) * num_envs if networks.normalize_observations else 0


def _logging(runner: Block) -> LoggingConfig:
    """`logger`, a name or a block with the class of a writer."""
    kinds = {"tensorboard": "tensorboard", "wandb": "wandb"}
    writers = {"TensorboardLogWriter": "tensorboard", "WandbLogWriter": "wandb"}
    project = runner.take("wandb_project", str, "understudy")
    if isinstance(runner.left.get("logger"), Mapping):
        block = runner.block("logger")
        assert block is not None
        kind = writers[block.class_name("TensorboardLogWriter", tuple(writers))]
        project = block.take("project_name", str, project)
        block.close()
    else:
        kind = runner.choose("logger", kinds, "tensorboard", lower=True)
    return LoggingConfig(wandb=kind == "wandb", wandb_project=project, loggers=("rsl-rl",))


def _normalized(runner: Block, algorithm: Block) -> bool:
    """`empirical_normalization`, of the runner (rsl_rl 2) or of the algorithm (st_rl)."""
    return bool(
        runner.take("empirical_normalization", bool, False) | algorithm.take("empirical_normalization", bool, False)
    )


def _ppo(block: Block, num_steps: int, *, recent: bool, apart: bool) -> PPOConfig:
    """PPO's own options, with the defaults of rsl_rl 3 and newer, or of rsl_rl 2 and st_rl."""
    clip = block.take("clip_param", float, 0.2)
    desired_kl = block.take("desired_kl", float, 0.01)
    schedule = block.take("schedule", Literal["fixed", "adaptive"], "adaptive" if recent else "fixed")
    by_minibatch = block.take("normalize_advantage_per_mini_batch", bool, False)
    block.refuse(
        "share_cnn_encoders", "encoders are shared together with the trunk (policy.shared_trunk)", unless=(False,)
    )
    clipped = block.take("use_clipped_value_loss", bool, True)
    return attempt(
        block.problems,
        PPOConfig,
        PPOConfig,
        num_steps=num_steps,
        epochs=block.take("num_learning_epochs", int, 5 if recent else 1),
        minibatches=block.take("num_mini_batches", int, 4 if recent else 1),
        reshuffle=False,
        clip_epsilon=clip,
        value_clip=clip if clipped else None,
        value_coef=block.take("value_loss_coef", float, 1.0),
        entropy_coef=block.take("entropy_coef", float, 0.01 if recent else 0.0),
        gamma=block.take("gamma", float, 0.99 if recent else 0.998),
        gae_lambda=block.take("lam", float, 0.95),
        advantage_normalization="minibatch" if by_minibatch else "rollout",
        optimizer=_optimizer(block, 1.0),
        clip_apart=apart,
        desired_kl=desired_kl if schedule == "adaptive" else None,
    )


def _optimizer(block: Block, max_grad_norm: float | None) -> OptimizerConfig:
    """torch's optimizers with torch's defaults."""
    names = {name: name for name in ("adam", "adamw", "sgd", "rmsprop")}
    key = "optimizer_class_name" if "optimizer_class_name" in block else "optimizer"
    kind = block.choose(key, names, "adam", lower=True)
    block.ignore("optimizer_class_name", "optimizer")
    return attempt(
        block.problems,
        OptimizerConfig,
        OptimizerConfig,
        kind=kind,
        learning_rate=block.take("learning_rate", float, 1e-3),
        eps=1e-8,
        weight_decay=0.01 if kind == "adamw" else 0.0,
        max_grad_norm=block.take("max_grad_norm", float, max_grad_norm),
    )


def _distillation(
    block: Block, num_steps: int, sets: ObservationSets, facts: Facts, teachers: tuple[str, ...]
) -> tuple[PPOConfig, TeacherConfig]:
    """A student that learns from its teacher alone; gradients flow through the whole rollout."""
    ppo = attempt(
        block.problems,
        PPOConfig,
        PPOConfig,
        num_steps=num_steps,
        epochs=block.take("num_learning_epochs", int, 1),
        minibatches=1,
        surrogate_coef=0.0,
        value_coef=0.0,
        optimizer=_optimizer(block, None),
    )
    block.ignore("gradient_length")
    block.choose("loss_type", {"mse": None}, "mse")
    seen = sets.teacher or (("teacher",) if "teacher" in facts.groups else sets.actor)
    teacher = TeacherConfig(
        checkpoints=teachers,
        groups={"policy": seen[0]} if seen[0] != "policy" else {},
        target="mse_sum",
        coef=1.0 if facts.num_actions is None else 1.0 / facts.num_actions,  # a mean over entries there
    )
    return ppo, teacher
