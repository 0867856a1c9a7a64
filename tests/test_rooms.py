"""The rooms: imports run one way, datasets <- policy <- envs <- cli, and nothing heavy comes in where it is not needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("datasets", "policy", "envs", "cli")
MODULES = [file for room in (*ROOMS, "configs") for file in sorted((REPOSITORY / room).rglob("*.py"))]

each_module = pytest.mark.parametrize("module", MODULES, ids=lambda file: str(file.relative_to(REPOSITORY)))


def imported(module: Path) -> Iterator[str]:
    """Full names of all that a module imports, wherever in the file, absolute or relative."""
    package = ("flowchunk", *module.relative_to(REPOSITORY).parent.parts)
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room that an imported name lives in, None for the libraries of others."""
    first, *rest = name.split(".")
    return rest[0] if first == "flowchunk" and rest else None


def allowed(room: str) -> set[str]:
    return (
        {"configs"} if room == "configs" else {*ROOMS[: ROOMS.index(room) + 1], *(["configs"] if room == "cli" else [])}
    )


def test_there_are_modules_in_every_room() -> None:
    assert {module.relative_to(REPOSITORY).parts[0] for module in MODULES} == {*ROOMS, "configs"}
    assert sum(room_of(name) is not None for module in MODULES for name in imported(module)) > 50


@each_module
def test_imports_run_one_way(module: Path) -> None:
    room = module.relative_to(REPOSITORY).parts[0]
    rooms = {name: room_of(name) for name in imported(module)}
    wrong = {name for name, other in rooms.items() if other is not None and other not in allowed(room)}
    assert not wrong, f"{room} may import only {sorted(allowed(room))}"


@each_module
def test_the_package_is_imported_by_its_full_name(module: Path) -> None:
    assert not {name for name in imported(module) if name.split(".")[0] in (*ROOMS, "configs")}


def test_datasets_need_torch_only_for_windows_and_objects_in_images() -> None:
    with_torch = {
        str(module.relative_to(REPOSITORY / "datasets"))
        for module in MODULES
        if module.is_relative_to(REPOSITORY / "datasets")
        and any(name.split(".")[0] in ("torch", "torchvision") for name in imported(module))
    }
    assert with_torch == {"windows.py", "planar_object.py"}


def test_drivers_of_robots_need_neither_torch_nor_mujoco() -> None:
    """And Gymnasium only those that drive one of its environments."""
    found: dict[str, set[str]] = {"torch": set(), "mujoco": set(), "gymnasium": set()}
    for module in (REPOSITORY / "envs" / "robots").glob("*.py"):
        for name in {name.split(".")[0] for name in imported(module)} & found.keys():
            found[name].add(module.stem)
    lockstep = {"env_holding", "gym_robot", "simulated_server", "simulated_task"}
    assert found == {"torch": set(), "mujoco": set(), "gymnasium": lockstep}


def test_a_name_is_followed_into_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the imports must itself find each way to write one."""
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    (tmp_path / "envs" / "tasks").mkdir(parents=True)
    module = tmp_path / "envs" / "tasks" / "arm.py"
    module.write_text(
        "import flowchunk.cli.main as main\nfrom flowchunk import policy\nfrom .. import video\nfrom . import pusht\n"
        "def late():\n    from flowchunk.datasets.formats.zarr_store import Store\n"
        "from ...cli import options\nimport numpy.linalg\n"
    )
    assert {room_of(name) for name in imported(module)} == {"cli", "policy", "envs", "datasets", None}
    assert set(imported(module)) == {
        "flowchunk.cli.main",
        "flowchunk.policy",
        "flowchunk.envs.video",
        "flowchunk.envs.tasks.pusht",
        "flowchunk.datasets.formats.zarr_store.Store",
        "flowchunk.cli.options",
        "numpy.linalg",
    }


@pytest.mark.parametrize("benchmark", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_benchmarks_need_no_code_of_the_command_line(benchmark: Path) -> None:
    """They may run its commands, as anybody does; what else they need is in the library."""
    from_cli = {name for name in imported(benchmark) if room_of(name) == "cli"}
    assert from_cli <= {"flowchunk.cli.main.main"}
