"""Holm's correction, and letters: two items share one if and only if they do not differ."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowchunk.policy.evaluation.multiple_tests import group_letters, holm

p_values = st.lists(st.floats(0, 1), max_size=8)


@pytest.mark.parametrize(
    ("given_p", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # as R's p.adjust
        ([0.6, 0.7], [1, 1]),
    ],
)
def test_holm_by_hand(given_p: list[float], expected: list[float]) -> None:
    assert holm(given_p) == pytest.approx(expected)


@given(p_values)
def test_holm_lies_between_no_correction_and_bonferronis(values: list[float]) -> None:
    corrected = holm(values)
    assert all(p <= new <= min(1, len(values) * p) + 1e-12 for p, new in zip(values, corrected, strict=True))


@given(p_values, st.randoms())
def test_holm_keeps_the_order_and_follows_permutations(values: list[float], random: object) -> None:
    corrected = dict(zip(values, holm(values), strict=True))
    ordered = sorted(values)
    assert holm(ordered) == [corrected[p] for p in ordered] == sorted(corrected[p] for p in ordered)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"p-values must lie in \[0, 1\]"):
        holm([0.5, value])


@pytest.mark.parametrize(
    ("size", "different", "letters"),
    [
        (3, [], ["a", "a", "a"]),
        (3, [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
        (3, [(0, 2)], ["a", "ab", "b"]),
        (4, [(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
        (1, [], ["a"]),
    ],
)
def test_letters_by_hand(size: int, different: list[tuple[int, int]], letters: list[str]) -> None:
    assert group_letters(size, different) == letters


@given(st.integers(1, 8), st.data())
def test_items_share_a_letter_if_and_only_if_they_do_not_differ(size: int, data: st.DataObject) -> None:
    pairs = list(combinations(range(size), 2))
    different = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    letters = group_letters(size, [(i, j) if data.draw(st.booleans()) else (j, i) for i, j in different])
    assert all(letters)
    assert "a" in letters[0]
    for pair in pairs:
        assert bool(set(letters[pair[0]]) & set(letters[pair[1]])) == (pair not in different)
    needed = set("".join(letters))
    for letter in needed:  # none could be left out
        rest = [set(found) - {letter} for found in letters]
        assert not all(
            rest[i] & rest[j] for i in range(size) for j in range(size) if letter in letters[i] and letter in letters[j]
        )


def test_what_letters_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1 cannot differ from itself"):
        group_letters(3, [(1, 1)])
    with pytest.raises(ValueError, match="60 groups are more than there are letters"):
        group_letters(60, list(combinations(range(60), 2)))
