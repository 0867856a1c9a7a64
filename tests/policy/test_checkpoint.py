"""Checkpoints: atomic, read back bit for bit, and never by unpickling."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy import checkpoint as module
from flowchunk.policy.checkpoint import (
    FORMAT_VERSION,
    atomic_directory,
    find_checkpoint,
    load_tensors,
    previous_path,
    read_checkpoint,
    read_json,
    save_tensors,
    write_checkpoint,
)
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.sampling import SamplingOptions

KIND = "toy"
FROZEN = Path(__file__).parent / "frozen_format_1"
MIB = 2**20


def weights(value: float = 0.5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(7, 5, generator=generator) * value,
        "layer.bias": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "steps": torch.tensor(12_345_678_901),
        "half": torch.randn(3, 1, 2, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }


def write(path: Path, value: float = 0.5, **options: Any) -> None:
    write_checkpoint(path, kind=KIND, description={"note": value}, weights=weights(value), **options)


def note(path: Path) -> float:
    return float(read_checkpoint(path, kind=KIND)[0]["note"])


def assert_same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        bits = [value.contiguous().reshape(-1).view(torch.uint8) for value in (got[name], tensor)]
        assert torch.equal(*bits), name


def edit(path: Path, **changes: Any) -> None:
    content = json.loads((path / "checkpoint.json").read_text()) | changes
    (path / "checkpoint.json").write_text(json.dumps(content))


# Round trips.


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_are_read_back_bit_for_bit(tmp_path: Path, sharded: bool) -> None:
    write(tmp_path / "a", sharded=sharded)
    description, got = read_checkpoint(tmp_path / "a", kind=KIND)
    assert_same_bits(got, weights())
    assert description["note"] == 0.5
    assert description["format_version"] == FORMAT_VERSION
    assert description["versions"].keys() == {"flowchunk", "torch"}


def test_no_shard_is_above_fifteen_mebibytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    large = {
        "first": torch.randn(1000, 10, generator=generator),
        "larger_than_a_shard": torch.randn(5000, 1900, generator=generator),  # 36 MiB
        "half_a_shard": torch.randn(2 * MIB, generator=generator),
        "another_half": torch.randn(2 * MIB, generator=generator),
        "last": torch.randn(3, generator=generator),
    }
    write_checkpoint(tmp_path / "a", kind=KIND, description={}, weights=large, sharded=True)
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    assert len(files) >= 4
    assert max(file.stat().st_size for file in files) <= 15 * MIB
    assert_same_bits(read_checkpoint(tmp_path / "a", kind=KIND)[1], large)


def test_many_pieces_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 64)
    tensors = {"rows": torch.arange(300.0).reshape(100, 3), "few": torch.arange(4)}
    files = save_tensors(tmp_path, "model", tensors, sharded=True)
    assert len(files) > 15
    assert_same_bits(load_tensors(tmp_path, files), tensors)


def test_extra_files_are_written_to_the_same_directory(tmp_path: Path) -> None:
    write(tmp_path / "a", write_extra_files=lambda directory: (directory / "more.json").write_text("{}") and None)
    assert read_json(tmp_path / "a" / "more.json") == {}


def test_writing_again_replaces_everything(tmp_path: Path) -> None:
    write(tmp_path / "a", 1.0, sharded=True)
    write(tmp_path / "a", 2.0)
    assert note(tmp_path / "a") == 2.0
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"checkpoint.json", "model.safetensors"}
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


# What cannot be read.


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere: no such path; give a run directory"):
        read_checkpoint(tmp_path / "nowhere", kind=KIND)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no checkpoint\.json and no checkpoints/best"):
        read_checkpoint(tmp_path, kind=KIND)


def test_a_newer_format(tmp_path: Path) -> None:
    write(tmp_path / "a")
    edit(tmp_path / "a", format_version=FORMAT_VERSION + 1)
    with pytest.raises(CheckpointError, match="format 4, but this flowchunk reads up to 3: update flowchunk"):
        read_checkpoint(tmp_path / "a", kind=KIND)


def test_another_kind(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(CheckpointError, match="is a 'toy', but a 'chunk_policy' was expected"):
        ChunkPolicy.load(tmp_path / "a")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_missing_file(tmp_path: Path, sharded: bool) -> None:
    write(tmp_path / "a", sharded=sharded)
    file = next((tmp_path / "a").glob("*.safetensors"))
    file.unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: {file.name} is missing"):
        read_checkpoint(tmp_path / "a", kind=KIND)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    write(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read_checkpoint(tmp_path / "a", kind=KIND)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(os.urandom(1000))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read_checkpoint(tmp_path / "a", kind=KIND)


def test_a_file_that_lacks_a_tensor(tmp_path: Path) -> None:
    write(tmp_path / "a")
    save_tensors(tmp_path / "a", "model", {"steps": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors lacks \['empty', 'half'"):
        read_checkpoint(tmp_path / "a", kind=KIND)


def test_names_may_contain_what_marks_the_parts_of_a_tensor(tmp_path: Path) -> None:
    large = torch.arange(5 * 2**20, dtype=torch.float32).view(-1, 2)
    written = {"cam#1.weight": torch.ones(2), "cam#00001.bias": torch.tensor(3.0), "cam#2.large": large}
    read = load_tensors(tmp_path, save_tensors(tmp_path, "model", written, sharded=True))
    assert read.keys() == written.keys()
    assert all(torch.equal(values, written[name]) for name, values in read.items())


@pytest.mark.parametrize("plugin", [{"kind": "network"}, {"kind": "no such kind", "name": "mlp", "module": "x"}])
def test_a_description_with_a_plug_in_that_is_none(tmp_path: Path, plugin: dict[str, str]) -> None:
    write(tmp_path / "a")
    content = read_json(tmp_path / "a" / "checkpoint.json")
    (tmp_path / "a" / "checkpoint.json").write_text(json.dumps({**content, "plugins": [plugin]}))
    with pytest.raises(CheckpointError, match="names a plug-in that is none"):
        read_checkpoint(tmp_path / "a", kind=KIND)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format_version": 1', b"[1, 2]", b"3"])
def test_a_damaged_description(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json (cannot be read|contains a \w+, but an object)"):
        read_checkpoint(tmp_path / "a", kind=KIND)


@pytest.mark.parametrize("key", ["format_version", "kind", "weights"])
def test_a_description_that_lacks_something(tmp_path: Path, key: str) -> None:
    write(tmp_path / "a")
    content = read_json(tmp_path / "a" / "checkpoint.json")
    del content[key]
    (tmp_path / "a" / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=str(tmp_path / "a")):
        read_checkpoint(tmp_path / "a", kind=KIND)


# Which checkpoint a path means.


def test_a_run_means_its_best_and_else_its_last(tmp_path: Path) -> None:
    write(tmp_path / "run" / "checkpoints" / "last", 1.0)
    assert note(tmp_path / "run") == 1.0
    write(tmp_path / "run" / "checkpoints" / "best", 2.0)
    assert note(tmp_path / "run") == 2.0
    assert note(tmp_path / "run" / "checkpoints") == 2.0
    assert note(tmp_path / "run" / "checkpoints" / "last") == 1.0


def test_the_current_folder_is_a_path_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        find_checkpoint(".")
    write(tmp_path / "checkpoints" / "best", 3.0)
    assert note(Path()) == 3.0


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a", 4.0)
    assert note(Path("~/a")) == 4.0


# Crashes.


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    write(checkpoints / "last", 1.0)
    (checkpoints / "last").rename(previous_path(checkpoints / "last"))
    assert [file.name for file in checkpoints.iterdir()] == [".last.previous"]
    assert note(checkpoints / "last") == 1.0
    assert note(tmp_path / "run") == 1.0
    write(checkpoints / "last", 2.0)
    assert note(checkpoints / "last") == 2.0
    assert [file.name for file in checkpoints.iterdir()] == ["last"]


def test_a_crash_while_the_previous_one_is_removed_keeps_the_new_one(tmp_path: Path) -> None:
    write(tmp_path / "last", 2.0)
    write(previous_path(tmp_path / "last"), 1.0)
    assert note(tmp_path / "last") == 2.0


def test_an_incomplete_directory_is_neither_found_nor_an_obstacle(tmp_path: Path) -> None:
    partial = tmp_path / ".a.partial"
    partial.mkdir()
    (partial / "checkpoint.json").write_text('{"format_version": 1')
    with pytest.raises(CheckpointError, match="no such path"):
        find_checkpoint(tmp_path / "a")
    write(tmp_path / "a")
    assert {file.name for file in tmp_path.iterdir()} == {"a"}
    assert not (tmp_path / "a" / ".a.partial").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), KeyboardInterrupt()])
def test_an_error_while_writing_keeps_the_previous_one(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "a", 1.0)
    expected = CheckpointError if isinstance(error, OSError) else type(error)

    def fail(directory: Path) -> None:
        raise error

    with pytest.raises(expected):
        write(tmp_path / "a", 2.0, write_extra_files=fail)
    assert note(tmp_path / "a") == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_failed_replacement_keeps_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", 1.0)
    rename = Path.rename

    def fail_on_the_second(self: Path, target: Path) -> Path:
        if target == tmp_path / "a":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_second)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*Input/output error.*the previous checkpoint is unchanged"
    ):
        write(tmp_path / "a", 2.0)
    monkeypatch.undo()
    assert note(tmp_path / "a") == 1.0
    write(tmp_path / "a", 3.0)
    assert note(tmp_path / "a") == 3.0


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*free some disk space or choose another output_dir"):
        write(tmp_path / "file" / "a")


def test_the_folder_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "a") as partial:
        (partial / "x").write_text("x")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "x"


FULL_DISK = """
import resource, signal, sys
import torch
from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.checkpoint import write_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_checkpoint(sys.argv[1], kind="toy", description={"note": 2.0}, weights={"large": torch.ones(2**18)})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 2**19])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, limit: int) -> None:
    write(tmp_path / "a", 1.0)
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "a", str(limit)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in result.stdout
    assert "File too large" in result.stdout
    assert "the previous checkpoint is unchanged" in result.stdout
    assert note(tmp_path / "a") == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


