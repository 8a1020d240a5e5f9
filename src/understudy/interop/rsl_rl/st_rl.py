"""What st_rl adds to PPO: teachers (TPPO), motion priors (APPO) and estimators, as parts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from understudy.interop.rsl_rl.facts import Facts, ObservationSets
from understudy.interop.rsl_rl.networks import read_activation, read_sizes
from understudy.interop.rsl_rl.reading import Block, attempt
from understudy.nn.estimator import EstimatorHeadConfig
from understudy.nn.networks import EncoderConfig
from understudy.nn.protocol import PolicyConfig
from understudy.parts.estimator import EstimatorConfig
from understudy.parts.motion_prior import MotionPriorConfig
from understudy.parts.shared.discriminator import DiscriminatorConfig
from understudy.parts.shared.distillation import ActionTarget, MeanTarget
from understudy.parts.teacher import TeacherConfig
from understudy.ppo.config import PPOConfig
from understudy.ppo.lr_scheduler import LRSchedulerConfig
from understudy.ppo.part import PartConfig

ALGORITHMS = ("PPO", "APPO", "TPPO", "ATPPO", "EstimatorPPO", "EstimatorTPPO")
STYLE, EXPERT = "ref_obs", "ref_motion"
"""Groups: the robot's style features and the reference's, as st_rl's environments call them."""
_AMP = ("discriminator_loss_coef", "mimic_loss_coef", "amp_obs_dim")
_ESTIMATOR = ("estimator_loss_func", "estimator_loss_kwargs", "estimator_loss_coef")


def add_parts(
    name: str,
    algorithm: Block,
    policy: Block,
    ppo: PPOConfig,
    networks: PolicyConfig,
    sets: ObservationSets,
    facts: Facts,
    teachers: tuple[str, ...],
    parts: dict[str, PartConfig],
) -> tuple[PPOConfig, PolicyConfig]:
    """PPO and policy with what the algorithm `name` adds, its parts put into `parts`."""
    _read_segments(policy, sets)
    sets.privileged = policy.take("num_critic_obs", int, None) != policy.take("num_actor_obs", int, None)
    networks = _encoders(policy, networks, sets, facts)
    floor = algorithm.take("clip_min_std", float | tuple[float, ...] | list[float], 1e-15)
    floors = tuple(floor) if isinstance(floor, tuple | list) else (floor,)
    if max(floors) > 1e-6:  # below, the exponential keeps it positive
        min_std = floors[0] if len(floors) == 1 else tuple(max(x, 1e-6) for x in floors)
        noise = attempt(
            algorithm.problems,
            lambda: dataclasses.replace(networks.distribution, min_std=min_std),
            lambda: networks.distribution,
        )
        networks = dataclasses.replace(networks, distribution=noise)
    if name.startswith("Estimator"):
        networks = _estimator(algorithm, policy, networks, sets, facts, parts)
    if name in ("APPO", "ATPPO"):
        ppo = _motion(algorithm, policy, ppo, facts, parts)
    if "TPPO" in name:
        ppo = _teacher(algorithm, ppo, networks, sets, facts, teachers, parts)
    # configurations of all algorithms have one class there: what is left is without effect
    policy.ignore("amp_discriminator", "estimator_obs_components", "estimator_target_components", "estimator_kwargs")
    policy.ignore("use_actor_rnn", "replace_state_prob")
    for key in (*_AMP, *_ESTIMATOR):
        algorithm.refuse(key, f"{name} has no such loss", unless=(0, 0.0, 2, "mse_loss"))
    algorithm.refuse(
        "dagger_loss_coef", "labels are the teacher's: set distillation_loss_coef of ATPPO", unless=(0, 0.0)
    )
    algorithm.refuse("bc_loss_coef", "add the part behavior-cloning to the result", unless=(0.001, 0.0, 0))
    return ppo, networks


# ---------------------------------------------------------------------- observations


