"""The wheel holds what the folders hold: a package or data file forgotten in pyproject works only where it was written."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("cli", "configs", "datasets", "envs", "policy")
NOT_SHIPPED = ("__pycache__",)


def files_of_the_rooms() -> set[str]:
    """Every file under the rooms, as paths inside the wheel."""
    return {
        f"flowchunk/{file.relative_to(REPOSITORY)}"
        for room in ROOMS
        for file in (REPOSITORY / room).rglob("*")
        if file.is_file() and not set(file.parts) & set(NOT_SHIPPED) and not file.name.startswith(".")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of the tree, so that nothing is left in it."""
    pytest.importorskip("setuptools", reason="building the wheel needs setuptools")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, tree / room, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(tree),
        "--wheel-dir",
        str(out),
        "--no-deps",
        "--no-build-isolation",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (built,) = out.glob("flowchunk-*.whl")
    return set(ZipFile(built).namelist())


def packages() -> dict[str, Path]:
    """The packages that pyproject names, and the folder of each."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    return {name: REPOSITORY.joinpath(*name.split(".")[1:]) for name in settings["packages"]}


def test_every_folder_with_code_is_a_package() -> None:
    with_code = {file.parent for room in ROOMS for file in (REPOSITORY / room).rglob("*.py")}
    assert set(packages().values()) == with_code


def test_every_room_is_typed() -> None:
    """A room's marker covers the packages inside it (PEP 561)."""
    assert not [room for room in ROOMS if not (REPOSITORY / room / "py.typed").is_file()]


def test_every_package_has_an_init() -> None:
    assert not [name for name, folder in packages().items() if not (folder / "__init__.py").is_file()]


def test_the_wheel_holds_what_the_folders_hold(wheel: set[str]) -> None:
    shipped = {name for name in wheel if ".dist-info/" not in name}
    assert shipped == files_of_the_rooms()
    assert {Path(name).suffix for name in shipped} >= {".py", ".yaml", ".xml", ".typed"}


def test_the_wheel_takes_only_one_name(wheel: set[str]) -> None:
    assert "flowchunk/__init__.py" not in wheel
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"flowchunk"}


def test_the_wheel_has_its_command_and_licence(wheel: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
    assert any(name.endswith("/LICENSE") for name in wheel)
