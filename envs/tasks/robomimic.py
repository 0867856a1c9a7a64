"""robosuite's manipulation tasks as robomimic uses them (2108.03298): Lift, Can, Square, and others by their data.

The packages need an older MuJoCo, so they need an environment of its own: see docs/guides/other-tasks.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError, SimulationError
from flowchunk.datasets.formats.robomimic import RobomimicSource
from flowchunk.datasets.rotations import convert_rotation
from flowchunk.envs.arguments import require_one_of
from flowchunk.envs.episode_outcome import EpisodeOutcome
from flowchunk.envs.rendering import project_to_pixels
from flowchunk.envs.spaces import action_space, checked_action, observation_space
from flowchunk.envs.stability import require_stable
from flowchunk.envs.tasks.robomimic_arguments import ENV_NAMES, ROBOSUITE_TYPE, EnvArguments
from flowchunk.envs.tasks.robomimic_import import import_robosuite, make_robosuite, seeded_numpy
from flowchunk.envs.tasks.robomimic_specs import action_spec, observation_spec

LOG = logging.getLogger(__name__)
CAMERAS = ("agentview", "robot0_eye_in_hand")
ROTATIONS = ("axis_angle", "rotation_6d")
VIEW = "agentview"
RESETS_PER_COLLECTION = 16
VALUE_LIMIT = 100.0  # of observations, in meters; objects may fall off the table


class Robomimic(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A task of robosuite with one arm and the controller OSC_POSE, through robomimic's own environment.

    Observation: "state" for robomimic's low-dimensional keys, float32: ``object``, the poses of the objects, and of the robot
    ``robot0_eef_pos`` (3,) in m, ``robot0_eef_quat`` (4,) xyzw and ``robot0_gripper_qpos`` (2,) in m; "image" for
    ``CAMERA_image`` (height, width, 3) uint8 in place of ``object``. Action: displacement of the end effector, -1 to 1, (7,)
    with the closing of the gripper, or its absolute pose (m, rotation), (7,) or (10,).

    Reward: robosuite's shaped one; the score is the best so far, in [0, 1]. Success is robosuite's own and terminates.

    name: lift, can or square; by default that of the file, or lift. path: an HDF5 file of robomimic whose ``env_args`` the
    environment is made with, instead of robomimic's usual ones; robosuite's own demonstrations have them, too. cameras,
    image_size: of images, (height, width) in pixels. action: "delta" or "absolute", by default as in the file. rotation: of
    absolute actions, "axis_angle" (rad) as in robomimic's files, or "rotation_6d". render_mode: None or "rgb_array".

    Raises ConfigurationError for other values, if the environment cannot be made, and without the extra ``robomimic``;
    DatasetError if the file has no arguments of an environment, or those of another task. Logs a warning if it was
    recorded with another version of robosuite.
    """

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Box
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's declaration

    def __init__(
        self,
        *,
        name: str | None = None,
        path: str | Path | None = None,
        observation: str = "state",
        cameras: Sequence[str] = CAMERAS,
        image_size: tuple[int, int] = (84, 84),
        action: str | None = None,
        rotation: str = "axis_angle",
        render_mode: str | None = None,
        render_size: tuple[int, int] = (256, 256),
    ) -> None:
        require_one_of("name", name, (None, *ENV_NAMES))
        require_one_of("observation", observation, ("state", "image"))
        require_one_of("action", action, (None, "delta", "absolute"))
        require_one_of("rotation", rotation, ROTATIONS)
        require_one_of("render_mode", render_mode, (None, "rgb_array"))
        for option, size in (("image_size", image_size), ("render_size", render_size)):
            if len(size) != 2 or min(size) < 1:
                raise ConfigurationError(f"{option}: expected [height, width] in pixels, got {size}")
        installed = str(import_robosuite().__version__)
        arguments = _arguments(name, path, installed)
        self._arguments = arguments.with_absolute_actions(
            arguments.is_absolute if action is None else action == "absolute"
        )
        if not self._arguments.is_absolute and rotation != ROTATIONS[0]:
            raise ConfigurationError(
                f"rotation={rotation} is of absolute actions; give action=absolute, or leave it out"
            )
        self._version, self._rotation, self.render_mode = installed, rotation, render_mode
        self._render_size, self._outcome, self._resets = (int(render_size[0]), int(render_size[1])), EpisodeOutcome(), 0
        self._restored_model: str | None = None
        size = (int(image_size[0]), int(image_size[1]))
        names = list(cameras) if observation == "image" else []
        self._is_rendered = bool(names) or render_mode is not None
        with seeded_numpy(np.random.default_rng(0)):
            self._env = make_robosuite(self._made_with(names, size), cameras=names, is_rendered=self._is_rendered)
            self._env.reset()  # sensors do not know their sizes before
        self.observation_spec = observation_spec(self.inner, names, size)
        hz = self._arguments.control_hz
        self.action_spec = action_spec(
            is_absolute=self._arguments.is_absolute,
            rotation=rotation,
            has_gripper=self._env.action_dimension == 7,
            control_hz=hz,
        )
        self.observation_space = observation_space(self.observation_spec, low=-VALUE_LIMIT, high=VALUE_LIMIT)
        self.action_space = action_space(self.action_spec)
        self.metadata = {**self.metadata, "render_fps": hz}

    @property
    def inner(self) -> Any:
        """robosuite's environment."""
        return self._env.env

    @property
    def env_args(self) -> dict[str, Any]:
        """What robomimic makes the same environment with; it stands in its data sets."""
        return {
            "env_name": self._arguments.env_name,
            "env_version": self._version,
            "type": ROBOSUITE_TYPE,
            "env_kwargs": dict(self._arguments.kwargs),
        }

    def _made_with(self, cameras: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
        images = {"camera_names": list(cameras) or [VIEW], "camera_heights": size[0], "camera_widths": size[1]}
        return {**self.env_args, "env_kwargs": {**self._arguments.kwargs, **images, "reward_shaping": True}}

    # Start of an episode

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode, at random or where a demonstration did: options {"states": (n,), "model": XML, or absent}.

        Raises ConfigurationError for other options, SimulationError if the demonstration's start cannot be restored.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := options.keys() - {"states", "model"}:
            raise ConfigurationError(f"options: expected states and model, got {sorted(unknown)}; remove these")
        self._drop_simulation()
        self._restored_model = str(options["model"]) if "model" in options else None
        with seeded_numpy(self.np_random):
            observation = self._restore(options) if options else self._env.reset()
        self._outcome = EpisodeOutcome()
        self._update_outcome(self.inner.reward(None))
        return self._observe(observation), self._outcome.as_info()

    def _drop_simulation(self) -> None:
        """Let go of the last episode's simulation, because robosuite collects all garbage of the process to do so.

        This takes longer than the rest of a reset, so it is left to robosuite only now and then.
        """
        self._resets += 1
        if self._resets % RESETS_PER_COLLECTION and not self._is_rendered:
            self.inner.sim = None

    def _restore(self, options: Mapping[str, Any]) -> Any:
        model, states = self._restored_model, np.asarray(options.get("states", ()), np.float64)
        self._env.reset()
        try:
            if model is not None:
                self._env.reset_to({"model": model})
        except Exception as error:  # robosuite and MuJoCo raise all kinds for models of other versions
            raise SimulationError(
                f"the model of the demonstration cannot be restored with robosuite {self._version} "
                f"({type(error).__name__}: {error}); use the version that recorded it"
            ) from error
        expected = 1 + self.data.qpos.size + self.data.qvel.size
        if states.shape != (expected,):
            raise SimulationError(
                f"states: expected {expected} numbers in {self._arguments.env_name} (time, positions, velocities), got "
                f"{states.shape}; the demonstration is of another model of robot and objects"
            )
        observation = self._env.reset_to({"states": states})
        robot = self.inner.robots[
            0
        ]  # whose redundant joint tends to where the episode started, which robosuite forgets
        robot.controller.update_initial_joints(self.data.qpos[robot._ref_joint_pos_indexes])
        return observation

    # Step

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """A control period with an action (D,), clipped to its bounds; success terminates, and further steps are allowed.

        Raises SimulationError for a wrong shape, for numbers that are not finite or no rotation, and if the physics becomes
        unstable.
        """
        checked = self._to_axis_angle(checked_action(action, self.action_spec, self.action_space))
        observation, reward, _, _ = self._env.step(checked)
        require_stable(self.data)
        self._update_outcome(reward)
        return self._observe(observation), float(reward), self._outcome.is_success, False, self._outcome.as_info()

    @property
    def data(self) -> Any:
        """MuJoCo's data of the simulation."""
        return self.inner.sim.data._data

    def hand_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) in m and rotation (3, 3) of the end effector as the controller has them.

        The rotation of ``robot0_eef_quat`` is that of another body, a quarter turn away.
        """
        site = self.inner.robots[0].eef_site_id
        return self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy()

    def hold_action(self) -> np.ndarray:
        """The action (D,) that keeps the end effector and the gripper where they are."""
        if not self._arguments.is_absolute:
            return np.zeros(self.action_spec.size)
        position, matrix = self.hand_pose()
        rotation = convert_rotation(matrix, "matrix", self._rotation)
        return np.concatenate([position, rotation, np.zeros(self.action_spec.size - 3 - len(rotation))])

    def _to_axis_angle(self, action: np.ndarray) -> np.ndarray:
        if not self._arguments.is_absolute or self._rotation == "axis_angle":
            return action
        try:
            rotation = convert_rotation(action[3:9], self._rotation, "axis_angle")
        except ConfigurationError as error:
            raise SimulationError(f"action: expected a rotation in action[3:9], got {action}: {error}") from error
        return np.concatenate([action[:3], rotation, action[9:]])

    def _update_outcome(self, reward: float) -> None:
        is_success = bool(self._env.is_success()["task"])
        self._outcome.update(1.0 if is_success else float(np.clip(reward, 0, 1)), is_success=is_success)

    def _observe(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            key: np.array(observation[key], np.uint8 if field.is_image else np.float32)
            for key, field in self.observation_spec.fields.items()
        }

    # Demonstrations

    def simulation_state(self) -> np.ndarray:
        """Time, positions and velocities (n,), from which robomimic restores a moment of an episode."""
        return np.array(self.inner.sim.get_state().flatten())

    def model_xml(self) -> str:
        """The model of this episode, as MuJoCo's XML: the very text that it was made from, which MuJoCo's own is not."""
        return str(self.inner.model.get_xml()) if self._restored_model is None else self._restored_model

    def start_options(self, source: EpisodeSource, episode: int) -> dict[str, Any]:
        """The options of ``reset`` with which a recorded episode starts again. Raises DatasetError if it stores no states."""
        demo: Any = source.file["data"][source.demos[episode]] if isinstance(source, RobomimicSource) else {}
        if "states" not in demo:
            raise DatasetError(
                f"{source.path} stores no states of the simulation, so its episodes cannot be started again; use the HDF5 "
                "file that was recorded"
            )
        xml = str(demo.attrs.get("model_file", ""))
        return {"states": demo["states"][0], **({"model": xml} if xml.lstrip().startswith("<") else {})}

    def check_recordings(self, source: EpisodeSource) -> None:
        """Raise an error if a data set of robomimic was recorded in another environment; warn if in another version of it.

        Raises DatasetError for another task or without ``env_args``, ConfigurationError for another controller.
        """
        if not isinstance(source, RobomimicSource) or source.action_spec is not None:  # its specifications are compared
            return
        found = EnvArguments.of_attributes(source.file["data"].attrs, source.path)
        _require_same_task(found, self._arguments.env_name)
        if (found.is_absolute, found.control_hz) != (self._arguments.is_absolute, self._arguments.control_hz):
            raise ConfigurationError(
                f"{source.path} was recorded with {'absolute' if found.is_absolute else 'delta'} actions at "
                f"{found.control_hz:g} Hz, and not as this environment is controlled; give env.path={source.path}"
            )
        _warn(found, self._version)

    # Images

    def render(self) -> np.ndarray:
        """The view on the table, (height, width, 3) uint8. Raises SimulationError without ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            raise SimulationError("expected render_mode='rgb_array', got None; create the environment with that mode")
        height, width = self._render_size
        return np.array(self._env.render("rgb_array", height=height, width=width, camera_name=VIEW))

    def chunk_to_pixels(self, chunk: np.ndarray) -> np.ndarray:
        """The end effector's path that a chunk (H, D) commands, (H, 2) pixels in the image of ``render``."""
        chunk = np.asarray(chunk, np.float64)
        if chunk.ndim != 2 or chunk.shape[1] != self.action_spec.size:
            raise SimulationError(f"chunk: expected a chunk of shape (H, {self.action_spec.size}), got {chunk.shape}")
        positions = chunk[:, :3]
        if not self._arguments.is_absolute:
            largest = np.asarray(self._arguments.controller["output_max"])[:3]
            positions = self.hand_pose()[0] + np.cumsum(positions.clip(-1, 1) * largest, axis=0)
        height, width = self._render_size
        model = self.inner.sim.model._model
        return project_to_pixels(model, self.data, positions, camera=VIEW, height=height, width=width)

    def close(self) -> None:
        """Release the simulation; may be called more than once."""
        if self.inner.sim is not None:
            self.inner.close()


def _arguments(name: str | None, path: str | Path | None, installed: str) -> EnvArguments:
    if path is None:
        return EnvArguments.default(name or "lift")
    found = EnvArguments.read(Path(path).expanduser())
    if name is not None:
        _require_same_task(found, ENV_NAMES[name])
    _warn(found, installed)
    return found


def _require_same_task(found: EnvArguments, env_name: str) -> None:
    if found.env_name != env_name:
        tasks = {robosuite_name: f"task=robomimic/{name}" for name, robosuite_name in ENV_NAMES.items()}
        raise DatasetError(
            f"{found.origin} was recorded in {found.env_name}, but the environment is {env_name}; use "
            f"{tasks.get(found.env_name, f'task=robomimic env.path={found.origin}')}"
        )


def _warn(found: EnvArguments, installed: str) -> None:
    if (text := found.version_warning(installed)) is not None:
        _warn_once(text)


@cache
def _warn_once(text: str) -> None:
    """Log a warning, although there may be many environments."""
    LOG.warning(text)
