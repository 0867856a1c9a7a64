"""Demonstrations: their specifications, their stores, and training windows cut from them."""

from typing import TYPE_CHECKING

from flowchunk.datasets.lazy import lazy_exports

if TYPE_CHECKING:
    from flowchunk.datasets.errors import (
        CheckpointError,
        ConfigurationError,
        DatasetError,
        FlowchunkError,
        SimulationError,
        SpecMismatchError,
        TrainingError,
    )
    from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter
    from flowchunk.datasets.formats.robomimic_writer import RobomimicWriter
    from flowchunk.datasets.image_cache import ImageCacheOptions
    from flowchunk.datasets.recorder import StoreWriter
    from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
    from flowchunk.datasets.store import Store
    from flowchunk.datasets.symmetry import Symmetry, ValueTransform
    from flowchunk.datasets.windows import Windows, load_windows, split_episodes
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "errors": [
                "CheckpointError",
                "ConfigurationError",
                "DatasetError",
                "FlowchunkError",
                "SimulationError",
                "SpecMismatchError",
                "TrainingError",
            ],
            "formats.lerobot_writer": ["LeRobotWriter"],
            "formats.robomimic_writer": ["RobomimicWriter"],
            "image_cache": ["ImageCacheOptions"],
            "recorder": ["StoreWriter"],
            "specs": ["ActionDimension", "ActionSpec", "ObservationField", "ObservationSpec"],
            "store": ["Store"],
            "symmetry": ["ValueTransform", "Symmetry"],
            "windows": ["Windows", "load_windows", "split_episodes"],
        },
    )

__all__ = [
    "ActionDimension",
    "ActionSpec",
    "CheckpointError",
    "ConfigurationError",
    "DatasetError",
    "FlowchunkError",
    "ImageCacheOptions",
    "LeRobotWriter",
    "ObservationField",
    "ObservationSpec",
    "RobomimicWriter",
    "SimulationError",
    "SpecMismatchError",
    "Store",
    "StoreWriter",
    "Symmetry",
    "TrainingError",
    "ValueTransform",
    "Windows",
    "load_windows",
    "split_episodes",
]
