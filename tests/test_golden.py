"""The values that training and sampling gave before: a change of form changes none of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "golden.json").read_text())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    spec = importlib.util.spec_from_file_location("golden_runs", HERE / "golden_runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, dict[str, list[float]]] = module.record(tmp_path_factory.mktemp("golden"))
    return found


@pytest.mark.parametrize("kind", ["loss", "sample"])
@pytest.mark.parametrize("name", EXPECTED)
def test_training_and_sampling_give_what_they_gave(
    name: str, kind: str, recorded: dict[str, dict[str, list[float]]]
) -> None:
    np.testing.assert_allclose(recorded[name][kind], EXPECTED[name][kind], rtol=1e-5, atol=1e-5)
    assert len(recorded[name]["loss"]) == 20


def test_every_run_is_compared(recorded: dict[str, dict[str, list[float]]]) -> None:
    assert recorded.keys() == EXPECTED.keys()
