"""The flow-matching core, networks, chunk policies, training and checkpoints."""

from typing import TYPE_CHECKING

from flowchunk.datasets.lazy import lazy_exports

if TYPE_CHECKING:
    from flowchunk.policy.chunk_policy import ChunkPolicy
    from flowchunk.policy.data_model import DataConfig, DataModel
    from flowchunk.policy.demonstrations import DatasetOptions
    from flowchunk.policy.diffusion.objectives import OBJECTIVES, Objective
    from flowchunk.policy.diffusion.paths import GaussianPath
    from flowchunk.policy.diffusion.predictions import PREDICTIONS, Prediction
    from flowchunk.policy.diffusion.schedules import SCHEDULES
    from flowchunk.policy.diffusion.solvers import SOLVERS, Solver
    from flowchunk.policy.evaluation.method_comparison import compare_methods
    from flowchunk.policy.evaluation.paired import Outcomes
    from flowchunk.policy.evaluation.sequential import sequential_test
    from flowchunk.policy.execution.checks import check_policy
    from flowchunk.policy.execution.executor import ChunkExecution, ChunkExecutor
    from flowchunk.policy.execution.history import ObservationHistory
    from flowchunk.policy.execution.policy import Policy
    from flowchunk.policy.fitting import fit
    from flowchunk.policy.flow import flow_matching_loss, integrate, uniform_times
    from flowchunk.policy.generative_model import GenerativeModel, ModelConfig
    from flowchunk.policy.networks import NETWORKS
    from flowchunk.policy.normalizer import Normalizer, Scaling
    from flowchunk.policy.planar_frame import PlanarFrame
    from flowchunk.policy.policy_config import PolicyConfig
    from flowchunk.policy.real_time_chunking import PREFIX_METHODS
    from flowchunk.policy.sampling import SamplingOptions
    from flowchunk.policy.training.config import TrainingConfig
    from flowchunk.policy.training.trainer import Trainable, Trainer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "chunk_policy": ["ChunkPolicy", "PolicyConfig"],
            "data_model": ["DataConfig", "DataModel"],
            "demonstrations": ["DatasetOptions"],
            "evaluation.method_comparison": ["compare_methods"],
            "evaluation.paired": ["Outcomes"],
            "evaluation.sequential": ["sequential_test"],
            "execution.checks": ["check_policy"],
            "execution.executor": ["ChunkExecution", "ChunkExecutor"],
            "execution.history": ["ObservationHistory"],
            "execution.policy": ["Policy"],
            "fitting": ["fit"],
            "flow": ["flow_matching_loss", "integrate", "uniform_times"],
            "generative_model": ["GenerativeModel", "ModelConfig"],
            "networks": ["NETWORKS"],
            "normalizer": ["Normalizer", "Scaling"],
            "planar_frame": ["PlanarFrame"],
            "diffusion.objectives": ["OBJECTIVES", "Objective"],
            "diffusion.paths": ["GaussianPath"],
            "diffusion.predictions": ["PREDICTIONS", "Prediction"],
            "real_time_chunking": ["PREFIX_METHODS"],
            "sampling": ["SamplingOptions"],
            "diffusion.schedules": ["SCHEDULES"],
            "diffusion.solvers": ["SOLVERS", "Solver"],
            "training.trainer": ["Trainable", "Trainer"],
            "training.config": ["TrainingConfig"],
        },
    )

__all__ = [
    "NETWORKS",
    "OBJECTIVES",
    "PREDICTIONS",
    "PREFIX_METHODS",
    "SCHEDULES",
    "SOLVERS",
    "ChunkExecution",
    "ChunkExecutor",
    "ChunkPolicy",
    "DataConfig",
    "DataModel",
    "DatasetOptions",
    "GaussianPath",
    "GenerativeModel",
    "ModelConfig",
    "Normalizer",
    "Objective",
    "ObservationHistory",
    "Outcomes",
    "PlanarFrame",
    "Policy",
    "PolicyConfig",
    "Prediction",
    "SamplingOptions",
    "Scaling",
    "Solver",
    "Trainable",
    "Trainer",
    "TrainingConfig",
    "check_policy",
    "compare_methods",
    "fit",
    "flow_matching_loss",
    "integrate",
    "sequential_test",
    "uniform_times",
]
