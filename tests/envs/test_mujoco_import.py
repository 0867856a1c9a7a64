"""A MuJoCo that cannot be imported: the error contains the command that repairs it, and the command works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT = "import flowchunk.envs.kinematics, mujoco; print(mujoco.MjModel.from_xml_string('<mujoco/>').nq)"
needs_environment = pytest.mark.skipif(
    "FLOWCHUNK_ENVIRONMENTS" not in os.environ,
    reason="creates a virtual environment from downloads: run .ci/extras, or set FLOWCHUNK_ENVIRONMENTS=1",
)


def test_a_broken_installation_says_what_to_type(tmp_path: Path) -> None:
    """MuJoCo 4 as an upgrade leaves it: its files and its metadata are present, those of mujoco-core are missing."""
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco" / "__init__.py").write_text(
        "try:\n    import mujoco._specs\nexcept ImportError as error:\n"
        "    raise ImportError('Missing. Repair your environment with:\\n  pip install mujoco mujoco-core') from error\n"
    )
    description = tmp_path / "mujoco-4.1.2.dist-info" / "METADATA"
    description.parent.mkdir()
    description.write_text(
        "Metadata-Version: 2.1\nName: mujoco\nVersion: 4.1.2\nRequires-Dist: glfw\nRequires-Dist: mujoco-core==4.1.2\n"
        'Requires-Dist: mujoco-studio==4.1.2\nRequires-Dist: mujoco-usd==4.1.2; extra == "usd"\n'
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "flowchunk.datasets.errors.SimulationError: MuJoCo cannot be imported (No module named 'mujoco._specs'), as happens "
        "after upgrading an older version; repair it with: pip install --force-reinstall --no-deps mujoco==4.1.2 "
        "mujoco-core==4.1.2 mujoco-studio==4.1.2"
    )


class Environment:
    """A new virtual environment with the pip that this Python brings."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.python = str(folder / "bin" / "python")

    def pip(self, *arguments: str) -> None:
        subprocess.run([self.python, "-m", "pip", *arguments], check=True, capture_output=True)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)


@needs_environment
@pytest.mark.parametrize("advice", ["flowchunk's", "MuJoCo's, then flowchunk's"])
def test_an_upgrade_in_place_is_repaired_by_the_command_in_the_error(tmp_path: Path, advice: str) -> None:
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "mujoco==3.7.0", "gymnasium")
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "outputs", "shared")
    )
    environment.pip("install", "--no-deps", str(source))
    working = environment.run(IMPORT)
    assert working.returncode == 0, working.stderr
    environment.pip("install", "--upgrade", "mujoco==4.0.0")
    if advice != "flowchunk's":  # the newest of each part: today mujoco 4.0.0 and mujoco-core 4.0.1
        environment.pip("install", "--force-reinstall", "--no-deps", "mujoco", "mujoco-core", "mujoco-studio")
    broken = environment.run(IMPORT)
    if broken.returncode == 0:
        pytest.skip("MuJoCo survived: nothing to repair")
    line = broken.stderr.splitlines()[-1]
    found = re.search(r"SimulationError: MuJoCo cannot be imported .* repair it with: pip (install .*)$", line)
    assert found is not None, broken.stderr
    environment.pip(*found[1].split())
    repaired = environment.run(IMPORT)
    assert repaired.returncode == 0, repaired.stderr
