"""What the rooms offer: every name is there, and asking for one loads no more than it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.policy.small_trainers import make_policy

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("datasets", "policy", "envs", "envs/robots")
HEAVY = ("accelerate", "hydra", "matplotlib", "mujoco", "sklearn", "tensorboard", "wandb")

each_room = pytest.mark.parametrize("room", ROOMS)


def package_of(room: str) -> str:
    return f"flowchunk.{room.replace('/', '.')}"


def typed_names(room: str) -> set[str]:
    """What type checkers see: the imports under ``if TYPE_CHECKING``."""
    module = ast.parse((REPOSITORY / room / "__init__.py").read_text())
    (block,) = (node for node in module.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@each_room
def test_every_offered_name_is_there(room: str) -> None:
    package = import_module(package_of(room))
    assert len(package.__all__) == len(set(package.__all__))
    assert set(package.__all__) == typed_names(room)
    for name in package.__all__:
        found = getattr(package, name)
        assert getattr(found, "__name__", name) == name
    assert set(package.__all__) <= set(dir(package))


@each_room
def test_no_name_hides_a_module(room: str) -> None:
    """``from room import name`` would give the module once anything had imported it."""
    modules = {entry.stem for entry in (REPOSITORY / room).iterdir()}
    assert not modules & set(import_module(package_of(room)).__all__)


@each_room
def test_what_is_not_offered_is_an_attribute_error(room: str) -> None:
    with pytest.raises(AttributeError, match=rf"module '{package_of(room)}' has no attribute 'Unknown'"):
        import_module(package_of(room)).Unknown  # noqa: B018 -- asking is the test
    with pytest.raises(ImportError, match="Unknown"):
        exec(f"from {package_of(room)} import Unknown")


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh Python has loaded after the code."""
    script = f"{code}\nimport sys\nprint('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("LOADED")[2].split())


def test_a_policy_is_loaded_without_what_trains_or_simulates(tmp_path: Path) -> None:
    make_policy().save(tmp_path / "policy")
    loaded = loaded_by(f"from flowchunk.policy import ChunkPolicy\nChunkPolicy.load({str(tmp_path / 'policy')!r})")
    assert "torch" in loaded
    assert not loaded & {*HEAVY, "gymnasium", "omegaconf", "rich", "zarr"}


def test_the_rooms_themselves_load_next_to_nothing() -> None:
    loaded = loaded_by("import flowchunk.datasets, flowchunk.policy")
    assert not loaded & {*HEAVY, "torch", "zarr", "numpy", "gymnasium"}
    assert not loaded_by("import flowchunk.envs") & {*HEAVY, "torch", "zarr"}


def test_what_drives_robots_is_light() -> None:
    """It runs in a process of its own, beside those that need torch and MuJoCo."""
    names = "SimulatedRobot, LeRobotRobot, Robot, SpecMatch, check_robot, holding_action, make_robot"
    loaded = loaded_by(f"from flowchunk.envs.robots import {names}")
    assert not loaded & {*HEAVY, "torch", "scipy", "pyarrow", "zarr", "lerobot", "rich"}


def test_the_flow_needs_torch_and_little_else() -> None:
    loaded = loaded_by("from flowchunk.policy import flow_matching_loss, integrate")
    assert "torch" in loaded
    assert not loaded & {*HEAVY, "gymnasium", "zarr", "rich", "PIL", "diffusers", "torchvision", "safetensors"}
