"""Drive a legged robot in plain MuJoCo with an exported policy: onnxruntime and MuJoCo, no understudy, no torch.

understudy train ppo --env.id mjlab:Mjlab-Velocity-Flat-Unitree-Go1 --run-dir runs/go1
understudy export runs/go1 --output go1.onnx
python examples/deploy_in_mujoco.py go1.onnx --robot go1.xml --command 0.5 0 0 --film go1.mp4

All numbers come from the file: which joints in which order, their gains, how an action becomes a joint position, which
terms make an observation. The robot's MJCF has its bodies (mjlab: asset_zoo/robots/unitree_go1/xmls/go1.xml).
"""

import argparse
from collections import deque
from pathlib import Path

import mujoco
import numpy as np
import onnxruntime


class Contract:
    """What the file says of the robot, by mjlab's keys."""

    def __init__(self, told: dict[str, str]) -> None:
        if "joint_names" not in told:
            raise SystemExit("the file tells nothing of a robot: export with --robot FILE, or from a run in mjlab")
        self.joints = told["joint_names"].split(",")
        self.terms = told["observation_names"].split(",")
        self.stiffness, self.damping = numbers(told["joint_stiffness"]), numbers(told["joint_damping"])
        self.default, self.scale = numbers(told["default_joint_pos"]), numbers(told["action_scale"])
        self.term_scale = [numbers(x.replace(";", ",")) for x in told["observation_terms_scale"].split(",")]
        self.term_clip = [numbers(x.replace(";", ",")) for x in told["observation_terms_clip"].split(",")]
        self.term_history = [int(x) for x in told["observation_terms_history_length"].split(",")]
        self.step_dt = float(told.get("step_dt", 0.02))
        # a robot has these by nature; a model of it may lack them
        self.physics_dt = float(told.get("physics_dt", self.step_dt / 4))
        self.armature = numbers(told["joint_armature"]) if "joint_armature" in told else None
        self.effort = numbers(told["joint_effort_limit"]) if "joint_effort_limit" in told else None
        self.root = numbers(told["default_root_pos"]) if "default_root_pos" in told else None


def numbers(text: str) -> np.ndarray:
    return np.array([float(x) for x in text.split(",")])


class Robot:
    """The robot's model on flat ground, a position servo at each joint."""

    def __init__(self, xml: Path, contract: Contract) -> None:
        spec = mujoco.MjSpec.from_file(str(xml))
        spec.option.timestep = contract.physics_dt
        spec.worldbody.add_geom(
            name="ground", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], rgba=[0.5, 0.6, 0.5, 1]
        )
        spec.worldbody.add_light(pos=[0, 0, 3], dir=[0, 0, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
        for row, name in enumerate(contract.joints):
            joint = spec.joint(name)
            if joint is None:
                known = ", ".join(x.name for x in spec.joints if x.name)
                raise SystemExit(f"{xml} has no joint {name!r}, which the policy moves; it has {known}")
            if contract.armature is not None:
                joint.armature = contract.armature[row]
            servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            servo.set_to_position(kp=contract.stiffness[row], kv=contract.damping[row])
            if contract.effort is not None:
                servo.forcerange = [-contract.effort[row], contract.effort[row]]
        self.contract, self.model = contract, spec.compile()
        self.data = mujoco.MjData(self.model)
        joints = [self.model.joint(name) for name in contract.joints]
        self.q, self.v = [x.qposadr[0] for x in joints], [x.dofadr[0] for x in joints]
        self.servos = [self.model.actuator(name).id for name in contract.joints]
        self.substeps = round(contract.step_dt / contract.physics_dt)
        self.reset()

    def reset(self) -> None:
        """The default pose, where the robot stands."""
        mujoco.mj_resetData(self.model, self.data)
        if self.contract.root is not None:
            self.data.qpos[:3] = self.contract.root
        self.data.qpos[self.q] = self.contract.default
        self.move(self.contract.default)
        mujoco.mj_forward(self.model, self.data)

    def move(self, targets: np.ndarray) -> None:
        """Command joint positions, rad."""
        self.data.ctrl[self.servos] = targets

    def step(self) -> None:
        for _ in range(self.substeps):
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)  # sensors of the state that was reached

    def gravity(self) -> np.ndarray:
        """Down, as the trunk sees it."""
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, self.data.qpos[3:7])
        return rotation.reshape(3, 3).T @ np.array([0.0, 0.0, -1.0])


