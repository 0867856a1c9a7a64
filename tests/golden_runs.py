"""What four small trainings give: their losses at steps 1 to 20, and one sample. A change of form changes none of it.

usage: python tests/golden_runs.py OUT.json        record, with the flowchunk that this Python imports
       python tests/golden_runs.py A.json B.json   compare two recordings bit for bit

``.ci/golden COMMIT`` records a commit and the working tree on one machine, and compares them. ``tests/golden.json`` holds the
values that ``tests/test_golden.py`` compares with, to 1e-5. Only commands and what every version had are used here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

STEPS = 20
COMMON = (f"training.steps={STEPS}", "training.log_every=1", "device=cpu", "seed=0")
ROBOT = (
    "training.batch_size=16",
    "evaluation.episodes=0",
    "network.width=32",
    "network.blocks=1",
    "dataset.validation_fraction=0",
)
DATA = ("training.batch_size=32", "evaluation.samples=0")
RUNS: dict[str, tuple[str, ...]] = {
    "state policy": ("task=pusht_state", *ROBOT),
    "state policy, prefix": ("task=pusht_state", *ROBOT, "policy.prefix_max=4", "policy.mask_padding=true"),
    "state policy, v": ("task=pusht_state", *ROBOT, "objective=v"),
    "state policy, flow map": ("task=pusht_state", *ROBOT, "objective=flow_map"),
    "state policy, mip": ("task=pusht_state", *ROBOT, "objective=mip"),
    "image policy": ("task=pusht_image", *ROBOT, "vision.widths=[8,8,8,8]", "dataset.cache=ram"),
    "points": ("task=toy2d", *DATA),
    "digits": ("task=images", *DATA, "network.widths=[8,16]"),
    "torus": ("task=torus", *DATA),
}
"""Name → options. The first is the task."""


def record(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The losses and one sample of each run."""
    from flowchunk.cli.main import main

    store = write_store(folder / "pusht.zarr")
    found = {}
    for name, (task, *options) in RUNS.items():
        options += [] if task == "task=images" else as_before_the_skip()
        options += as_before_the_frame() if is_robot(task) else []
        paths = [f"output_dir={folder / name}", *([f"dataset.path={store}"] if is_robot(task) else [])]
        if status := main(["train", task, *paths, *COMMON, *options]):
            raise SystemExit(status)
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        losses = [float(row["loss"]) for row in rows if "loss" in row]
        found[name] = {"loss": losses, "sample": sample(folder / name, task)}
    return found


def as_before_the_skip() -> list[str]:
    """The option that makes the network ``mlp`` what it was in the first versions, where there is one."""
    from flowchunk.policy.networks.mlp import MLP

    return ["network.skip=false"] if "skip" in signature(MLP).parameters else []


def as_before_the_frame() -> list[str]:
    """The option with which a policy of Push-T sees the world as in the first versions, where there is one."""
    from flowchunk.policy.policy_config import PolicyConfig

    return ["policy.frame=null", "evaluation.noise_scale=1"] if "frame" in signature(PolicyConfig).parameters else []


def is_robot(task: str) -> bool:
    """Whether the task learns from demonstrations."""
    return task.startswith("task=pusht")


def sample(run: Path, task: str) -> list[float]:
    """One chunk, or four data, of the trained model."""
    if is_robot(task):
        from flowchunk.policy.chunk_policy import ChunkPolicy

        policy = ChunkPolicy.load(run / "checkpoints" / "last")
        random = np.random.default_rng(0)
        shapes = {key: field.shape for key, field in policy.observation_spec.fields.items()}
        observation = {
            key: random.integers(0, 256, (1, 2, *shape)).astype(np.uint8 if len(shape) == 3 else np.float32)
            for key, shape in shapes.items()
        }
        return [float(value) for value in policy.predict_chunk(observation, seed=0).ravel()]
    model: Any = data_model().load(run / "checkpoints" / "last")
    known = {"condition": torch.linspace(-0.5, 0.5, 16).reshape(4, 4)} if task == "task=torus" else {}
    return [float(value) for value in model.generate(4, nfe=4, seed=0, **known).flatten()]


def data_model() -> Any:
    """The class of models of generated data, whose name was GenerativeModel at first."""
    from flowchunk.policy.generative_model import GenerativeModel

    if hasattr(GenerativeModel, "generate"):
        return GenerativeModel
    from flowchunk.policy.data_model import DataModel

    return DataModel


def write_store(path: Path) -> Path:
    """Six short episodes of random numbers in diffusion_policy's layout."""
    random, lengths = np.random.default_rng(0), (30, 12, 25, 20, 15, 8)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    steps = sum(lengths)
    for name, values in {
        "state": np.concatenate([random.uniform(50, 450, (steps, 4)), random.uniform(0, 6, (steps, 1))], axis=1),
        "action": random.uniform(50, 450, (steps, 2)),
        "img": np.floor(random.uniform(0, 256, (steps, 96, 96, 3))),
    }.items():
        root.create_array(f"data/{name}", data=values.astype(np.float32), chunks=(16, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return path


def main(arguments: list[str]) -> None:
    """Record, or compare."""
    if len(arguments) == 1:
        with tempfile.TemporaryDirectory() as folder:
            torch.set_num_threads(1)
            Path(arguments[0]).write_text(json.dumps(record(Path(folder)), indent=1) + "\n")
        return
    a, b = (json.loads(Path(argument).read_text()) for argument in arguments)
    for name in a:
        for kind in a[name]:
            difference = float(np.abs(np.subtract(a[name][kind], b[name][kind])).max())
            print(f"{name:24} {kind:7} {len(a[name][kind]):4} numbers, greatest difference {difference:g}")
    if a != b:
        raise SystemExit("the recordings differ")
    print("equal bit for bit")


if __name__ == "__main__":
    main(sys.argv[1:])
