"""What every peer is asked to do: the numbers of W1 to W7. Standard library only: each peer's venv reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training job: environment, rollout, update, network and losses. Every peer reads these and nothing else."""

    name: str
    method: str = "ppo"  # or "bc", "gail", "distill": peers/<peer>_<method>.py
    env_id: str  # a Gymnasium id, "tensor" for tensor_env.py, or one of frames.py
    num_envs: int
    num_steps: int  # T, per environment and rollout
    num_iterations: int  # timed ones; one more runs before the clock starts
    num_epochs: int
    num_minibatches: int
    hidden: tuple[int, ...]
    activation: str  # "tanh" or "elu"
    images: bool = False  # the Nature CNN (32, 64, 64 channels, 512 units), shared by actor and critic
    lstm: int = 0  # units of a memory before the hidden layers, one for the actor and one for the critic
    init_std: float = 1.0  # state-independent, learned; continuous actions only
    learning_rate: float = 3e-4
    desired_kl: float | None = None  # adapt the learning rate to this KL; None: constant
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    clip_value: bool = False
    value_coef: float = 0.5
    entropy_coef: float = 0.01
    max_grad_norm: float = 0.5
    normalize_advantage: str = "minibatch"  # or "rollout"
    episodes: int = 0  # demonstrated ones; bc, gail
    disc_hidden: tuple[int, ...] = (32, 32)  # tanh; gail
    disc_updates: int = 0  # discriminator steps per iteration, on equal parts of the rollout; gail

    @property
    def steps_per_iteration(self) -> int:
        """T * N environment steps."""
        return self.num_steps * self.num_envs

    @property
    def minibatch_size(self) -> int:
        """Rows of one gradient step."""
        return self.steps_per_iteration // self.num_minibatches

    @property
    def total_steps(self) -> int:
        """Environment steps inside the clock."""
        return self.num_iterations * self.steps_per_iteration

    @property
    def gradient_steps_per_iteration(self) -> int:
        """Optimizer steps of one iteration, the discriminator's included."""
        return self.num_epochs * self.num_minibatches + self.disc_updates

    @property
    def gradient_steps(self) -> int:
        """Optimizer steps inside the clock."""
        return self.num_iterations * self.gradient_steps_per_iteration


WORKLOADS: dict[str, Workload] = {
    "W1": Workload(
        name="W1",
        env_id="CartPole-v1",
        num_envs=8,
        num_steps=128,
        num_iterations=98,  # 100,352 steps
        num_epochs=4,
        num_minibatches=4,
        hidden=(64, 64),
        activation="tanh",
    ),
    "W2": Workload(
        name="W2",
        env_id="HalfCheetah-v5",
        num_envs=8,
        num_steps=256,
        num_iterations=20,  # 40,960 steps
        num_epochs=10,
        num_minibatches=32,
        hidden=(64, 64),
        activation="tanh",
    ),
    "W3": Workload(
        name="W3",
        env_id="tensor",
        num_envs=1024,  # 4,096 on a GPU
        num_steps=24,
        num_iterations=5,
        num_epochs=5,
        num_minibatches=4,
        hidden=(512, 256, 128),
        activation="elu",
        learning_rate=1e-3,
        desired_kl=0.01,
        clip_value=True,
        value_coef=1.0,
        max_grad_norm=1.0,
        normalize_advantage="rollout",
    ),
    "W5": Workload(
        name="W5",
        env_id="Pendulum-v1",
        num_envs=8,
        num_steps=128,
        num_iterations=20,  # 20,480 steps
        num_epochs=4,
        num_minibatches=4,  # of two whole environments
        hidden=(64,),
        activation="tanh",
        lstm=128,
    ),
    "W6": Workload(
        name="W6",
        env_id="frames",
        num_envs=16,
        num_steps=128,
        num_iterations=2,  # 4,096 steps
        num_epochs=4,
        num_minibatches=4,
        hidden=(),
        activation="relu",
        images=True,
        learning_rate=2.5e-4,
        clip_epsilon=0.1,
    ),
    "W4-BC": Workload(
        name="W4-BC",
        method="bc",
        env_id="HalfCheetah-v5",
        num_envs=1,
        num_steps=195 * 256,  # an iteration is an epoch: the whole minibatches of 50,000 pairs
        num_iterations=10,
        num_epochs=1,
        num_minibatches=195,
        hidden=(256, 256),
        activation="relu",
        learning_rate=1e-3,
        episodes=50,
    ),
    "W4-GAIL": Workload(
        name="W4-GAIL",
        method="gail",
        env_id="HalfCheetah-v5",
        num_envs=8,
        num_steps=2048,
        num_iterations=2,
        num_epochs=10,
        num_minibatches=16,
        hidden=(64, 64),
        activation="tanh",
        episodes=50,
        disc_updates=16,
    ),
}
WORKLOADS["W7"] = replace(WORKLOADS["W3"], name="W7", method="distill", desired_kl=None, clip_value=False)
WORKLOADS["W6-Pong"] = replace(WORKLOADS["W6"], name="W6-Pong", env_id="Pong-v5")
"""W1 and W2 are overhead (many small steps), W3 is matrix products: rsl_rl's typical job. W4: imitation learning.
W5: a memory. W6: images, of an environment that costs nothing, and of EnvPool's Pong. W7: distillation, W3's sizes."""

