"""robomimic's tasks in robosuite: in an environment that has both and their MuJoCo, by the checks of robomimic_checks.py."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.own_environments import python_with

ROOT = Path(__file__).parents[2]
CHECKS = Path(__file__).with_name("robomimic_checks.py")
NAMES = re.findall(r"^def (check_\w+)", CHECKS.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each check, in the Python that FLOWCHUNK_ROBOMIMIC names, or in that of a new environment."""
    python = python_with(
        "robomimic", f"{ROOT}[robomimic]", tmp_path_factory.mktemp("robomimic")
    )  # FLOWCHUNK_ENVIRONMENTS
    folder = tmp_path_factory.mktemp("checks")
    done = subprocess.run([python, "-P", CHECKS, folder], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_there_are_checks() -> None:
    assert len(NAMES) > 10


@pytest.mark.parametrize("name", NAMES)
def test_in_its_own_environment(name: str, results: dict[str, str]) -> None:
    assert results[name] == "ok"
