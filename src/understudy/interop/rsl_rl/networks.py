"""Networks: `policy` (rsl_rl 2 and 3, st_rl) or `actor` and `critic` (rsl_rl 4 and 5) as a `PolicyConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from understudy.interop.rsl_rl.reading import Block, attempt
from understudy.nn.heads import DistributionConfig
from understudy.nn.networks import Activation, CNNConfig, EncoderConfig
from understudy.nn.protocol import PolicyConfig

ACTIVATIONS: dict[str, Activation] = {
    **{name: name for name in ("elu", "selu", "relu", "tanh", "sigmoid", "softplus", "gelu", "identity")},
    **{
        "crelu": "elu",
        "celu": "elu",
        "lrelu": "leaky_relu",
        "leakyrelu": "leaky_relu",
        "swish": "silu",
        "silu": "silu",
    },
}
"""Their names, in small letters, and ours; their "crelu" is torch's CELU with alpha 1, which is ELU."""
DIMS = tuple[int, ...] | list[int] | int
POLICIES = (
    *("ActorCritic", "ActorCriticRecurrent", "ActorCriticCNN", "StudentTeacher", "StudentTeacherRecurrent"),
    *("AmpActorCritic", "AmpActorCriticRecurrent", "StateAc", "StateAcRecurrent", "EncoderStateAc"),
    *("EncoderStateAcRecurrent", "EncoderActorCritic", "EncoderActorCriticRecurrent", "EncoderAmpActorCritic"),
    "EncoderAmpActorCriticRecurrent",
)
MODELS = ("MLPModel", "RNNModel", "CNNModel")
STD_TYPE = Literal["scalar", "log"]
MEMORIES: dict[str, Literal["lstm", "gru"]] = {"lstm": "lstm", "gru": "gru"}


@dataclass
class Side:
    """The networks of the actor or of the critic."""

    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    activation: Activation = "elu"
    normalized: bool = False
    memory: tuple[str, int, int] | None = None
    """Kind, size and layers."""
    cnn: CNNConfig | None = None


def read_policy(block: Block, default: str, *, normalized: bool) -> PolicyConfig:
    """The block `policy`."""
    name = block.class_name(default, POLICIES)
    who, other = ("student", "teacher") if name.startswith("Student") else ("actor", "critic")
    activation = read_activation(block, "activation", "elu")
    memory = _memory(block) if name.endswith("Recurrent") else None
    if memory is None:
        block.ignore("rnn_type", "rnn_hidden_dim", "rnn_hidden_size", "rnn_num_layers")

    def side(who: str) -> Side:
        sizes = read_sizes(block, f"{who}_hidden_dims", (256, 256, 256))
        own = block.take(f"{who}_obs_normalization", bool, normalized)
        return Side(sizes, activation, own, memory, _cnn(block.block(f"{who}_cnn_cfg")))

    first, second = side(who), side(other)
    if who == "student":  # the teacher's networks are its checkpoint's
        block.ignore("teacher_recurrent")
        second = first
    distribution = _distribution(
        block,
        init_std=block.take("init_noise_std", float, 0.1 if who == "student" else 1.0),
        state_dependent_std=block.take("state_dependent_std", bool, False),
    )
    block.ignore("num_actions", "teacher_ac_path")
    return _policy(block.problems, "policy", first, second, distribution)


def read_models(runner: Block, distilled: bool) -> PolicyConfig:
    """The blocks `actor` and `critic`; a student has no critic there, here it has one that nothing trains."""
    if distilled:
        runner.ignore("teacher", "critic", "actor")
    names = ("student",) if distilled else ("actor", "critic")
    sides, distribution = [], DistributionConfig(head_gain=None)
    for name in names:
        block = runner.block(name) or Block({}, f"{name}.", runner.problems)
        kind = block.class_name("MLPModel", MODELS)
        memory = _memory(block) if kind == "RNNModel" else None
        if memory is None:
            block.ignore("rnn_type", "rnn_hidden_dim", "rnn_num_layers")
        sides.append(
            Side(
                read_sizes(block, "hidden_dims", (256, 256, 256)),
                read_activation(block, "activation", "elu"),
                block.take("obs_normalization", bool, False),
                memory,
                _cnn(block.block("cnn_cfg")),
            )
        )
        if name == "critic":
            block.ignore("distribution_cfg", "stochastic", "init_noise_std", "noise_std_type", "state_dependent_std")
        else:
            distribution = _model_distribution(block)
        block.close()
    return _policy(runner.problems, names[-1], sides[0], sides[-1], distribution)


