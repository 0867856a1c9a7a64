"""The options of comparisons of policies, a part of ``flowchunk.cli.schemas``."""

from __future__ import annotations

from pathlib import Path

from flowchunk.cli.structured import Option, options_of
from flowchunk.envs.rollout import REPORT_SEED, rollout

POLICY_COMPARISON: dict[str, Option] = {
    "output_dir": Option(Path, "comparison"),
    "measure": Option(str, "success", "what is tested: success | score"),
    "alpha": Option(float, 0.05, "the probability of any false alarm among all pairs"),
    "episodes": Option(int | None, None, "episodes to compare; evaluates those that are missing"),
    "seed": Option(int | None, None, f"of the first episode of runs that were never evaluated; default: {REPORT_SEED}"),
    "stop": Option(str | None, None, "sequential: stop once every pair is told apart"),
    "round": Option(int, 10, "episodes that are evaluated before each look, with stop=sequential"),
    **options_of(rollout, only=("num_envs", "processes")),
}
EPISODES_NEEDED: dict[str, Option] = {
    "p": Option(float, meaning="the success rate of one policy"),
    "difference": Option(float, meaning="the other's is p + difference"),
    "power": Option(float, 0.8, "the probability that the difference is found"),
    "alpha": Option(float, 0.05, "the probability of a false alarm, if there is none"),
    "correlation": Option(float | None, None, "of the two successes on the same seeds; default: several"),
}
