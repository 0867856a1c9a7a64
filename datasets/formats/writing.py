"""Writers of all formats by name, and what each of them cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.formats import HDF5
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.datasets.tasks import EpisodeTask

TARGETS = ("flowchunk", "diffusion_policy", "robomimic", "lerobot")
VALIDATION = "valid"


class EpisodeWriter(Protocol):
    """Writes episodes to ``path``, which appears when its ``with`` block ends normally."""

    path: Path

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def add_episode(
        self, observations: Mapping[str, np.ndarray], actions: np.ndarray, *, task: EpisodeTask = None
    ) -> None: ...


def make_writer(
    to: str,
    out: str | Path,
    observation_spec: ObservationSpec,
    action_spec: ActionSpec,
    *,
    jpeg: int | None = None,
    codec: str | None = None,
    masks: Mapping[str, list[int]] | None = None,
    say: Callable[[str], None] = print,
) -> EpisodeWriter:
    """A writer of the format ``to``, one of ``TARGETS``.

    jpeg: of flowchunk's images, a quality. codec: of LeRobot's images, h264 by default. masks: splits, which only robomimic
    holds. Raises ConfigurationError for an unknown format and for options of another one, DatasetError if ``out`` exists or
    the format cannot hold the specifications.
    """
    if to not in TARGETS:
        raise ConfigurationError(f"to={to} is no format that is written; there are {', '.join(TARGETS)}")
    for name, value, owner in (("jpeg", jpeg, "flowchunk"), ("codec", codec, "lerobot")):
        if value is not None and to != owner:
            raise ConfigurationError(f"{name}={value} is for to={owner}, but to={to}; leave it out")
    if to == "robomimic" and Path(out).suffix not in HDF5:
        raise ConfigurationError(f"{out}: a file of robomimic must end with {' or '.join(HDF5)}, to be recognized")
    if to == "lerobot":
        from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter

        return LeRobotWriter(out, observation_spec=observation_spec, action_spec=action_spec, codec=codec or "h264")
    if to == "robomimic":
        from flowchunk.datasets.formats.robomimic_writer import RobomimicWriter

        return RobomimicWriter(out, observation_spec=observation_spec, action_spec=action_spec, masks=masks)
    from flowchunk.datasets.recorder import StoreWriter

    return StoreWriter(
        out,
        observation_spec=observation_spec,
        action_spec=action_spec,
        jpeg=jpeg,
        zarr_format=3 if to == "flowchunk" else 2,
        keep_unfinished=False,
        say=say,
    )


def describe_losses(
    source: EpisodeSource, observation_spec: ObservationSpec, to: str, *, jpeg: int | None, codec: str | None
) -> list[str]:
    """What of a data set a conversion to the format ``to`` leaves out or changes, a sentence each."""
    keys = [*observation_spec.fields, ACTION]
    used = {name for key in keys if key in source.keys and key != "task" for name, _ in source.find(key)}
    losses = []
    if left_out := sorted(name for name in source.arrays if name not in used):
        losses.append(f"not converted: {', '.join(left_out)}")
    if rounded := sorted(name for name in used if source.arrays[name].dtype == np.float64):
        losses.append(f"rounded from float64 to float32: {', '.join(rounded)}")
    if observation_spec.images and to == "lerobot" and codec != "png":
        losses.append(f"images become {codec or 'h264'} video, which is lossy; codec=png is exact")
    if jpeg is not None:
        losses.append(f"images become JPEGs of quality {jpeg}, which are lossy")
    if source.validation_episodes is not None and to != "robomimic":
        losses.append(f"the split of the episodes is not stored in the format {to}")
    if to != "flowchunk":
        losses.append("names, units and other specifications stand beside the data, where only flowchunk reads them")
    return losses
