"""Which episodes remain, and which part each belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.episode_selection import select_episodes, split_selected
from flowchunk.datasets.errors import ConfigurationError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"delete": [3, 0]}, [1, 2, 4]),
        ({"delete": ["1:3", 4]}, [0, 3]),
        ({"delete": ["3:"]}, [0, 1, 2]),
        ({"keep": [4, 1, 1]}, [1, 4]),
        ({"keep": [":2", "4"]}, [0, 1, 4]),
        ({"keep": [":"]}, [0, 1, 2, 3, 4]),
        ({"keep": ["4:5"]}, [4]),
    ],
)
def test_what_remains(options: dict[str, Any], expected: list[int]) -> None:
    assert select_episodes(5, **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delete": [5]}, "episodes are numbered 0 to 4, so 5 names none or too many"),
        ({"keep": ["3:6"]}, "so 3:6 names none or too many"),
        ({"keep": ["3:3"]}, "so 3:3 names none"),
        ({"delete": [-1]}, "-1 is no episode; give its number, from 0, or a range such as 3:7"),
        ({"delete": ["last"]}, "'last' is no episode"),
        ({"delete": [1.5]}, "1.5 is no episode"),
        ({"delete": [":"]}, "no episode of 5 would be left"),
        ({"keep": []}, "no episode of 5 would be left"),
        ({"delete": [1], "keep": [2]}, "either delete or keep"),
    ],
)
def test_what_cannot_be_selected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        select_episodes(5, **options)


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 60), st.integers(0, 5), st.sampled_from([{"a": 0.5, "b": 0.3}, {"a": 0.9, "b": 0.1}]))
def test_parts_are_disjoint_and_of_the_size_asked_for(episodes: int, seed: int, parts: Mapping[str, float]) -> None:
    chosen = list(range(100, 100 + episodes))
    found = split_selected(chosen, parts, seed)
    together = [index for part in found.values() for index in part]
    assert list(found) == list(parts)
    assert len(set(together)) == len(together) == round(sum(parts.values()) * episodes)
    assert set(together) <= set(chosen)
    for name, part in found.items():
        assert part == sorted(part)
        assert abs(len(part) - parts[name] * episodes) <= 1


def test_numbers_of_episodes_and_the_seed() -> None:
    chosen = [2, 3, 5, 7, 11, 13, 17, 19]
    found = split_selected(chosen, {"train": 5, "valid": 2}, 0)
    assert [len(part) for part in found.values()] == [5, 2]
    assert split_selected(chosen, {"train": 5, "valid": 2}, 0) == found
    assert split_selected(chosen, {"train": 5, "valid": 2}, 1) != found
    assert split_selected(chosen, {"all": 1.0}, 0) == {"all": chosen}
    assert split_selected(chosen, {"one": 1}, 0)["one"] != chosen


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": 0.8, "b": 0.3}, "above 0 each, and at most 1 in total"),
        ({"a": 6, "b": 5}, "above 0 each, and at most 10 episodes in total"),
        ({"a": 0.5, "b": -0.1}, "above 0"),
        ({"a": float("nan")}, "at most 1"),
        ({"a": 3, "b": 0}, "above 0"),
        ({"a": 0.5, "b": 2}, "and not a mixture"),
        ({"a": True}, "must be fractions"),
        ({"a": "most"}, "must be fractions"),
        ({"a": 0.9, "b": 0.01}, "b=0.01 of 10 episodes is none"),
        ({"a/b": 0.9}, "'a/b' becomes a part of a file's name"),
    ],
)
def test_what_cannot_be_split(parts: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        split_selected(range(10), parts, 0)
