"""Push-T: push a T-shaped block onto its goal with a round agent. The MuJoCo twin of the original pymunk environment.

All public quantities are in px of a 512 x 512 plane, with x to the right and y down; in MuJoCo, 1 px is 1 mm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import shapely

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.arguments import finite_numbers, require_one_of
from flowchunk.envs.episode_outcome import EpisodeOutcome
from flowchunk.envs.mujoco_import import mujoco
from flowchunk.envs.spaces import action_space, checked_action, observation_space
from flowchunk.envs.stability import require_stable
from flowchunk.envs.tasks.pusht_image import Window, has_display, render_image, to_pixels

MODEL_PATH = Path(__file__).with_name("pusht.xml")
METERS_PER_PX = 0.001
PLANE_SIZE = 512.0
MARGIN = 128.0  # px around the plane; even a block squeezed against a wall stays inside

AGENT = slice(0, 2)  # x, y in qpos and qvel
BLOCK = slice(2, 5)  # x and y of the center of mass, angle

CONTROL_HZ = 10
SERVO_PERIOD = 0.01  # s
SERVO_PERIODS_PER_STEP = round(1 / (CONTROL_HZ * SERVO_PERIOD))
SERVO_STIFFNESS = 100.0  # 1/s²
SERVO_DAMPING = 20.0  # 1/s
BLOCK_DAMPING = {0.01: 200.0, 0.005: 300.0}  # physics step (s): 1/s, makes the motion quasi-static
BLOCK_MASS_AND_INERTIA = np.array([1.0, 1.0, 0.003])  # kg, kg, kg·m²

# The block in the block's coordinate frame, px.
CENTER_OF_MASS = np.array([0.0, 45.0])
BAR = np.array([(-60.0, 0.0), (60.0, 0.0), (60.0, 30.0), (-60.0, 30.0)])
STEM = np.array([(-15.0, 30.0), (15.0, 30.0), (15.0, 120.0), (-15.0, 120.0)])
OUTLINE = np.vstack([BAR[:3], STEM[1:], STEM[:1], BAR[3:]])
AREA = 120.0 * 30.0 + 30.0 * 90.0
BOUNDING_RADIUS = float(np.linalg.norm(OUTLINE - CENTER_OF_MASS, axis=1).max())
# Fitted to the recorded keypoints of the demonstrations; agrees within 2e-5 px whenever the block is at rest.
KEYPOINTS = np.array(
    [
        (9.26979, 90.04097),
        (-60.98347, -1.18673),
        (60.91276, -1.39336),
        (-0.27050, 25.54363),
        (-14.06493, 122.81585),
        (39.00274, 32.85740),
        (-39.96641, 32.72966),
        (-16.82434, 62.86318),
        (23.54146, -1.70029),
    ]
)

SUCCESS_COVERAGE = 0.95
GOAL_POSE = (256.0, 256.0, math.pi / 4)  # x, y (px) and angle of the block, of the recordings

PX_PAIR = ("px", "px")
AGENT_FIELD = ObservationField((2,), ("agent_x", "agent_y"), PX_PAIR)
STATE_FIELD = ObservationField(
    (5,), ("agent_x", "agent_y", "block_x", "block_y", "block_angle"), (*PX_PAIR, *PX_PAIR, "rad"), wraps=(4,)
)
KEYPOINT_FIELD = ObservationField(
    KEYPOINTS.shape,
    tuple(f"keypoint_{index}_{axis}" for index in range(len(KEYPOINTS)) for axis in "xy"),
    PX_PAIR * len(KEYPOINTS),
)
BLOCK_FIELD = ObservationField((3,), ("block_x", "block_y", "block_angle"), (*PX_PAIR, "rad"), wraps=(2,))
IMAGE_SIZE = 96  # px, as in the demonstrations
IMAGE_FIELD = ObservationField((IMAGE_SIZE, IMAGE_SIZE, 3), camera="top")
OBSERVATION_SPECS = {
    "state": ObservationSpec({"state": STATE_FIELD}),
    "keypoints": ObservationSpec({"keypoints": KEYPOINT_FIELD, "agent_position": AGENT_FIELD}),
    "image": ObservationSpec({"image": IMAGE_FIELD, "agent_position": AGENT_FIELD}),
}
RECORDED_SPEC = ObservationSpec({"block_pose": BLOCK_FIELD})
"""What recordings may hold besides what is observed, for policies to estimate from images."""
ACTION_SPEC = ActionSpec(
    tuple(
        ActionDimension(name, unit="px", coordinate_frame="world", low=0.0, high=PLANE_SIZE)
        for name in ("target_x", "target_y")
    ),
    control_hz=CONTROL_HZ,
)


class PushT(gym.Env[dict[str, Any], np.ndarray]):
    """Push a T-shaped block onto its goal; an action is the agent's absolute target position, (2,) px in [0, 512].

    observation: "state" for ``state`` (5,) float32: agent x, y and block x, y in px, block angle in [0, 2π); "keypoints"
    for ``keypoints`` (9, 2) on the block and ``agent_position`` (2,), both float32 px; "image" for ``image``
    (96, 96, 3) uint8, rendered like the demonstrations' images, and ``agent_position``.
    goal_pose: x, y in px and angle in rad of the block at its goal.
    render_mode: "rgb_array" renders uint8 (render_size, render_size, 3), "human" shows the same in a window.
    physics_step: 0.01 or 0.005 s; the shorter step is slower and closer to the original.

    Raises ConfigurationError for an invalid argument, SimulationError if no window can be opened.
    """

    observation_space: gym.spaces.Dict
    action_space: gym.spaces.Box
    # Without a display, an instance removes "human" from its render modes.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": CONTROL_HZ}  # noqa: RUF012

    def __init__(
        self,
        *,
        observation: str = "state",
        goal_pose: Sequence[float] = GOAL_POSE,
        render_mode: str | None = None,
        render_size: int = 512,
        physics_step: float = 0.01,
    ) -> None:
        require_one_of("observation", observation, OBSERVATION_SPECS)
        require_one_of("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        require_one_of("physics_step", physics_step, BLOCK_DAMPING)
        if not (isinstance(render_size, int) and render_size > 0):
            raise ConfigurationError(f"render_size: expected an integer number of pixels above 0, got {render_size!r}")
        self.goal_pose = finite_numbers(goal_pose, ("x", "y", "angle"), "goal_pose", ConfigurationError)
        self._goal_outline = _placed(OUTLINE, *self.goal_pose)
        self._goal_polygon = shapely.polygons(self._goal_outline)
        self._goal_center = _placed(CENTER_OF_MASS, *self.goal_pose)

        self._model = _load_model(physics_step)
        self._data = mujoco.MjData(self._model)
        self._physics_steps_per_period = round(SERVO_PERIOD / physics_step)
        self._outcome = EpisodeOutcome()

        self.observation_spec, self.recorded_spec = OBSERVATION_SPECS[observation], RECORDED_SPEC
        self.action_spec = ACTION_SPEC
        self.observation_space = pusht_observation_space(self.observation_spec)
        self.action_space = action_space(self.action_spec)

        self.render_mode = render_mode
        self.render_size = render_size
        self._window = Window("Push-T") if render_mode == "human" else None
        if not has_display():
            self.metadata = {**self.metadata, "render_modes": ["rgb_array"]}

    # Named physical quantities.

    @property
    def landmarks(self) -> dict[str, np.ndarray]:
        """The pose (x, y in px, angle in rad) of the goal, for policies with a ``PlanarFrame``."""
        return {"goal": self.goal_pose}

    def agent_position(self) -> np.ndarray:
        """x, y of the agent's center, (2,) px."""
        return np.asarray(self._data.qpos[AGENT] / METERS_PER_PX)

    def block_pose(self) -> tuple[float, float, float]:
        """x, y (px) of the origin of the block's frame, the midpoint of the bar's edge; and the block's angle in [0, 2π)."""
        x, y, angle = self._data.qpos[BLOCK].tolist()
        offset_x, offset_y = _placed(CENTER_OF_MASS, 0.0, 0.0, angle).tolist()
        return x / METERS_PER_PX - offset_x, y / METERS_PER_PX - offset_y, _wrapped(angle)

    def hold_action(self) -> np.ndarray:
        """The action (2,) that keeps the agent where it is, px."""
        return self.agent_position().clip(0.0, PLANE_SIZE)

    def coverage(self) -> float:
        """The fraction of the goal that the block covers, in [0, 1]."""
        block_center = self._data.qpos[BLOCK][:2] / METERS_PER_PX
        if math.dist(block_center, self._goal_center) >= 2 * BOUNDING_RADIUS:
            return 0.0
        block_polygon = shapely.polygons(_placed(OUTLINE, *self.block_pose()))
        return float(shapely.area(shapely.intersection(block_polygon, self._goal_polygon))) / AREA

    def preserves_goal(self, transform: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Whether a transform of points (N, 2) maps the goal onto itself, so that demonstrations remain valid."""
        before, after = self._goal_outline, transform(self._goal_outline)
        return bool(np.linalg.norm(before[:, None] - after, axis=-1).min(axis=1).max() < 1e-3)

    # Start of an episode.

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode at rest, at random or at ``options={"state": [agent x, y, block x, y, block angle]}``.

        Positions are in px and at most 128 px outside the plane; the angle is in rad and unbounded. Returns the
        observation and the info that ``step`` describes. Raises ConfigurationError for an invalid state.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := options.keys() - {"state"}:
            raise ConfigurationError(f'options: expected none but "state", got {sorted(unknown)}; remove these')
        state = options.get("state")
        self._place(self._random_state() if state is None else _checked_state(state))
        self._outcome = EpisodeOutcome()
        info = self._update_score()
        self._show()
        return self._observe(), info

    def start_options(self, source: EpisodeSource, episode: int) -> dict[str, Any]:
        """The options of ``reset`` with which a recorded episode starts again. Raises DatasetError without states."""
        if "state" not in source.keys:
            raise DatasetError(
                f"{source.path} stores no state, from which an episode could start again; use other data"
            )
        first = int(source.episode_starts[episode])
        return {"state": source.read("state", first, first + 1)[0]}

    def _random_state(self) -> np.ndarray:
        agent = self.np_random.integers(50, 450, size=2)
        block = self.np_random.integers(100, 400, size=2)
        angle = self.np_random.standard_normal() * 2 * math.pi - math.pi
        return np.array([*agent, *block, angle])

    def _place(self, state: np.ndarray) -> None:
        agent_x, agent_y, block_x, block_y, angle = state.tolist()
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[AGENT] = np.array([agent_x, agent_y]) * METERS_PER_PX
        self._data.qpos[BLOCK] = [*_placed(CENTER_OF_MASS, block_x, block_y, angle) * METERS_PER_PX, angle]

    # Step.

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Drive the agent towards its target, (2,) px, for 0.1 s; a target outside the plane is clipped to its edge.

        Returns observation, reward = coverage / 0.95 clipped to [0, 1], terminated = coverage above 0.95, truncated =
        False, and info: ``coverage``, ``is_success`` (now or earlier in the episode) and ``score``, the best reward of
        the episode so far, including its start. The episode may continue after a success. Raises SimulationError for an
        action of the wrong shape or with values that are not finite, and if the physics becomes unstable.
        """
        target = checked_action(action, self.action_spec, self.action_space) * METERS_PER_PX
        for _ in range(SERVO_PERIODS_PER_STEP):
            self._drive_agent(target)
        require_stable(self._data)
        info = self._update_score()
        self._show()
        return self._observe(), _reward(info["coverage"]), info["coverage"] > SUCCESS_COVERAGE, False, info

    def _drive_agent(self, target: np.ndarray) -> None:
        position, velocity = self._data.qpos[AGENT], self._data.qvel[AGENT]  # views of MuJoCo's arrays
        velocity += (SERVO_STIFFNESS * (target - position) - SERVO_DAMPING * velocity) * SERVO_PERIOD
        mujoco.mj_step(self._model, self._data, nstep=self._physics_steps_per_period)

    # Observation.

    def _observe(self) -> dict[str, np.ndarray]:
        if "state" in self.observation_spec.fields:
            return {"state": np.array([*self.agent_position(), *self.block_pose()], dtype=np.float32)}
        agent_position = self.agent_position().astype(np.float32)
        if "image" in self.observation_spec.fields:
            return {"image": self._render(IMAGE_SIZE), "agent_position": agent_position}
        keypoints = _placed(KEYPOINTS, *self.block_pose()).astype(np.float32)
        return {"keypoints": keypoints, "agent_position": agent_position}

    # Reward.

    def _update_score(self) -> dict[str, Any]:
        """Update score and success, and return the info."""
        coverage = self.coverage()
        self._outcome.update(_reward(coverage), is_success=coverage > SUCCESS_COVERAGE)
        return {"coverage": coverage, **self._outcome.as_info()}

    # Images.

    def render(self) -> np.ndarray | None:
        """The image, uint8 (render_size, render_size, 3), in mode "rgb_array"; None in the other modes."""
        self._show()
        return self._render(self.render_size) if self.render_mode == "rgb_array" else None

    def chunk_to_pixels(self, chunk: np.ndarray) -> np.ndarray:
        """Convert a chunk of actions (H, 2), px of the plane, to pixel coordinates (H, 2) in the rendered image."""
        return to_pixels(chunk, size=self.render_size)

    def close(self) -> None:
        """Close the window, if there is one; may be called more than once."""
        if self._window is not None:
            self._window.close()

    def _render(self, size: int) -> np.ndarray:
        pose = self.block_pose()
        return render_image(
            agent_position=self.agent_position(),
            block_boxes=(_placed(BAR, *pose), _placed(STEM, *pose)),
            goal_outline=self._goal_outline,
            size=size,
        )

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._render(self.render_size))