class Pilot:
    """The policy: observations in its terms, actions as joint positions."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.contract = Contract(self.session.get_modelmeta().custom_metadata_map)
        self.inputs = {x.name: x.shape for x in self.session.get_inputs()}
        self.observation = next(name for name in self.inputs if name != "state_in")
        self.reset()

    def reset(self) -> None:
        """Forget the episode before."""
        self.action = np.zeros(len(self.contract.joints))
        self.past = [deque(maxlen=max(1, length)) for length in self.contract.term_history]
        self.state = np.zeros((1, self.inputs.get("state_in", (1, 0))[1]), np.float32)

    def observe(self, robot: Robot, command: np.ndarray) -> np.ndarray:
        """The observation `[D]`: each term clipped, scaled, with its history (the oldest first)."""
        data, c = robot.data, self.contract
        terms = {
            "base_lin_vel": lambda: data.sensor("imu_lin_vel").data,
            "base_ang_vel": lambda: data.sensor("imu_ang_vel").data,
            "projected_gravity": robot.gravity,
            "joint_pos": lambda: data.qpos[robot.q] - c.default,
            "joint_vel": lambda: data.qvel[robot.v],
            "actions": lambda: self.action,
            "command": lambda: command,
        }
        if unknown := [name for name in c.terms if name not in terms]:
            raise SystemExit(f"the policy observes {', '.join(unknown)}, unknown to this script: add it here")
        seen = []
        for name, scale, clip, past in zip(c.terms, c.term_scale, c.term_clip, self.past):
            past.append(np.clip(terms[name](), *clip) * scale)
            while len(past) < past.maxlen:
                past.append(past[-1])
            seen += past
        return np.concatenate(seen).astype(np.float32)

    def __call__(self, robot: Robot, command: np.ndarray) -> np.ndarray:
        """Joint positions to command, rad."""
        feed = {self.observation: self.observe(robot, command)[None]}
        if "state_in" in self.inputs:
            feed["state_in"] = self.state
        outputs = self.session.run(None, feed)
        self.action = outputs[0][0].astype(float)
        self.state = outputs[1] if len(outputs) > 1 else self.state
        return self.contract.default + self.contract.scale * self.action


def main(path: Path, xml: Path, command: tuple[float, float, float], seconds: float, film: Path | None) -> np.ndarray:
    """Drive for some seconds; the trunk's positions `[T, 3]`."""
    pilot = Pilot(path)
    robot = Robot(xml, pilot.contract)
    renderer = mujoco.Renderer(robot.model, 368, 480) if film else None
    camera = mujoco.MjvCamera()
    camera.distance, camera.elevation, camera.azimuth = 1.8, -15.0, 120.0
    pictures, trunk = [], []
    for _ in range(round(seconds / pilot.contract.step_dt)):
        robot.move(pilot(robot, np.array(command)))
        robot.step()
        trunk.append(robot.data.qpos[:3].copy())
        if renderer:
            camera.lookat = trunk[-1]
            renderer.update_scene(robot.data, camera)
            pictures.append(renderer.render())
    if film:
        import imageio.v3 as imageio

        imageio.imwrite(film, np.stack(pictures), fps=round(1 / pilot.contract.step_dt))
    return np.stack(trunk)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--robot", type=Path, required=True, help="the robot's MJCF")
    parser.add_argument("--command", type=float, nargs=3, default=(0.5, 0.0, 0.0), help="m/s, m/s, rad/s")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--film", type=Path)
    chosen = parser.parse_args()
    positions = main(chosen.path, chosen.robot, tuple(chosen.command), chosen.seconds, chosen.film)
    print(f"moved {positions[-1, :2] - positions[0, :2]} m, trunk {positions[:, 2].min():.2f} m high or more")
