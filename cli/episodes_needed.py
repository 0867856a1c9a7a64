"""flowchunk episodes-needed: how many episodes tell two policies apart.

usage: flowchunk episodes-needed p=0.6 difference=0.1 [KEY=VALUE ...]

  p=0.6             the success rate of one policy; the other's is p + difference
  difference=0.1    the difference that should be found
  power=0.8         the probability that it is found
  alpha=0.05        the probability of a false alarm, if there is no difference
  correlation=0.3   of the two policies' successes on the same seeds (default: several)

Prints the episodes of each policy: on different seeds (test of two proportions), and on the same
seeds (McNemar's exact test, as flowchunk compare makes it). The more the episode decides about
success, the higher the correlation, and the fewer episodes are needed on the same seeds.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from flowchunk.cli.options import read_options
from flowchunk.cli.reports import print_table, table_of
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.evaluation.sample_size import correlation_range, episodes_per_arm, paired_episodes

CORRELATIONS = (0.0, 0.25, 0.5, 0.75)


def run(arguments: list[str]) -> None:
    """Compute with command-line arguments."""
    print_needed(read_options("episodes_needed", arguments))


def print_needed(options: dict[str, Any]) -> None:
    """Print the table with the options of ``schemas.EPISODES_NEEDED``. Raises ConfigurationError."""
    p, difference, correlation = options["p"], options["difference"], options["correlation"]
    test = {"power": options["power"], "alpha": options["alpha"]}
    table = table_of("episodes", "correlation", "of each policy")
    try:
        table.add_row("on different seeds", "-", str(episodes_per_arm(p, difference, **test)))
        _, highest = correlation_range(p, p + difference)
        chosen = [value for value in CORRELATIONS if value <= highest] if correlation is None else [correlation]
        for value in chosen:
            needed = paired_episodes(p, difference, correlation=value, **test)
            table.add_row("on the same seeds", f"{value:g}", str(needed))
    except ValueError as error:
        raise ConfigurationError(f"{error}; see --help") from error
    title = (
        f"success {p:g} against {p + difference:g}: found with probability {test['power']:g} at alpha={test['alpha']:g}"
    )
    print_table(Console(), title, table)