# For ever.


def frozen_chunks(policy: ChunkPolicy) -> dict[str, np.ndarray]:
    expected = json.loads((FROZEN / "expected.json").read_text())
    observation = {"state": np.array(expected["observation"])}
    seed, prefix = expected["seed"], np.array(expected["prefix"], dtype=np.float32)
    return {
        "euler_4": policy.predict_chunk(observation, nfe=4, seed=seed),
        "euler_10": policy.predict_chunk(observation, nfe=10, seed=[seed]),
        "prefix": policy.predict_chunk(observation, nfe=4, seed=seed, prefix=prefix),
    }


def test_checkpoints_of_format_1_still_load() -> None:
    policy = ChunkPolicy.load(FROZEN / "checkpoint")
    expected = json.loads((FROZEN / "expected.json").read_text())["chunks"]
    for name, chunk in frozen_chunks(policy).items():
        np.testing.assert_allclose(
            chunk, np.array(expected[name]), rtol=1e-5, atol=5e-3, err_msg=name
        )  # 1e-5 of 512 px
    assert policy.action_spec.dimensions[1].name == "target_y"
    assert policy.observation_spec.fields["state"].wraps == (4,)
    assert policy.config.prefix_max == 4
    assert policy.valid_nfe is None


def test_checkpoints_of_format_2_load_for_ever() -> None:
    frozen = FROZEN.with_name("frozen_format_2")
    policy, expected = ChunkPolicy.load(frozen / "checkpoint"), json.loads((frozen / "expected.json").read_text())
    observation, prefix = {"state": np.array(expected["observation"])}, np.array(expected["prefix"], dtype=np.float32)
    chunks = {
        "four": policy.predict_chunk(observation, nfe=4, seed=7),
        "ten": policy.predict_chunk(observation, nfe=10, seed=[7]),
        "prefix": policy.predict_chunk(observation, nfe=4, seed=7, prefix=prefix),
    }
    for name, chunk in chunks.items():
        np.testing.assert_allclose(chunk, np.array(expected["chunks"][name]), rtol=1e-5, atol=5e-3, err_msg=name)
    assert policy.config.sampling == SamplingOptions(solver="dpm_solver", noise_scale=0.9)
    assert (policy.config.objective, policy.config.min_snr_gamma) == ("data_prediction", 5.0)


def test_what_was_frozen_can_be_written_again(tmp_path: Path) -> None:
    policy = ChunkPolicy.load(FROZEN / "checkpoint")
    policy.save(tmp_path / "again")
    frozen = {f"model.{name}": value for name, value in load_file(FROZEN / "checkpoint" / "model.safetensors").items()}
    assert_same_bits(load_file(tmp_path / "again" / "model.safetensors"), frozen)


def test_the_frozen_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in FROZEN.rglob("*") if file.is_file()) < 60_000


def test_loading_never_unpickles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    frozen_chunks(ChunkPolicy.load(FROZEN / "checkpoint"))


def test_loading_needs_no_hydra_and_no_simulator() -> None:
    code = (
        "import sys\nfrom flowchunk.policy.chunk_policy import ChunkPolicy\nChunkPolicy.load(sys.argv[1])\n"
        "print([name for name in ('hydra', 'omegaconf', 'mujoco', 'gymnasium', 'accelerate') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, FROZEN / "checkpoint"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
