"""`Runner`: takes the place of rsl_rl's `OnPolicyRunner` in the training scripts of mjlab and Isaac Lab."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from understudy.core import randomness, ranks
from understudy.envs.base import VecEnv
from understudy.envs.regrouped import ungrouped
from understudy.envs.simulator import SimulatorAdapter
from understudy.interop.rsl_rl.config import from_config, warm_up_steps
from understudy.interop.rsl_rl.reading import Block
from understudy.nn.protocol import Policy
from understudy.ppo.config import PPOConfig
from understudy.ppo.ppo import PPO
from understudy.runs.checkpoint import check_same_layout, read_checkpoint, save_checkpoint, step_checkpoints
from understudy.runs.config import TrainConfig, to_yaml
from understudy.runs.folder import CHECKPOINT_KIND, RunFolder
from understudy.runs.provenance import git_diff
from understudy.tools.export import export_policy
from understudy.training.building import building, check_fits, threads_pay, with_own_env
from understudy.training.distributed import leads
from understudy.training.loggers import Logger, Row
from understudy.training.loop import listening
from understudy.training.training import Training, training_state

logger = logging.getLogger(__name__)


@runtime_checkable
class _Observes(Protocol):
    def observed(self, raw: Any) -> TensorDict: ...


class Runner:
    """rsl_rl 5's `OnPolicyRunner` over this library's training loop: same constructor, same methods.

    `train_cfg` goes through `from_config` and stays as it is. `log_dir` becomes a run's folder (`us.load`,
    `understudy evaluate`), with `model_N.pt` beside its own files; None: nothing is written. One simulator is all there
    is, so nothing is evaluated while it trains. `registry_name`, which mjlab's tracking tasks give, is ignored. Scripts
    that torchrun starts several times train as one: rank 0 writes, and its seed and weights count.

    Raises ValueError for a configuration that cannot be expressed (`from_config`), and what does not fit `env`.
    """

    def __init__(
        self,
        env: Any,
        train_cfg: Any,
        log_dir: str | None = None,
        device: str = "cpu",
        registry_name: str | None = None,
    ) -> None:
        self.env, self.cfg, self.log_dir, self.device = env, train_cfg, log_dir, device
        self.git_repositories: list[str] = []
        self._save_interval = Block(train_cfg, "", []).take("save_interval", int, 50)
        self._folder = None if log_dir is None else RunFolder(Path(log_dir))
        self._began = False
        self._alg: Algorithm | None = None
        met = ExitStack()
        met.enter_context(ranks.joined(ranks.own_device(torch.device(device))))
        atexit.register(met.close)
        self._build(())

    @property
    def alg(self) -> Algorithm:
        """The policy and its training. Raises ValueError where the teacher of a distillation is not loaded yet."""
        if self._alg is None:
            raise ValueError("this distillation has no teacher yet: load(path) its checkpoint first")
        return self._alg

    @property
    def current_learning_iteration(self) -> int:
        """The iteration that ended last, counted from 0."""
        return 0 if self._alg is None else max(self._alg.ppo.iteration - 1, 0)

    def learn(self, num_learning_iterations: int, init_at_random_ep_len: bool = False) -> None:
        """Train for so many iterations; `model_N.pt` is saved every `save_interval` of them, and at the end.

        SIGINT and SIGTERM end it after the running iteration. Raises ValueError where `log_dir` holds another
        training or cannot be written, and what `us.train` raises while it trains.
        """
        ppo = self.alg.ppo
        if num_learning_iterations < 1:
            raise ValueError(f"num_learning_iterations must be at least 1, got {num_learning_iterations}")
        total = ppo.env_steps + num_learning_iterations * ppo.steps_per_iteration
        if ppo.env_steps == 0:
            total += warm_up_steps(ppo.config, self.config.policy, ppo.env.num_envs) * ranks.count()
        config = dataclasses.replace(self.config, total_steps=total)
        ppo.total_steps = total
        self._start_episodes(init_at_random_ep_len)
        threads = torch.get_num_threads()
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, threads)
            if not threads_pay(ppo):
                torch.set_num_threads(1)
            if not leads():
                self._training(config, RunFolder(Path()), []).follow()
                ranks.shared(None)  # the last model is there
                return
            folder = self._folder or RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            saving = [_Saving(self, folder.path)] if self._folder is not None else []
            training = self._training(config, folder, saving)
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cannot write log_dir {folder.path} ({error.strerror}): choose another") from error
            stack.enter_context(folder.locked())
            if step_checkpoints(folder.checkpoints) and not self._began:
                raise ValueError(f"{folder.path} holds another training: choose another log_dir")
            self._began = True
            folder.write_config(config)
            folder.record_start()
            self._write_diffs(folder.path)
            training.run()
            if saving:
                self._save_model(folder.path)
            ranks.shared(None)

    def _training(self, config: TrainConfig, folder: RunFolder, saving: list[_Saving]) -> Training:
        return Training(config, folder, self.alg.ppo.env, self.alg.ppo, None, listening(config, saving), True)

    def save(self, path: str, infos: dict[str, Any] | None = None) -> None:
        """Write the whole training to `path`, with `infos`, for `load`; `us.load` makes a policy of it.

        Of several ranks, rank 0 writes. Raises CheckpointError if it cannot be written.
        """
        if not leads():
            return
        state = training_state(to_yaml(self.config), self.alg.ppo)
        save_checkpoint(Path(path), CHECKPOINT_KIND, {**state, "infos": infos})

    def load(
        self,
        path: str,
        load_cfg: Mapping[str, bool] | None = None,
        strict: bool = True,
        map_location: str | None = None,
    ) -> dict[str, Any]:
        """Go on from what `save` wrote, and return its `infos`; with `load_cfg` {"actor": True} only the policy.

        From another number of environments only the policy is taken. A distillation takes its teacher from the first
        file, unless that is a distillation's. Raises CheckpointError for a file of another kind or another policy's.
        """
        checkpoint = read_checkpoint(Path(path), CHECKPOINT_KIND)
        if self._alg is None:
            stored: Any = checkpoint.stored
            taught = stored.get("parts", {}).get("teacher", {}).get("checkpoints")
            self._build(tuple(taught or (path,)))
            if not taught:  # it is the teacher
                return {}
        ppo, weights = self.alg.ppo, checkpoint.state["policy"]
        check_same_layout(ppo.policy.state_dict(), weights, path)
        whole = load_cfg is None or load_cfg.get("optimizer", False) or load_cfg.get("iteration", False)
        if whole and ppo.env.num_envs == checkpoint.stored["env"]["num_envs"]:
            check_fits(ppo.env, checkpoint, self.config.env.id)
            ppo.load_state_dict(checkpoint.state)
            if ranks.count() > 1:  # it is rank 0's
                ppo.start_anew()
        else:
            if whole:
                logger.warning("%s was trained in another number of environments: only its policy is loaded", path)
            ppo.policy.load_state_dict(weights)
        return dict(checkpoint.infos or {})

    def get_inference_policy(self, device: str | None = None) -> InferencePolicy:
        """The policy as a function of the simulator's observations; with a memory, it remembers (`reset`)."""
        return InferencePolicy(self.alg.ppo.policy, self.alg.ppo.env).to(device)

    def export_policy_to_onnx(self, path: str, filename: str = "policy.onnx", verbose: bool = False) -> None:
        """Write the policy to `path/filename`; raises as `export_policy` does."""
        self._export(path, filename, "onnx")

    def export_policy_to_jit(self, path: str, filename: str = "policy.pt") -> None:
        """Write the policy to `path/filename` as TorchScript; raises as `export_policy` does."""
        self._export(path, filename, "torchscript")

    def add_git_repo_to_log(self, repo_file_path: str) -> None:
        """Remember a file whose repository's changes are written to `log_dir/git` when training starts."""
        self.git_repositories.append(repo_file_path)

    # ------------------------------------------------------------------ inside

    def _build(self, teachers: tuple[str, ...]) -> None:
        """Config, policy and PPO; a distillation's only once its teacher is known."""
        config = from_config(_with_iterations(self.cfg), env=self.env, teachers=teachers)
        silent = dataclasses.replace(config.logging, tensorboard=False, wandb=False)
        config = dataclasses.replace(
            config,
            device=self.device,
            run_dir=self.log_dir,
            logging=config.logging if self.log_dir else silent,
            evaluation=dataclasses.replace(config.evaluation, episodes=0),
            checkpoint=dataclasses.replace(config.checkpoint, interval=None),
            ppo=self._dividing(config),
        )
        self.config, own = with_own_env(config, self.env)
        if self.config.recipe == "distillation" and not teachers:
            return
        with building(self.config, own) as (_, ppo):  # leaves open what was given
            self._alg = Algorithm(ppo)

    def _dividing(self, config: TrainConfig) -> PPOConfig:
        """PPO with a number of minibatches that divides the rollout, also of the few environments of a play script."""
        rows = self.env.num_envs * (1 if config.policy.memory != "none" else config.ppo.num_steps)
        given = config.ppo.minibatches
        number = next(n for n in range(given, 0, -1) if rows % n == 0)
        if number != given and self.log_dir is not None:
            logger.warning(
                "num_mini_batches %d does not divide %d rows, which would be dropped: %d", given, rows, number
            )
        return dataclasses.replace(config.ppo, minibatches=number)

    def _start_episodes(self, at_random: bool) -> None:
        """Reset the simulator, as seeded, once; with random ages of the episodes, where they are asked for."""
        ppo = self.alg.ppo
        simulator = ungrouped(ppo.env)
        if isinstance(simulator, SimulatorAdapter):
            simulator.random_episode_lengths = at_random
        if ppo.collector.obs is None:
            ppo.reset_envs()
        elif isinstance(simulator, SimulatorAdapter):
            simulator.stagger(randomness.mix(ranks.own_seed(self.config.seed), f"ages/{ppo.iteration}"))

    def _export(self, path: str, filename: str, format: Any) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        segments = self.config.env.segments or None
        export_policy(self.alg.ppo.policy, Path(path) / filename, format, self.config.env.id, segments)

    def _save_model(self, folder: Path) -> None:
        self.save(str(folder / f"model_{self.current_learning_iteration}.pt"))

    def _write_diffs(self, folder: Path) -> None:
        for file in self.git_repositories:
            found = git_diff(Path(file).parent)
            if found is not None:
                name, text = found
                (folder / "git").mkdir(exist_ok=True)
                (folder / "git" / f"{name}.diff").write_text(text)


