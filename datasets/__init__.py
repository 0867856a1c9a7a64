"""Remember: specifications, stores and windows of demonstrations."""

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
    from flowchunk.datasets.frame_cache import FrameCacheOptions
    from flowchunk.datasets.recorder import StoreWriter
    from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
    from flowchunk.datasets.store import Store
    from flowchunk.datasets.symmetry import Mirror, Symmetry
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
            "frame_cache": ["FrameCacheOptions"],
            "recorder": ["StoreWriter"],
            "specs": ["ActionDimension", "ActionSpec", "ObservationField", "ObservationSpec"],
            "store": ["Store"],
            "symmetry": ["Mirror", "Symmetry"],
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
    "FrameCacheOptions",
    "Mirror",
    "ObservationField",
    "ObservationSpec",
    "SimulationError",
    "SpecMismatchError",
    "Store",
    "StoreWriter",
    "Symmetry",
    "TrainingError",
    "Windows",
    "load_windows",
    "split_episodes",
]
