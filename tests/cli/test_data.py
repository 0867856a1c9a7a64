"""flowchunk data inspect: what it tells of our stores and of others'."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from flowchunk.cli.main import main
from flowchunk.datasets.store import Store


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["data", "inspect", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("fixture", ["pickplace_store", "pusht_store"])
def test_episodes_lengths_keys_shapes_and_ranges(
    fixture: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = request.getfixturevalue(fixture)
    shown, store = inspect(path, capsys), Store.open(path)
    lengths = store.episode_lengths
    assert f"{path}: {len(lengths)} episodes, {store.frames} frames" in shown
    assert f"lengths {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}" in shown
    for key in ("state", "action"):
        values = store.read(key)
        cells = [key, f"({values.shape[1]},)", "float32", f"{values.min():g}", f"{values.max():g}"]
        assert re.search(r"\s*│\s*".join(map(re.escape, cells)), shown), f"no row {cells} in\n{shown}"


def test_our_stores_say_what_the_numbers_mean(pickplace_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, store = inspect(pickplace_store, capsys), Store.open(pickplace_store)
    assert store.observation_spec is not None
    assert store.action_spec is not None
    for name, unit in zip(
        store.observation_spec.fields["state"].names, store.observation_spec.fields["state"].units, strict=True
    ):
        assert re.search(rf"state\s*│ {name}\s*│ {unit}\s*│", shown)
    for one in store.action_spec.dimensions:
        row = rf"{one.name}\s*│ {one.unit}\s*│ {one.frame}\s*│ absolute\s*│\s*│ {one.low}\s*│ {one.high}"
        assert re.search(row, shown)
    assert "commanded at 20 Hz" in shown
    assert "zarr format 3" in shown


def test_of_others_stores_it_says_that_the_meaning_is_unknown(
    pusht_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = inspect(pusht_store, capsys)
    assert "5 episodes, 100 frames; lengths 10 to 30, median 20 (zarr format 2)" in shown
    assert "no specs" in shown
