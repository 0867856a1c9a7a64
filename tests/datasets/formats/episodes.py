"""Episodes that the tests of this folder write in every format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec

OBSERVATIONS = ObservationSpec(
    {
        "state": ObservationField((3,), names=("x", "y", "angle"), units=("m", "m", "rad"), wraps=(2,)),
        "gripper": ObservationField((1,), names=("width",)),
        "force": ObservationField(()),
        "grid": ObservationField((2, 4), names=tuple("abcdefgh")),
        "front": ObservationField((16, 24, 3), camera="front"),
    }
)
ACTIONS = ActionSpec(
    (ActionDimension("x", "m", "world", low=-1.0), ActionDimension("y", "m", "world")), control_hz=10.0
)
LENGTHS = (5, 1, 9)
TASKS = ("push", ["pull"], ["push"] * 4 + [""] * 5)  # one text, a text per frame
TASK_TEXTS = ["push"] * 5 + ["pull"] + ["push"] * 4 + [""] * 5


@dataclass(frozen=True)
class Episode:
    """What ``add_episode`` takes."""

    observations: dict[str, np.ndarray]
    actions: np.ndarray


def shades(frames: np.ndarray) -> np.ndarray:
    """Images (T, 16, 24, 3) of smooth shades, whose brightness and color show which frame they are."""
    row, column = np.ogrid[:16, :24]
    levels = 40 + 12 * (frames[:, None, None] % 15) + row + column  # up to 246
    return np.stack([levels, 250 - levels, np.full_like(levels, 128)], axis=-1).astype(np.uint8)


def make_episode(start: int, length: int) -> Episode:
    """Frames start … start + length - 1 of one long recording, of values that float32 represents."""
    frame = np.arange(start, start + length)
    observations = {
        "state": np.stack([frame, -frame, frame / 8], axis=1),
        "gripper": frame[:, None] / 2,
        "force": frame * 3.0,
        "grid": frame[:, None, None] + np.arange(8).reshape(2, 4) / 16,
        "front": shades(frame),
    }
    return Episode(observations, np.stack([frame + 0.5, frame * 2.0], axis=1))


def episodes() -> list[Episode]:
    """Episodes of ``LENGTHS``."""
    starts = np.cumsum((0, *LENGTHS[:-1])).tolist()
    return [make_episode(start, length) for start, length in zip(starts, LENGTHS, strict=True)]


def everything() -> Episode:
    """All frames, in order."""
    return make_episode(0, sum(LENGTHS))


def write(make_writer: Callable[..., Any], path: Path, *, tasks: Sequence[Any] | None = TASKS, **options: Any) -> Path:
    """Write ``episodes()`` with a writer."""
    with make_writer(path, observation_spec=OBSERVATIONS, action_spec=ACTIONS, **options) as writer:
        for number, episode in enumerate(episodes()):
            writer.add_episode(episode.observations, episode.actions, task=None if tasks is None else tasks[number])
    return path


def interrupted(write: Callable[..., None]) -> Callable[..., None]:
    """A function that does its work, and is interrupted before it returns."""

    def write_and_interrupt(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        raise KeyboardInterrupt

    return write_and_interrupt
