"""False alarms of the sequential tests, and the episodes that they save against tests for a fixed number.

usage: python benchmarks/sequential.py [--pairs 2000] [--seed 0]

Simulates pairs of policies: successes of rate p, and scores of mean p (a beta distribution of concentration 2). The test is
looked at after every episode. Prints two tables: false alarms of equal pairs, up to 500 episodes; and for 0.5 against 0.7,
by the number of planned episodes, how often the difference is found, the mean number of episodes until the test stops, and
how many the fixed test (McNemar's, a paired t-test) needs to find it as often.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from flowchunk.policy.evaluation.sample_size import mcnemar_power
from flowchunk.policy.evaluation.sequential import binary_e_values, graded_e_values

ALPHA, CONCENTRATION = 0.05, 2.0
EQUAL, RATES = (0.1, 0.3, 0.5, 0.7, 0.9), (0.5, 0.7)
LONGEST, PLANNED = 500, (50, 100, 200, 300)
Sample = Callable[[np.random.Generator, float, tuple[int, int]], np.ndarray]


def successes(random: np.random.Generator, p: float, shape: tuple[int, int]) -> np.ndarray:
    """Outcomes, 0 or 1, of rate p."""
    return (random.random(shape) < p).astype(float)


def scores(random: np.random.Generator, p: float, shape: tuple[int, int]) -> np.ndarray:
    """Scores in [0, 1] of mean p."""
    return random.beta(CONCENTRATION * p, CONCENTRATION * (1 - p), shape)


def mcnemar(episodes: int) -> float:
    """The power of McNemar's exact test on so many independent pairs."""
    p, q = RATES
    return mcnemar_power(episodes, p * (1 - q), q * (1 - p), alpha=ALPHA)


def paired_t(episodes: int) -> float:
    """The power of a paired t-test on so many independent pairs of scores."""
    spread = np.sqrt(sum(p * (1 - p) / (CONCENTRATION + 1) for p in RATES))
    shift, bound = (RATES[1] - RATES[0]) / spread * np.sqrt(episodes), stats.t.ppf(1 - ALPHA / 2, episodes - 1)
    return float(stats.nct.sf(bound, episodes - 1, shift) + stats.nct.cdf(-bound, episodes - 1, shift))


TESTS: dict[str, tuple[Sample, Callable[[np.ndarray, np.ndarray], np.ndarray], Callable[[int], float]]] = {
    "success": (successes, binary_e_values, mcnemar),
    "score": (scores, graded_e_values, paired_t),
}


def e_values(kind: str, rates: tuple[float, float], pairs: int, seed: int) -> np.ndarray:
    """E-values (pairs, LONGEST) of simulated pairs of policies."""
    sample, process, _ = TESTS[kind]
    random = np.random.default_rng(seed)
    return process(*(sample(random, p, (pairs, LONGEST)) for p in rates))


def false_alarms(pairs: int, seed: int) -> list[str]:
    """The lines of the first table."""
    lines = ["| false alarms |" + "".join(f" p = {p} |" for p in EQUAL), "|---|" + "---|" * len(EQUAL)]
    for kind in TESTS:
        shares = [(e_values(kind, (p, p), pairs, seed) >= 1 / ALPHA).any(axis=1).mean() for p in EQUAL]
        lines.append(f"| {kind} |" + "".join(f" {share:.3f} |" for share in shares))
    return lines


def episodes_saved(pairs: int, seed: int) -> list[str]:
    """The lines of the second table."""
    lines = [
        f"| {RATES[0]} against {RATES[1]} | planned | found | found by the fixed test of as many | mean until stop | saved | "
        "fixed test that finds as often |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, (_, _, power) in TESTS.items():
        reached = e_values(kind, RATES, pairs, seed) >= 1 / ALPHA
        stops = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, LONGEST + 1)
        for planned in PLANNED:
            found, mean = (stops <= planned).mean(), np.minimum(stops, planned).mean()
            needed = next((n for n in range(3, LONGEST + 1) if power(n) >= min(found, 1 - 1 / pairs)), LONGEST)
            saved = f"{planned - mean:.0f} ({1 - mean / planned:.0%})"
            lines.append(
                f"| {kind} | {planned} | {found:.3f} | {power(planned):.3f} | {mean:.0f} | {saved} | {needed} |"
            )
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("\n".join([*false_alarms(options.pairs, options.seed), "", *episodes_saved(options.pairs, options.seed)]))


if __name__ == "__main__":
    main()