class Algorithm:
    """What scripts ask of `runner.alg`: the policy and the learning rate."""

    def __init__(self, ppo: PPO) -> None:
        self.ppo = ppo

    @property
    def policy(self) -> Policy:
        """The actor-critic."""
        return self.ppo.policy

    def get_policy(self) -> Policy:
        """The actor-critic."""
        return self.ppo.policy

    @property
    def learning_rate(self) -> float:
        """The current learning rate."""
        return float(self.ppo.optimizer.learning_rate.value)


class InferencePolicy(nn.Module):
    """A policy that acts deterministically on a simulator's own observations `[N]`, and remembers between calls."""

    def __init__(self, policy: Policy, env: VecEnv) -> None:
        super().__init__()
        self.policy = policy
        self.state: Tensor | None = None
        assert isinstance(env, _Observes)
        self.observed = env.observed

    def forward(self, obs: Any) -> Tensor:
        """The actions `[N, A]`."""
        seen = self.observed(obs).to(self.policy.device)
        if self.state is not None and len(self.state) != len(seen):
            self.state = None
        action, self.state = self.policy.act(seen, self.state)
        return action

    def reset(self, dones: Tensor | None = None) -> None:
        """Forget everything, or where episodes are done `[N]`."""
        if self.state is not None:
            self.state = None if dones is None else self.state * (dones.view(-1, 1) == 0)


class _Saving(Logger):
    """Saves the model after every `save_interval`-th iteration through `save`, which a subclass may change."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        self.runner, self.folder = runner, folder

    def log(self, step: int, metrics: Row) -> None:
        """After an iteration."""
        if self.runner.current_learning_iteration % self.runner._save_interval == 0:
            self.runner._save_model(self.folder)


def _with_iterations(train_cfg: Any) -> Any:
    """The configuration with a number of iterations, which `learn` says."""
    if "max_iterations" in (plain := Block(train_cfg, "", []).left) or "runner" in plain:
        return train_cfg
    return {**plain, "max_iterations": 1}
