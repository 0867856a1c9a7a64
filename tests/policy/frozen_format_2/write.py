"""How the frozen checkpoint beside this file was written, once, by flowchunk 0.1.0. Never run it over the old files.

Its only purpose is that ``test_checkpoint.py`` loads a checkpoint of format 2 for ever; a new format gets a new folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.sampling import SamplingOptions

HERE = Path(__file__).parent

OBSERVATION = ObservationSpec(
    {
        "state": ObservationField(
            shape=(5,),
            names=("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
            units=("px", "px", "px", "px", "rad"),
            wraps=(4,),
        )
    }
)
ACTION = ActionSpec(
    tuple(ActionDimension(f"target_{axis}", "px", "world", low=0.0, high=512.0) for axis in "xy"), control_hz=10.0
)


def make_policy() -> ChunkPolicy:
    random = np.random.default_rng(0)
    states = random.uniform([0, 0, 100, 100, 0], [512, 512, 400, 400, 2 * np.pi], (1000, 5))
    actions = random.uniform(10, 500, (1000, 2))
    normalizer = Normalizer(
        {
            "state": Scaling.fit("min_max", [states], identity=(4,)),
            "action": Scaling.fit("min_max", [actions]),
        }
    )
    config = PolicyConfig(
        network="mlp",
        network_options={"width": 16, "blocks": 1},
        objective="data_prediction",
        schedule="cosine",
        min_snr_gamma=5.0,
        relative_to=["state.0", "state.1"],
        prefix_max=4,
        sampling=SamplingOptions(solver="dpm_solver", noise_scale=0.9),
    )
    policy = ChunkPolicy(config, OBSERVATION, ACTION, normalizer)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():  # so that what starts at zero takes part
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return policy.eval()


def main() -> None:
    if (HERE / "checkpoint").exists():
        raise SystemExit("the frozen checkpoint is written once")
    policy = make_policy()
    policy.save(HERE / "checkpoint", training={"task": "pusht_state", "step": 0})
    observation = np.array([[[256, 256, 300, 200, 0.5], [260, 250, 301, 202, 0.6]]], dtype=np.float32)
    prefix = np.array([[[260, 250], [264, 246]]], dtype=np.float32)
    chunks = {
        "four": policy.predict_chunk({"state": observation}, nfe=4, seed=7),
        "ten": policy.predict_chunk({"state": observation}, nfe=10, seed=[7]),
        "prefix": policy.predict_chunk({"state": observation}, nfe=4, seed=7, prefix=prefix),
    }
    expected = {
        "observation": observation.tolist(),
        "prefix": prefix.tolist(),
        "seed": 7,
        "chunks": {name: chunk.tolist() for name, chunk in chunks.items()},
    }
    (HERE / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