def _read_segments(policy: Block, sets: ObservationSets) -> None:
    own = _segments(policy, "obs_segments")
    critic = _segments(policy, "critic_obs_segments") or _segments(policy, "privileged_obs_segments")
    policy.known.add("privileged_obs_segments")
    if own:
        sets.segments[sets.actor[0]] = own
    if critic:
        sets.segments[sets.critic[0] if sets.critic else "critic"] = critic


def _segments(policy: Block, name: str) -> dict[str, int]:
    """Names and sizes, in order; a shape is a number or several."""
    value = policy.take(name, dict[str, int | tuple[int, ...] | list[int]], {})
    return {key: math.prod(x) if isinstance(x, tuple | list) else x for key, x in value.items()}


def _named(policy: Block, key: str, names: tuple[str, ...], group: str, sets: ObservationSets) -> tuple[str, ...]:
    """`group/component` of named components."""
    known = sets.segments.get(group, {})
    for component in names:
        if component not in known:
            policy.unknown(key, component, known, "")
    return tuple(f"{group}/{component}" for component in known if component in names)


def _encoders(policy: Block, networks: PolicyConfig, sets: ObservationSets, facts: Facts) -> PolicyConfig:
    """MLPs on some components of actor and critic."""
    names = policy.take("encoder_component_names", tuple[str, ...], ())
    size = policy.take("encoder_output_size", int, None)
    critic: Any = policy.take("critic_encoder_component_names", str | tuple[str, ...], None)
    own = _encoder(policy, "", names, sets.actor[0], size, sets, EncoderConfig(cnn=networks.encoder.cnn))
    inherited = "critic_encoder_kwargs" not in policy
    if critic == "shared":
        policy.problems.append(f"{policy.place}critic_encoder_component_names: only whole trunks are shared here")
        critic = None
    group = sets.critic_group(facts) or sets.actor[0]
    theirs = EncoderConfig(cnn=(networks.critic_encoder or networks.encoder).cnn)
    if critic and inherited:
        policy.ignore("critic_encoder_kwargs", "critic_encoder_class_name")
        theirs = dataclasses.replace(own, only=_named(policy, "critic_encoder_component_names", critic, group, sets))
    elif critic:
        theirs = _encoder(policy, "critic_", critic, group, size, sets, theirs)
    policy.ignore("critic_encoder_kwargs", "critic_encoder_class_name")
    policy.refuse("visual_component_name", "an image is a group of its own here, and gets convolutions")
    policy.refuse("visual_kwargs", "convolutions are policy.encoder.cnn of the result")
    policy.refuse("visual_latent_size", "convolutions are policy.encoder.cnn of the result")
    return dataclasses.replace(networks, encoder=own, critic_encoder=None if theirs == own else theirs)


def _encoder(
    policy: Block,
    prefix: str,
    names: tuple[str, ...],
    group: str,
    size: int | None,
    sets: ObservationSets,
    without: EncoderConfig,
) -> EncoderConfig:
    """The MLP on components of one side, hidden layers and output, each with its activation."""
    kinds = policy.take(f"{prefix}encoder_class_name", str | tuple[str, ...], "MlpModel")
    options = policy.left.pop(f"{prefix}encoder_kwargs", None) or {}
    policy.known.add(f"{prefix}encoder_kwargs")
    if not names:
        return without
    if set([kinds] if isinstance(kinds, str) else kinds) != {"MlpModel"}:
        policy.problems.append(f"{policy.place}{prefix}encoder_class_name: vectors get an MlpModel, images are groups")
    if isinstance(options, list | tuple):
        if any(other != options[0] for other in options):
            policy.problems.append(f"{policy.place}{prefix}encoder_kwargs: all encoders have the same options here")
        options = options[0]
    block = Block(options, f"{policy.place}{prefix}encoder_kwargs.", policy.problems)
    sizes = read_sizes(block, "hidden_sizes", ())
    activation = read_activation(block, "nonlinearity", "relu")
    block.close()
    if size is None:
        policy.problems.append(f"{policy.place}encoder_output_size is missing")
        size = 1
    only = _named(policy, f"{prefix}encoder_component_names", names, group, sets)
    return dataclasses.replace(without, hidden_sizes=(*sizes, size), activation=activation, only=only)


