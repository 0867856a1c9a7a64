"""Demonstrations: their specifications, their stores, and training windows cut from them."""

from typing import TYPE_CHECKING

from flowchunk.datasets.lazy import lazy_exports

if TYPE_CHECKING:
    from flowchunk.datasets.checks import check_dataset
    from flowchunk.datasets.derived_specs import DerivedSpecs, SpecOptions, derive_specs
    from flowchunk.datasets.episode_source import EpisodeSource
    from flowchunk.datasets.errors import (
        CheckpointError,
        ConfigurationError,
        DatasetError,
        FlowchunkError,
        RobotError,
        SimulationError,
        SpecMismatchError,
        TrainingError,
    )
    from flowchunk.datasets.formats import open_dataset
    from flowchunk.datasets.formats.lerobot_writer import LeRobotWriter
    from flowchunk.datasets.formats.robomimic_writer import RobomimicWriter
    from flowchunk.datasets.formats.zarr_store import Store
    from flowchunk.datasets.image_cache import ImageCacheOptions
    from flowchunk.datasets.planar_object import PlanarObject
    from flowchunk.datasets.recorder import StoreWriter
    from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
    from flowchunk.datasets.symmetry import Symmetry, ValueTransform
    from flowchunk.datasets.windows import Windows, load_windows, split_episodes
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "checks": ["check_dataset"],
            "derived_specs": ["DerivedSpecs", "SpecOptions", "derive_specs"],
            "episode_source": ["EpisodeSource"],
            "errors": [
                "CheckpointError",
                "ConfigurationError",
                "DatasetError",
                "FlowchunkError",
                "RobotError",
                "SimulationError",
                "SpecMismatchError",
                "TrainingError",
            ],
            "formats": ["open_dataset"],
            "formats.lerobot_writer": ["LeRobotWriter"],
            "formats.robomimic_writer": ["RobomimicWriter"],
            "image_cache": ["ImageCacheOptions"],
            "planar_object": ["PlanarObject"],
            "recorder": ["StoreWriter"],
            "specs": ["ActionDimension", "ActionSpec", "ObservationField", "ObservationSpec"],
            "formats.zarr_store": ["Store"],
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
    "DerivedSpecs",
    "EpisodeSource",
    "FlowchunkError",
    "ImageCacheOptions",
    "LeRobotWriter",
    "ObservationField",
    "ObservationSpec",
    "PlanarObject",
    "RobomimicWriter",
    "RobotError",
    "SimulationError",
    "SpecMismatchError",
    "SpecOptions",
    "Store",
    "StoreWriter",
    "Symmetry",
    "TrainingError",
    "ValueTransform",
    "Windows",
    "check_dataset",
    "derive_specs",
    "load_windows",
    "open_dataset",
    "split_episodes",
]