def read_sizes(block: Block, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Hidden layers, a list or one number."""
    value = block.take(name, DIMS, default)
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if min(sizes, default=1) < 1:
        block.problems.append(f"{block.place}{name}: -1, the size of the input, cannot be expressed: give the number")
        return default
    return sizes


def read_activation(block: Block, name: str, default: str) -> Activation:
    """An activation, by rsl_rl's or by torch's name."""
    return block.choose(name, ACTIVATIONS, default, lower=True)


def _policy(
    problems: list[str], second: str, actor: Side, critic: Side, distribution: DistributionConfig
) -> PolicyConfig:
    for what, one, other in (
        ("activation", actor.activation, critic.activation),
        ("obs_normalization", actor.normalized, critic.normalized),
    ):
        if one != other:
            problems.append(f"{second}: actor and critic have one {what} here, not {one} and {other}")
    if critic.memory not in (None, actor.memory):
        problems.append(f"{second}: a critic has no memory or the actor's kind, not {critic.memory}")
    kind, size, layers = actor.memory or ("none", 256, 1)
    encoder = EncoderConfig(cnn=actor.cnn or CNNConfig())
    return attempt(
        problems,
        PolicyConfig,
        PolicyConfig,
        hidden_sizes=actor.hidden_sizes,
        critic_hidden_sizes=critic.hidden_sizes,
        activation=actor.activation,
        init="default",
        memory=kind,
        memory_size=size,
        memory_layers=layers,
        critic_memory=critic.memory is not None,
        distribution=distribution,
        encoder=encoder,
        critic_encoder=None if critic.cnn == actor.cnn else EncoderConfig(cnn=critic.cnn or CNNConfig()),
        normalize_observations=actor.normalized,
        observation_clip=1e6,
        action_scaling="auto" if distribution.kind == "beta" else "off",
        action_bound="none",
    )


def _memory(block: Block) -> tuple[str, int, int]:
    kind = block.choose("rnn_type", MEMORIES, "lstm", lower=True)
    size = block.take("rnn_hidden_size", int, 256)
    return kind, block.take("rnn_hidden_dim", int, size), block.take("rnn_num_layers", int, 1)


def _distribution(block: Block, *, init_std: float, state_dependent_std: bool) -> DistributionConfig:
    """The Gaussian of rsl_rl 2 to 4 and of st_rl."""
    std_type = block.take("noise_std_type", STD_TYPE, "scalar")
    mean = read_activation(block, "mu_activation", "identity")
    return attempt(
        block.problems,
        DistributionConfig,
        DistributionConfig,
        kind="gaussian",
        init_std=init_std,
        state_dependent_std=state_dependent_std,
        std_type="log" if state_dependent_std else std_type,
        mean_activation=None if mean == "identity" else mean,
        head_gain=None,
    )


def _model_distribution(block: Block) -> DistributionConfig:
    """`distribution_cfg` of rsl_rl 5, or the keys that rsl_rl 4 had in its place."""
    inner = block.block("distribution_cfg")
    if inner is None:
        block.take("stochastic", bool, True)
        init_std = block.take("init_noise_std", float, 1.0)
        return _distribution(
            block, init_std=init_std, state_dependent_std=block.take("state_dependent_std", bool, False)
        )
    block.ignore("stochastic", "init_noise_std", "noise_std_type", "state_dependent_std")
    names = ("GaussianDistribution", "HeteroscedasticGaussianDistribution", "BetaDistribution")
    name = inner.class_name(names[0], names)
    options: dict[str, Any] = {"kind": "beta"}
    if name == "BetaDistribution":
        if inner.take("action_range", tuple[float, float], (-1.0, 1.0)) != (-1.0, 1.0):
            inner.problems.append(
                f"{inner.place}action_range: the actions of a Beta fill the action space's range here"
            )
        inner.ignore("init_std", "std_range", "std_type", "learn_std")
    else:
        low, high = inner.take("std_range", tuple[float, float], (1e-6, 1e6))
        std_type = inner.take("std_type", STD_TYPE, "scalar")
        options = {
            "kind": "gaussian",
            "init_std": inner.take("init_std", float, 1.0),
            "learn_std": inner.take("learn_std", bool, True),
            "state_dependent_std": name.startswith("Hetero"),
            "std_type": "log" if name.startswith("Hetero") else std_type,
            "min_std": low if low > 1e-6 else None,
            "max_std": high if high < 1e6 else None,
        }
    inner.close()
    return attempt(block.problems, DistributionConfig, DistributionConfig, **options, head_gain=None)


def _cnn(block: Block | None) -> CNNConfig | None:
    """One configuration of convolutions; several, by group, have to be equal."""
    if block is None:
        return None
    nested = [block.block(name) for name, value in list(block.left.items()) if isinstance(value, dict)]
    if nested:
        found = [_cnn(inner) for inner in nested]
        if any(other != found[0] for other in found):
            block.problems.append(f"{block.place.rstrip('.')}: all images have the same convolutions here")
        return found[0]
    channels = block.take("output_channels", tuple[int, ...] | list[int], (32, 64, 64))
    layers = len(channels)

    def each(name: str, default: int) -> tuple[int, ...]:
        value = block.take(name, DIMS, default)
        return (value,) * layers if isinstance(value, int) else tuple(value)

    kernels, strides = each("kernel_size", 3), each("stride", 1)
    block.refuse("dilation", "convolutions are not dilated here", unless=(1, (1,) * layers, [1] * layers))
    block.refuse("padding", "give the convolutions a trunk of your own (policy.trunk)", unless=("none",))
    block.refuse("norm", "give the convolutions a trunk of your own (policy.trunk)", unless=("none",))
    block.refuse("max_pool", "max-pooling has other sizes here (policy.encoder.cnn)", unless=(False,))
    block.refuse("global_pool", "give the convolutions a trunk of your own (policy.trunk)", unless=("none",))
    block.refuse("flatten", "features are flat here", unless=(True,))
    activation = read_activation(block, "activation", "elu")
    block.close()
    return attempt(
        block.problems,
        CNNConfig,
        CNNConfig,
        channels=tuple(channels),
        kernel_sizes=kernels,
        strides=strides,
        paddings=(0,) * layers,
        hidden_sizes=(),
        activation=activation,
        channel_axis="first",
    )
