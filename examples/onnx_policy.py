"""Drive an environment with an exported policy: onnxruntime and gymnasium, no understudy, no torch.

understudy train mujoco --env.id Hopper-v5 --run-dir runs/hopper
understudy export runs/hopper --output hopper.onnx
python examples/onnx_policy.py hopper.onnx --env Hopper-v5

A policy that was trained on segments of a flat observation (`understudy train tppo`, say) gets the same segments here.
"""

import argparse
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime


class OnnxPolicy:
    """An exported policy: remembers its state from step to step, as a robot has to."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["understudy"])
        self.reset()

    def reset(self) -> None:
        """Call this where an episode begins."""
        self.state = np.zeros((1, self.about["state_size"]), np.float32)

    def __call__(self, observation: dict) -> np.ndarray:
        """The action for one observation, groups and components as the policy was trained with."""
        inputs = {}
        for entry in self.about["observations"]:
            value = self.cut(entry["group"], observation[entry["group"]])
            value = value if entry["component"] is None else value[entry["component"]]
            inputs[entry["name"]] = np.asarray(value, entry["dtype"]).reshape(1, *entry["shape"])
        if not self.about["state_size"]:
            return self.session.run(["action"], inputs)[0][0]
        action, self.state = self.session.run(["action", "state_out"], {**inputs, "state_in": self.state})
        return action[0]

    def cut(self, group: str, value: np.ndarray | dict) -> np.ndarray | dict:
        """A flat vector's segments by name, where the policy was trained on such."""
        sizes = self.about["segments"].get(group)
        if sizes is None:
            return value
        return dict(zip(sizes, np.split(value, np.cumsum([*sizes.values()])[:-1])))


def main(path: Path, env_id: str, episodes: int = 5, seed: int = 0) -> list[float]:
    """Returns of some episodes."""
    policy, env = OnnxPolicy(path), gym.make(env_id)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        policy.reset()
        total, over = 0.0, False
        while not over:
            # a plain observation is the group "policy"
            observation, reward, terminated, truncated, _ = env.step(policy({"policy": observation}))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--env", required=True)
    chosen = parser.parse_args()
    print("returns:", main(chosen.path, chosen.env))