# ---------------------------------------------------------------------- estimator


def _estimator(
    algorithm: Block,
    policy: Block,
    networks: PolicyConfig,
    sets: ObservationSets,
    facts: Facts,
    parts: dict[str, PartConfig],
) -> PolicyConfig:
    """The estimator in the policy and its loss; the truth is the critic's version of its targets."""
    group = sets.actor[0]
    inputs = policy.take("estimator_obs_components", tuple[str, ...], ())
    targets = policy.take("estimator_target_components", tuple[str, ...], ())
    options = policy.block("estimator_kwargs") or Block({}, "policy.estimator_kwargs.", policy.problems)
    on_memory = policy.take("use_actor_rnn", bool, False)
    share = policy.take("replace_state_prob", float, 0.0)
    hidden_sizes = read_sizes(options, "hidden_sizes", ())
    activation = read_activation(options, "nonlinearity", "relu")
    options.close()
    truth = sets.critic_group(facts) or group
    if truth not in sets.segments and group in sets.segments:
        sets.segments[truth] = sets.segments[group]  # as there, where the critic's are not named
    if not targets or not sets.segments:
        policy.problems.append("policy: an estimator needs estimator_target_components and obs_segments")
        return networks
    actor_groups = networks.actor_groups
    if share > 0.0:
        kept = tuple(x for x in sets.segments[group] if x not in targets)
        actor_groups = (*(f"{group}/{x}" for x in kept), *sets.actor[1:])
    head = attempt(
        policy.problems,
        EstimatorHeadConfig,
        lambda: EstimatorHeadConfig(targets=targets),
        targets=_named(policy, "estimator_target_components", targets, truth, sets),
        inputs=() if on_memory else _named(policy, "estimator_obs_components", inputs, group, sets),
        hidden_sizes=hidden_sizes,
        activation=activation,
        memory="actor" if on_memory else networks.memory,
        memory_size=networks.memory_size,
        memory_layers=networks.memory_layers,
        replace_prob=share,
        feeds_actor=share > 0.0,
    )
    loss_kwargs = algorithm.take("estimator_loss_kwargs", dict[str, float | bool | str], {})
    parts["estimator"] = attempt(
        algorithm.problems,
        EstimatorConfig,
        EstimatorConfig,
        estimator="estimator",
        loss=algorithm.take("estimator_loss_func", str, "mse_loss"),
        loss_kwargs=loss_kwargs,
        coef=algorithm.take("estimator_loss_coef", float, 1.0),
    )
    return dataclasses.replace(networks, actor_groups=actor_groups, estimators={"estimator": head})


# ---------------------------------------------------------------------- motion prior