def _load_model(physics_step: float) -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_path(str(MODEL_PATH))
    model.opt.timestep = physics_step
    model.geom_solref[:, 0] = 2 * physics_step
    model.dof_damping[BLOCK] = BLOCK_DAMPING[physics_step] * BLOCK_MASS_AND_INERTIA
    return model


def pusht_observation_space(spec: ObservationSpec) -> gym.spaces.Dict:
    """The observation space, with positions up to ``MARGIN`` outside the plane."""
    return observation_space(spec, low=-MARGIN, high=PLANE_SIZE + MARGIN)


def _reward(coverage: float) -> float:
    return min(coverage / SUCCESS_COVERAGE, 1.0)


def _placed(points: np.ndarray, x: float, y: float, angle: float) -> np.ndarray:
    """Points (..., 2) of a coordinate frame at this pose, expressed in the plane."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.asarray(points @ np.array([(cosine, sine), (-sine, cosine)]) + (x, y))


def _wrapped(angle: float) -> float:
    """The angle in [0, 2π), below 2π even as a float32."""
    wrapped = angle % (2 * math.pi)
    return wrapped if np.float32(wrapped) < 2 * math.pi else 0.0


def _checked_state(state: object) -> np.ndarray:
    numbers = finite_numbers(state, STATE_FIELD.names, 'options["state"]', ConfigurationError)
    if np.any(numbers[:4] < -MARGIN) or np.any(numbers[:4] > PLANE_SIZE + MARGIN):
        raise ConfigurationError(
            f'options["state"]: expected positions in px from {-MARGIN:g} to {PLANE_SIZE + MARGIN:g}, '
            f"got {numbers.tolist()}; the plane is {PLANE_SIZE:g} px wide"
        )
    return numbers
