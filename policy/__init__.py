"""Learn: the flow-matching core, networks, chunk policies, training and checkpoints."""

from typing import TYPE_CHECKING

from flowchunk.datasets.lazy import lazy_exports

if TYPE_CHECKING:
    from flowchunk.policy.chunk_policy import ChunkPolicy, PolicyConfig
    from flowchunk.policy.data_model import DataConfig, DataModel
    from flowchunk.policy.demonstrations import DatasetOptions
    from flowchunk.policy.fitting import fit
    from flowchunk.policy.flow import flow_matching_loss, integrate, uniform_times
    from flowchunk.policy.generative_model import GenerativeModel, ModelConfig
    from flowchunk.policy.networks import NETWORKS
    from flowchunk.policy.normalizer import Normalizer, Scaling
    from flowchunk.policy.objectives import OBJECTIVES, Objective
    from flowchunk.policy.paths import GaussianPath
    from flowchunk.policy.predictions import PREDICTIONS, Prediction
    from flowchunk.policy.sampling import SamplingOptions
    from flowchunk.policy.schedules import SCHEDULES
    from flowchunk.policy.solvers import SOLVERS, Solver
    from flowchunk.policy.train import Trainable, Trainer
    from flowchunk.policy.training_config import TrainingConfig
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "chunk_policy": ["ChunkPolicy", "PolicyConfig"],
            "data_model": ["DataConfig", "DataModel"],
            "demonstrations": ["DatasetOptions"],
            "fitting": ["fit"],
            "flow": ["flow_matching_loss", "integrate", "uniform_times"],
            "generative_model": ["GenerativeModel", "ModelConfig"],
            "networks": ["NETWORKS"],
            "normalizer": ["Normalizer", "Scaling"],
            "objectives": ["OBJECTIVES", "Objective"],
            "paths": ["GaussianPath"],
            "predictions": ["PREDICTIONS", "Prediction"],
            "sampling": ["SamplingOptions"],
            "schedules": ["SCHEDULES"],
            "solvers": ["SOLVERS", "Solver"],
            "train": ["Trainable", "Trainer"],
            "training_config": ["TrainingConfig"],
        },
    )

__all__ = [
    "NETWORKS",
    "OBJECTIVES",
    "PREDICTIONS",
    "SCHEDULES",
    "SOLVERS",
    "ChunkPolicy",
    "DataConfig",
    "DataModel",
    "DatasetOptions",
    "GaussianPath",
    "GenerativeModel",
    "ModelConfig",
    "Normalizer",
    "Objective",
    "PolicyConfig",
    "Prediction",
    "SamplingOptions",
    "Scaling",
    "Solver",
    "Trainable",
    "Trainer",
    "TrainingConfig",
    "fit",
    "flow_matching_loss",
    "integrate",
    "uniform_times",
]
