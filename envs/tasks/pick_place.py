"""Pick up a cube from a table and place it in either of two bins, with a six-joint arm and a parallel gripper.

Either bin is correct, so demonstrations have two modes, and their average ends between the bins. Grasping is physical: only
the friction of two finger pads holds the cube. Physics runs at 400 Hz, control at 20 Hz.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError, SimulationError
from flowchunk.datasets.rotations import matrix_from_rotation_6d, rotation_6d_from_matrix
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.arguments import require_one_of
from flowchunk.envs.episode_outcome import EpisodeOutcome
from flowchunk.envs.kinematics import Kinematics, Pose
from flowchunk.envs.mujoco_import import mujoco
from flowchunk.envs.rendering import OffscreenRenderer, project_to_pixels
from flowchunk.envs.spaces import action_space, checked_action, observation_space, within_bounds
from flowchunk.envs.stability import require_stable

ActionKind = Literal["joint_position", "end_effector_pose"]
ObservationKind = Literal["state", "image"]

CONTROL_HZ = 20
JOINTS = ("base_yaw", "shoulder_pitch", "elbow_pitch", "forearm_roll", "wrist_pitch", "wrist_roll")
ROTATION_6D = ("x_axis_x", "x_axis_y", "x_axis_z", "y_axis_x", "y_axis_y", "y_axis_z")
BINS = ("bin_0", "bin_1")

CUBE_SIZE = 0.035
CUBE_AREA = ((0.15, 0.25), (-0.10, 0.10))  # m, x and y of the cube's center at the start
WORKSPACE = ((-0.10, 0.35), (-0.35, 0.35), (0.0, 0.35))  # m, x, y and z of end-effector targets
MAX_OPENING = 0.07  # m
CAMERAS = ("front", "wrist")
IMAGE_SIZE = 96  # px

VALUE_LIMIT = 10.0  # m or rad; floor and table friction keep every observed value far below

_BIN_INNER_HALF_WIDTH = 0.049  # m
_BIN_HEIGHT = 0.04  # m
_REACHED_DISTANCE = 0.02  # m
_LIFTED_HEIGHT = 0.03  # m, of the cube's center above its resting height on the table
_RESTING_SPEED = 0.02  # m/s
_RESTING_SPIN = 0.5  # rad/s
_SETTLING_TIME = 0.1  # s
_AT_HOME = 0.05  # rad
_REACHED, _GRASPED, _LIFTED, _PLACED = 1, 2, 3, 4


class PickPlace(gym.Env[dict[str, Any], NDArray[Any]]):
    """A cube on a table, an arm, and two bins, either of which is correct.

    Observation: "state" is ``state`` (19,) float32: six joint positions (rad), gripper opening (m), end-effector
    position (m), cube position (m), and the cube's rotation as rotation_6d; positions are in the world frame. "image"
    is what a real robot could measure: ``front_image`` and ``wrist_image`` (96, 96, 3) uint8, and ``proprioception`` (16,)
    float32: like ``state`` up to the end-effector position, followed by the end effector's rotation as rotation_6d.

    Action: absolute targets, float32, clipped to the bounds of ``action_spec``. "joint_position" (7,): six joint
    positions (rad) and the gripper opening (m). "end_effector_pose" (10,): position (m), rotation_6d and the gripper
    opening (m), converted to joint targets by damped least squares, starting at the previous targets.

    Reward: the score in [0, 1], 0.25 for each of reached, grasped, lifted and placed, best so far in the episode.
    Placed (at rest in a bin and released) is success and terminates the episode, but further steps are allowed. ``info``
    holds ``is_success`` (now or earlier), ``score`` and ``bin`` (0 or 1, the bin of the first placement, else -1).

    observation: "state" or "image". action: "joint_position" or "end_effector_pose". render_mode: None or "rgb_array".
    render_size: (height, width) in pixels of what ``render`` returns. Raises ConfigurationError for other values, and
    SimulationError for "image" if rendering is not possible.
    """

    action_space: gym.spaces.Box
    observation_space: gym.spaces.Dict
    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - Gymnasium's declaration

    def __init__(
        self,
        *,
        observation: ObservationKind = "state",
        action: ActionKind = "joint_position",
        render_mode: str | None = None,
        render_size: tuple[int, int] = (480, 640),
    ) -> None:
        require_one_of("observation", observation, get_args(ObservationKind))
        require_one_of("action", action, get_args(ActionKind))
        require_one_of("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        if not isinstance(render_size, Sequence) or len(render_size) != 2 or min(render_size) < 1:
            raise ConfigurationError(f"render_size: expected (height, width) in pixels, got {render_size}")
        self.observation_kind = observation
        self.action_kind = action
        self.render_mode = render_mode
        self._render_size = render_size
        self._renderer: OffscreenRenderer | None = None

        self.model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_suffix(".xml")))
        self.data = mujoco.MjData(self.model)
        self.kinematics = Kinematics(self.model, site="end_effector", joints=JOINTS)
        self._joint_indices = np.array([self.model.joint(name).qposadr[0] for name in JOINTS])
        self._cube_geom = self.model.geom("cube").id
        self._finger_geoms = [self.model.geom(name).id for name in ("left_pad", "right_pad")]
        self._bin_positions = np.array([self.model.body(name).pos for name in BINS])
        self._substeps = round(1 / (CONTROL_HZ * self.model.opt.timestep))
        self._outcome = EpisodeOutcome()
        self._placed_in = -1

        self.action_space = action_space(self.action_spec)
        self.observation_space = observation_space(self.observation_spec, low=-VALUE_LIMIT, high=VALUE_LIMIT)
        # Created here, so that a machine that cannot render fails at once.
        self._cameras = (
            OffscreenRenderer(self.model, height=IMAGE_SIZE, width=IMAGE_SIZE) if observation == "image" else None
        )

    # Specifications

    @cached_property
    def observation_spec(self) -> ObservationSpec:
        """Names and units of the observation."""
        arm = (*JOINTS, "gripper_opening", *(f"end_effector_{axis}" for axis in "xyz"))
        arm_units = ("rad",) * 6 + ("m",) * 4
        if self.observation_kind == "state":
            names = (*arm, *(f"cube_{axis}" for axis in "xyz"), *(f"cube_{name}" for name in ROTATION_6D))
            return ObservationSpec({"state": ObservationField((19,), names, (*arm_units, *("m",) * 3, *("1",) * 6))})
        names = (*arm, *(f"end_effector_{name}" for name in ROTATION_6D))
        return ObservationSpec(
            {
                **{f"{name}_image": ObservationField((IMAGE_SIZE, IMAGE_SIZE, 3), camera=name) for name in CAMERAS},
                "proprioception": ObservationField((16,), names, (*arm_units, *("1",) * 6)),
            }
        )

    @cached_property
    def action_spec(self) -> ActionSpec:
        """Names, units, coordinate frames and bounds of the action."""
        gripper = ActionDimension("gripper_opening", "m", "gripper", low=0.0, high=MAX_OPENING)
        if self.action_kind == "joint_position":
            ranges = [self.model.joint(name).range for name in JOINTS]
            arm = [
                ActionDimension(name, "rad", "joint", low=float(low), high=float(high))
                for name, (low, high) in zip(JOINTS, ranges, strict=True)
            ]
        else:
            arm = [
                *(
                    ActionDimension(f"end_effector_{axis}", "m", "world", low=low, high=high)
                    for axis, (low, high) in zip("xyz", WORKSPACE, strict=True)
                ),
                *(
                    ActionDimension(f"end_effector_{name}", "1", "world", rotation="rotation_6d", low=-1.0, high=1.0)
                    for name in ROTATION_6D
                ),
            ]
        return ActionSpec((*arm, gripper), CONTROL_HZ)

    # Physical quantities

    def joint_positions(self) -> NDArray[np.float64]:
        """(6,), radians."""
        return np.array(self.data.qpos[self._joint_indices])

    def joint_targets(self) -> NDArray[np.float64]:
        """(6,), radians: the current targets of the joints' servos."""
        return np.array(self.data.ctrl[: len(JOINTS)])

    def gripper_opening(self) -> float:
        """Distance between the finger pads in meters, 0 to 0.07."""
        return float(self.data.joint("left_finger").qpos[0] + self.data.joint("right_finger").qpos[0])

    def end_effector_position(self) -> NDArray[np.float64]:
        """(3,), meters: the point between the finger pads."""
        return np.array(self.data.site("end_effector").xpos)

    def end_effector_rotation(self) -> NDArray[np.float64]:
        """(3, 3), rotation matrix: x points out of the hand, the fingers slide along y."""
        return np.array(self.data.site("end_effector").xmat).reshape(3, 3)

    def cube_position(self) -> NDArray[np.float64]:
        """(3,), meters: the cube's center."""
        return np.array(self.data.body("cube").xpos)

    def cube_rotation(self) -> NDArray[np.float64]:
        """(3, 3): the cube's rotation matrix."""
        return np.array(self.data.body("cube").xmat).reshape(3, 3)

    def cube_is_at_rest(self) -> bool:
        """Whether the cube neither translates nor rotates."""
        velocity = self.data.joint("cube").qvel
        return bool(np.linalg.norm(velocity[:3]) < _RESTING_SPEED and np.linalg.norm(velocity[3:]) < _RESTING_SPIN)

    def cube_in_bin(self) -> int:
        """The index of the bin that contains the cube's center, or -1."""
        x, y, z = self.cube_position()
        offsets = np.abs(self._bin_positions[:, :2] - (x, y)).max(axis=1)
        inside = (offsets < _BIN_INNER_HALF_WIDTH) & (0 < z < _BIN_HEIGHT)
        return int(inside.argmax()) if inside.any() else -1

    def bin_position(self, index: int) -> NDArray[np.float64]:
        """(3,), meters: the center of a bin's floor."""
        return np.array(self._bin_positions[index])

    def fingers_touching_cube(self) -> int:
        """How many of the two finger pads touch the cube."""
        pairs = self.data.contact.geom
        at_cube = pairs[(pairs == self._cube_geom).any(axis=1)]
        return sum(bool((at_cube == finger).any()) for finger in self._finger_geoms)

    def is_grasped(self) -> bool:
        """Whether both finger pads touch the cube."""
        return self.fingers_touching_cube() == 2

    def is_placed(self) -> bool:
        """Whether the cube is at rest in a bin, released by the fingers."""
        return self.cube_in_bin() >= 0 and self.cube_is_at_rest() and self.fingers_touching_cube() == 0

    def hold_action(self) -> NDArray[np.float64]:
        """The action, (7,) or (10,), that keeps the arm where it is and the fingers at their current targets.

        The arm's servos only stay still at the measured positions, but the fingers grip an object because their target is
        narrower than it: the measured opening would drop it.
        """
        opening = [float(self.data.ctrl[len(JOINTS)])]
        if self.action_kind == "joint_position":
            return within_bounds(np.concatenate((self.joint_positions(), opening)), self.action_spec)
        rotation = rotation_6d_from_matrix(self.end_effector_rotation())
        pose = np.concatenate((self.end_effector_position(), rotation, opening))
        return within_bounds(pose, self.action_spec)

    # Episode

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode: the arm in its home position, the cube at rest at a random place on its mat.

        options: ``cube_pose`` is [x, y, yaw] (m, m, rad) instead of a random one, with x in [0.15, 0.25] and y in
        [-0.1, 0.1]. Raises ConfigurationError for any other option or pose.
        """
        super().reset(seed=seed)
        cube_pose = self._cube_pose(options or {})
        mujoco.mj_resetDataKeyframe(self.model, self.data, self.model.key("home").id)
        self._place_cube(*cube_pose)
        mujoco.mj_step(self.model, self.data, nstep=round(_SETTLING_TIME / self.model.opt.timestep))
        self._update_poses()
        self._outcome = EpisodeOutcome()
        self._placed_in = -1
        self._update_score()
        return self._observation(), self._info()

    def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Execute an action for a control period of 50 ms, interpolating the servos' targets linearly.

        action: (7,) or (10,), see the class. Raises SimulationError for a wrong shape, for numbers that are not finite
        or not a rotation, and if the physics becomes unstable.
        """
        servo_targets = self.data.ctrl
        checked = checked_action(action, self.action_spec, self.action_space)
        before, after = servo_targets.copy(), self._servo_targets(checked)
        for targets in np.linspace(before, after, self._substeps + 1)[1:]:
            servo_targets[:] = targets
            mujoco.mj_step(self.model, self.data)
        require_stable(self.data)
        self._update_poses()
        self._update_score()
        return self._observation(), self._outcome.score, self._outcome.is_success, False, self._info()

    def _cube_pose(self, options: Mapping[str, Any]) -> NDArray[np.float64]:
        (low_x, high_x), (low_y, high_y) = CUBE_AREA
        if not options:
            # A cube is symmetric under quarter turns, so this range covers all of its orientations.
            return self.np_random.uniform((low_x, low_y, -np.pi / 4), (high_x, high_y, np.pi / 4))
        if unknown := set(options) - {"cube_pose"}:
            raise ConfigurationError(f'options: expected none but "cube_pose", got {sorted(unknown)}; remove these')
        try:
            cube_pose = np.array(options["cube_pose"], dtype=np.float64)
        except (TypeError, ValueError):
            cube_pose = np.array([])
        if (
            cube_pose.shape == (3,)
            and np.isfinite(cube_pose).all()
            and low_x <= cube_pose[0] <= high_x
            and low_y <= cube_pose[1] <= high_y
        ):
            return cube_pose
        raise ConfigurationError(
            f'options["cube_pose"]: expected [x, y, yaw] with x in {CUBE_AREA[0]} m, y in {CUBE_AREA[1]} m and a finite '
            f"yaw in radians, got {options['cube_pose']!r}"
        )

    def start_options(self, source: EpisodeSource, episode: int) -> dict[str, Any]:
        """The options of ``reset`` with which a recorded episode starts again; the arm's home is where episodes start.

        Raises DatasetError without states, and if the recorded arm was not at home.
        """
        if "state" not in source.keys:
            raise DatasetError(
                f"{source.path} stores no state, from which an episode could start again; use data of task=pickplace_state"
            )
        first = int(source.episode_starts[episode])
        state = source.read("state", first, first + 1)[0].astype(np.float64)
        home = self.model.key("home").qpos[self._joint_indices]
        if (distance := np.abs(state[: len(JOINTS)] - home).max()) > _AT_HOME:
            raise DatasetError(
                f"episode {episode} of {source.path} starts {distance:.2f} rad from the arm's home, where resets put it; "
                "leave it out"
            )
        x_axis = matrix_from_rotation_6d(state[13:19])[:, 0]
        position = np.clip(state[10:12], *np.transpose(CUBE_AREA))  # which rounding may have left
        return {"cube_pose": [*position, np.arctan2(x_axis[1], x_axis[0])]}

    def _place_cube(self, x: float, y: float, yaw: float) -> None:
        quaternion = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.data.joint("cube").qpos[:] = (x, y, CUBE_SIZE / 2, *quaternion)

    def _servo_targets(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.action_kind == "joint_position":
            return action
        try:
            pose = Pose(action[:3], matrix_from_rotation_6d(action[3:9]))
        except ConfigurationError as error:
            raise SimulationError(f"action: expected a rotation in action[3:9], got {action}: {error}") from error
        return np.append(self.kinematics.inverse(pose, self.joint_targets()), action[9])

    def _update_poses(self) -> None:
        """Update the poses of bodies and cameras, which mj_step leaves one substep behind."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    # Observation, score and info

    def _observation(self) -> dict[str, NDArray[Any]]:
        arm = (self.joint_positions(), [self.gripper_opening()], self.end_effector_position())
        if self._cameras is None:
            state = (*arm, self.cube_position(), rotation_6d_from_matrix(self.cube_rotation()))
            return {"state": np.concatenate(state, dtype=np.float32)}
        proprioception = (*arm, rotation_6d_from_matrix(self.end_effector_rotation()))
        return {
            **{f"{name}_image": self._cameras.render(self.data, camera=name) for name in CAMERAS},
            "proprioception": np.concatenate(proprioception, dtype=np.float32),
        }

    def _stage(self) -> int:
        if self.is_placed():
            return _PLACED
        if self.is_grasped():
            return _LIFTED if self.cube_position()[2] > CUBE_SIZE / 2 + _LIFTED_HEIGHT else _GRASPED
        distance = np.linalg.norm(self.end_effector_position() - self.cube_position())
        return _REACHED if distance < _REACHED_DISTANCE else 0

    def _update_score(self) -> None:
        stage = self._stage()
        self._outcome.update(stage / _PLACED, is_success=stage == _PLACED)
        if self._outcome.is_success and self._placed_in < 0:
            self._placed_in = self.cube_in_bin()

    def _info(self) -> dict[str, Any]:
        return {**self._outcome.as_info(), "bin": self._placed_in}

    # Images

    def render(self) -> NDArray[np.uint8]:
        """The front camera's image: (height, width, 3), uint8.

        Raises SimulationError without ``render_mode="rgb_array"``, and if rendering is not possible.
        """
        if self.render_mode is None:
            raise SimulationError("expected render_mode='rgb_array', got None; create the environment with that mode")
        if self._renderer is None:
            height, width = self._render_size
            self._renderer = OffscreenRenderer(self.model, height=height, width=width)
        return self._renderer.render(self.data, camera="front")

    def chunk_to_pixels(self, chunk: NDArray[np.floating]) -> NDArray[np.float64]:
        """Project the end-effector path that a chunk of actions commands into the image of ``render``.

        chunk: (H, D), actions of this environment's kind. Returns (H, 2) in pixels, x to the right, y down. Raises
        SimulationError for any other shape.
        """
        chunk = np.asarray(chunk, dtype=np.float64)
        if chunk.ndim != 2 or chunk.shape[1] != self.action_spec.size:
            raise SimulationError(f"chunk: expected a chunk of shape (H, {self.action_spec.size}), got {chunk.shape}")
        if self.action_kind == "joint_position":
            positions = np.array([self.kinematics.forward(action[: len(JOINTS)]).position for action in chunk])
        else:
            positions = chunk[:, :3]
        height, width = self._render_size
        return project_to_pixels(self.model, self.data, positions, camera="front", height=height, width=width)

    def close(self) -> None:
        """Release the OpenGL contexts, if there are any; may be called more than once."""
        for renderer in (self._renderer, self._cameras):
            if renderer is not None:
                renderer.close()
