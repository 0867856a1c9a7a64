"""Push-T from the human demonstrations, 96 x 96 images and the pusher's position: train, evaluate, tabulate.

usage: python benchmarks/pusht_image.py DATASET_PATH OUTPUT_DIR [--task pusht_image|pusht_image_pose] [--poses recorded|found]
           [--hardware cpu|gpu] [--seeds 0] [--episodes 100]

The command's defaults for that hardware, except for --steps. Resumable, like pusht_state.py. If gym_pusht is installed,
the same checkpoint is also evaluated in the original environment. Writes OUTPUT_DIR/results.md.

Targets, 100 episodes of the twin at 4 evaluations: on 2 CPU cores within 75 minutes score 0.82 (aim 0.92, success 0.40);
on a GPU within 10 minutes score 0.90 and success 0.50. With poses (pusht_image_pose, which learns to tell from images where
the block lies, as the recordings know): 0.99 and 0.85 within 40 minutes of one core, in 200 episodes. The same without
labels: --poses found, by found_poses.py.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import found_poses
from pusht_state import NFE, ORIGINAL, TWIN, row, train


def main() -> None:
    """Fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--task", default="pusht_image", choices=["pusht_image", "pusht_image_pose"])
    parser.add_argument("--poses", default="recorded", choices=["recorded", "found"])
    parser.add_argument("--hardware", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=None)
    options = parser.parse_args()
    dataset = options.dataset
    if options.poses == "found":
        dataset = options.output_dir / "found.zarr"
        if not dataset.exists():
            found_poses.main(options.dataset, dataset)
    env_ids = [TWIN, ORIGINAL] if importlib.util.find_spec("gym_pusht") else [TWIN]
    header = "".join(f" {nfe} |" for nfe in NFE)
    lines = [f"| hardware | seed | minutes | environment |{header}", "|---|---|---|---|" + "---|" * len(NFE)]
    for seed in options.seeds:
        poses = f"-{options.poses}-poses" if options.task == "pusht_image_pose" else ""
        run = options.output_dir / f"{options.hardware}{poses}-{seed}"
        arguments = [
            f"task={options.task}",
            f"dataset.path={dataset}",
            f"hardware={options.hardware}",
            f"seed={seed}",
        ]
        train(run, arguments + ([f"training.steps={options.steps}"] if options.steps else []))
        for env_id in env_ids:
            image_options = ("env.observation=image",)  # other environments do not inherit the options of the twin
            name = f"{options.hardware} | {seed}"
            lines.append(row(name, run, env_id=env_id, episodes=options.episodes, more=image_options))
            (options.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
