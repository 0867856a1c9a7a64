"""Adroit's door: a hand with 28 actuators opens a door with a latch. Gymnasium-Robotics' environment as a task.

The dynamics have drifted since the human demonstrations were recorded (DAPG, 1709.10087): replayed, a third of them opens it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.mapped import MappedSource
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.gym_task import NORMALIZED, GymTask
from flowchunk.envs.tasks.robotics_environment import make_robotics_environment

OPEN_ANGLE = 1.35  # rad of the hinge, from which on the door counts as open
HINGE = 28  # its index in the observation
FINGERS = ("FF", "MF", "RF")
JOINTS = (
    *("ARRx", "ARRy", "ARRz", "WRJ1", "WRJ0"),
    *(f"{finger}J{number}" for finger in FINGERS for number in (3, 2, 1, 0)),
    *(f"LFJ{number}" for number in (4, 3, 2, 1, 0)),
    *(f"THJ{number}" for number in (4, 3, 2, 1, 0)),
)
POINTS = tuple(f"{point}_{axis}" for point in ("palm", "handle", "palm_to_handle") for axis in "xyz")
STATE = ObservationField(
    (39,),
    (*JOINTS, "latch", "door_hinge", *POINTS, "is_open"),
    (*("rad",) * 29, *("m",) * 9, "boolean"),
)
START = ("qpos", "qvel", "door_body_pos")
ACTIONS = tuple(ActionDimension(name, NORMALIZED, "joint", low=-1.0, high=1.0) for name in ("ARTz", *JOINTS))


class AdroitDoor(GymTask):
    """Open the door: turn the latch, then pull. Success is an angle of 1.35 rad, the score the angle's fraction of it.

    Observation: ``state`` (39,) float32: 27 joint angles, latch and door angle (rad), positions of palm and handle, palm
    minus handle (m), and ±1 for an open door. Action: targets of the 28 actuators, each from -1 to 1 over its range, at
    100 Hz.

    render_mode: None or "rgb_array". Raises ConfigurationError without the extra ``gymnasium-robotics``.
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(make_robotics_environment("AdroitHandDoor-v1", task="adroit_door", render_mode=render_mode))
        self.observation_spec = ObservationSpec({"state": STATE})
        self.action_spec = ActionSpec(ACTIONS, self.action_spec.control_hz)

    def start_options(self, source: EpisodeSource, episode: int) -> dict[str, Any]:
        """The options of ``reset`` with which a recorded episode starts again. Raises DatasetError without them."""
        if not isinstance(source, MappedSource):
            raise DatasetError(
                f"{source.path} does not hold init_state_dict, from which an episode could start again; give a mapping of "
                "door-v0_demos.hdf5, see docs/guides/other-tasks.md"
            )
        state = {name: source.read_whole(f"init_state_dict/{name}", episode).astype(np.float64) for name in START}
        return {"initial_state_dict": state}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """See ``GymTask.step``; ``info`` also holds ``door_angle`` in rad."""
        observation, reward, terminated, truncated, info = super().step(action)
        angle = float(observation["state"][HINGE])
        self._outcome.update(float(np.clip(angle / OPEN_ANGLE, 0, 1)), is_success=angle >= OPEN_ANGLE)
        return observation, reward, terminated, truncated, {**info, **self._outcome.as_info(), "door_angle": angle}