def _motion(algorithm: Block, policy: Block, ppo: PPOConfig, facts: Facts, parts: dict[str, PartConfig]) -> PPOConfig:
    """The discriminator, one step of its own for each minibatch, and the reward blended with the task's."""
    block = policy.block("amp_discriminator")
    if block is None:
        policy.problems.append("policy.amp_discriminator is missing: APPO takes its discriminator from there")
        return ppo
    for key in ("hidden_dims", "style_reward_coef", "task_reward_lerp", "discriminator_grad_pen"):
        if key not in block:
            block.problems.append(f"{block.place}{key} is missing: it has no default")
    lerp = block.take("task_reward_lerp", float, 0.0)
    mimic = algorithm.take("mimic_loss_coef", float, 0.0)
    if algorithm.take("discriminator_loss_coef", float, 1.0) == 0.0:
        algorithm.problems.append("algorithm.discriminator_loss_coef: 0 is a discriminator that never learns; set 1.0")
    algorithm.ignore("amp_obs_dim")
    discriminator = attempt(
        block.problems,
        DiscriminatorConfig,
        DiscriminatorConfig,
        hidden_sizes=read_sizes(block, "hidden_dims", (512, 512, 512)),
        activation="relu",
        loss="least_squares",
        disc_update_num=ppo.epochs * ppo.minibatches,
        batch_size=max(ppo.num_steps * facts.num_envs // ppo.minibatches, 1),
        gradient_penalty=block.take("discriminator_grad_pen", float, 10.0),
        penalty_on="expert",
        optimizer=ppo.optimizer,
    )
    parts["motion"] = attempt(
        block.problems,
        MotionPriorConfig,
        MotionPriorConfig,
        observations=(STYLE,),
        expert_observations=(EXPERT,),
        frames=1,
        reward_weight=(1.0 - lerp) * block.take("style_reward_coef", float, 1.0),
        tracking_observations=(EXPERT,) if mimic else (),
        tracking_weight=mimic,
        tracking_form="distance",
        tracking_scale=1.0,
        discriminator=discriminator,
    )
    block.ignore("input_dim", "amp_obs_dim")
    block.close()
    return attempt(block.problems, lambda: dataclasses.replace(ppo, reward_weight=lerp), lambda: ppo)


# ---------------------------------------------------------------------- teacher


def _teacher(
    algorithm: Block,
    ppo: PPOConfig,
    networks: PolicyConfig,
    sets: ObservationSets,
    facts: Facts,
    teachers: tuple[str, ...],
    parts: dict[str, PartConfig],
) -> PPOConfig:
    """The teacher, DAgger where PPO is off, and the learning rate's scheduler."""
    problems = algorithm.problems
    algorithm.ignore("teacher_policy_class_name")
    described = algorithm.left.pop("teacher_policy", None) or {}
    algorithm.known.add("teacher_policy")
    path = Block(described, "algorithm.teacher_policy.", problems).take("teacher_ac_path", str, None)
    scale = algorithm.take("update_times_scale", int, 100)
    privileged = algorithm.take("label_action_with_critic_obs", bool, True)
    group, seen = sets.actor[0], sets.critic_group(facts) or sets.actor[0]
    mapping = algorithm.take("distill_latent_obs_component_mapping", dict[str, str], {})
    sampled = algorithm.take("action_labels_from_sample", bool, False)
    parts["teacher"] = attempt(
        problems,
        TeacherConfig,
        TeacherConfig,
        checkpoints=teachers or (() if path is None else (path,)),
        groups={group: seen} if privileged and seen != group else {},
        label="sample" if sampled else "mean",
        teacher_forcing=algorithm.number("teacher_act_prob", "exp", scale),
        target=algorithm.take("distill_target", ActionTarget, "real"),
        coef=algorithm.number("distillation_loss_coef", 1.0, scale),
        latents={f"actor/{group}/{ours}": f"actor/{group}/{theirs}" for ours, theirs in mapping.items()},
        latent_target=algorithm.take("distill_latent_target", MeanTarget, "real"),
        latent_coef=algorithm.take("distill_latent_coef", float, 1.0),
        rollouts=algorithm.take("buffer_dilation_ratio", float, 1.0),
        resample_state_prob=algorithm.take("hidden_state_resample_prob", float, 0.0),
    )
    kind = algorithm.take("lr_scheduler_class_name", str, None)
    options = algorithm.take("lr_scheduler", dict[str, Any], {})
    if kind is not None:
        ppo = attempt(
            problems,
            lambda: dataclasses.replace(ppo, lr_scheduler=LRSchedulerConfig(name=kind, options=options)),
            lambda: ppo,
        )
    if not algorithm.take("using_ppo", bool, True):
        ppo = dataclasses.replace(ppo, surrogate_coef=0.0, value_coef=0.0, entropy_coef=0.0)
    return ppo