EPISODE_LENGTH = 1000
"""Steps of a demonstrated episode."""

NUM_ENVS_ON_GPU = {"W3": 4096}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A library to compare with: its module in peers/, and what pip is asked for (empty: runs in ours)."""

    module: str
    package: str  # whose version is recorded
    requirements: tuple[str, ...] = ()
    without_dependencies: tuple[str, ...] = ()  # installed last, as what they ask for is too old
    variant: str = ""  # a choice inside our own library
    methods: tuple[str, ...] = ("ppo",)  # what it can do
    unsupported: tuple[tuple[str, str], ...] = ()  # (workload, why it cannot run there)


TORCH = "torch==2.13.0"  # always installed first, alone: nothing else may pull another build
SIMULATORS = ("gymnasium[mujoco]==1.4.0", "mujoco==4.0.0")

_NO_IMAGES = (("W6", "no image peer written"), ("W6-Pong", "no image peer written"))

PEERS: dict[str, Peer] = {
    "understudy": Peer(module="understudy", package="understudy", methods=("ppo", "bc", "gail", "distill")),
    "understudy-eager": Peer(module="understudy", package="understudy", variant="eager"),
    "understudy-compile": Peer(module="understudy", package="understudy", variant="compile"),
    "understudy-cudagraph": Peer(module="understudy", package="understudy", variant="cudagraph"),  # on a GPU
    "understudy-envpool": Peer(
        module="understudy",
        package="understudy",
        variant="envpool",
        unsupported=(("W3", "a tensor environment"), ("W6", "no EnvPool environment")),
    ),
    "understudy-nll": Peer(module="understudy", package="understudy", variant="nll", methods=("bc",)),
    "stable-baselines3": Peer(
        module="stable_baselines3",
        package="stable-baselines3",
        requirements=("stable-baselines3==2.9.2", "sb3-contrib==2.9.2"),
    ),
    "skrl": Peer(
        module="skrl",
        package="skrl",
        requirements=("skrl==2.1.1",),
        unsupported=(("W5", "no recurrent peer written"), *_NO_IMAGES),
    ),
    "rsl-rl-lib": Peer(
        module="rsl_rl",
        package="rsl-rl-lib",
        requirements=("rsl-rl-lib==5.5.1",),
        methods=("ppo", "distill"),
        unsupported=tuple((name, "no discrete actions") for name in ("W1", "W6", "W6-Pong")),
    ),
    "torchrl": Peer(
        module="torchrl",
        package="torchrl",
        requirements=("torchrl==0.14.1",),
        unsupported=(("W5", "no recurrent peer written"), *_NO_IMAGES),
    ),
    "tianshou": Peer(
        module="tianshou",
        package="tianshou",
        requirements=("tianshou==2.0.1",),
        methods=("ppo", "bc", "gail"),
        unsupported=(("W5", "no recurrent peer written"),),
    ),
    "imitation": Peer(
        module="imitation",
        package="imitation",
        requirements=("stable-baselines3==2.9.2", "tensorboard==2.21.0", "tqdm==4.70.1", "rich==15.0.0"),
        without_dependencies=("imitation==1.0.1",),  # asks for gymnasium 0.29, which has no HalfCheetah-v5
        methods=("bc", "gail"),
    ),
    "plain": Peer(module="plain_ppo", package="torch", unsupported=(("W5", "no memory"),)),
    "plain-bc": Peer(module="plain", package="torch", methods=("bc",)),
}
"""`plain*` are our own single files, `understudy-*` are choices of our own library, pip installs the others."""

OURS = "understudy"


def default_peers(workload: str) -> tuple[str, ...]:
    """What a comparison runs unless told otherwise: who can do it, without the variants of our own library."""
    able = (name for name, peer in PEERS.items() if WORKLOADS[workload].method in peer.methods)
    return tuple(name for name in able if name == OURS or not name.startswith(OURS + "-"))


def module_of(peer: str, method: str) -> str:
    """The module in peers/ that does it."""
    module = PEERS[peer].module
    return module if method == "ppo" else f"{module}_{method}"
