"""Checkpoints: a directory of safetensors and one JSON file, written whole or not at all, read without unpickling.

``checkpoint.json`` describes everything else: format version, kind, configuration, specifications, normalizer, and which
file contains which tensor. A directory gets its name only when it is complete; while a new one replaces it, the old one is
next to it as ``.NAME.previous``, where ``find_checkpoint`` finds it after a crash.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowchunk.datasets.errors import CheckpointError
from flowchunk.policy.diffusion.objectives import OBJECTIVES
from flowchunk.policy.diffusion.predictions import PREDICTIONS
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.migrations import migrate_description, migrate_weight_name
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.networks.image_networks import IMAGE_NETWORKS
from flowchunk.policy.registry import Registry

FORMAT_VERSION = 3
DESCRIPTION = "checkpoint.json"
REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (PREDICTIONS, OBJECTIVES, SOLVERS, NETWORKS, IMAGE_NETWORKS)
}
READ_TRIES = 5
SHARD = re.compile(r"#\d{5}$")  # the end of the name of a part of a tensor
SHARD_BYTES = 15 * 2**20 - 2**16  # room for the header


def write_checkpoint(
    path: str | Path,
    *,
    kind: str,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    sharded: bool = False,
    write_extra_files: Callable[[Path], None] | None = None,
) -> None:
    """Write (or replace) the checkpoint directory ``path``.

    kind: of model, such as "chunk_policy". description: more entries of ``checkpoint.json``. sharded: split the weights so
    that no file is larger than 15 MiB. write_extra_files: called with the directory, to add files to the same checkpoint.
    Raises CheckpointError if it cannot be written (disk full, no permission); ``path`` is then unchanged.
    """
    with atomic_directory(Path(path)) as partial:
        files = save_tensors(partial, "model", weights, sharded=sharded)
        versions = {name: version(name) for name in ("flowchunk", "torch")}
        content = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "versions": versions,
            "weights": files,
            **description,
        }
        (partial / DESCRIPTION).write_text(json.dumps(content, indent=1))
        if write_extra_files is not None:
            write_extra_files(partial)


def read_checkpoint(path: str | Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the weights at ``path``, a checkpoint or a run directory.

    If training replaces the checkpoint meanwhile it is read again, so both belong together. Raises CheckpointError if there
    is none, it is of another kind, a file is missing or damaged, a plug-in is missing, or the format is newer than this code.
    """
    for is_last_try in (False,) * (READ_TRIES - 1) + (True,):
        identity = None
        try:
            directory = find_checkpoint(path)
            identity = _identity(directory)
            content = _read(directory, kind=kind)
        except CheckpointError:
            if is_last_try or (identity is not None and identity == _identity(directory)):
                raise
            continue
        if identity == _identity(directory):
            return content
    raise CheckpointError(f"{path} was replaced {READ_TRIES} times while it was read; try again")


def _identity(directory: Path) -> tuple[int, int] | None:
    """A value that changes when another checkpoint gets this name; None if there is none."""
    try:
        status = (directory / DESCRIPTION).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_description(path: str | Path) -> dict[str, Any]:
    """The description at ``path``, a checkpoint or a run directory, in the current format. Raises CheckpointError."""
    return _description(find_checkpoint(path))


def _read(directory: Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    description = _description(directory)
    if description.get("kind") != kind:
        raise CheckpointError(f"{directory} is a {description.get('kind')!r}, but a {kind!r} was expected")
    if not isinstance(files := description.get("weights"), dict):
        raise CheckpointError(f"{directory / DESCRIPTION} does not name its weights; copy the checkpoint again")
    _require_plugins(description, directory)
    weights = load_tensors(directory, files)
    return description, {
        migrate_weight_name(name, description["format_version"]): value for name, value in weights.items()
    }


def _description(directory: Path) -> dict[str, Any]:
    description = read_json(directory / DESCRIPTION)
    format_version = description.get("format_version")
    if not isinstance(format_version, int) or format_version > FORMAT_VERSION:
        raise CheckpointError(
            f"{directory} has checkpoint format {format_version}, but this flowchunk reads up to {FORMAT_VERSION}: "
            f"update flowchunk (it was written by {description.get('versions')})"
        )
    return migrate_description(description)


def _require_plugins(description: Mapping[str, Any], directory: Path) -> None:
    for plugin in description.get("plugins", []):
        if not {"kind", "name", "module"} <= plugin.keys() or plugin["kind"] not in REGISTRIES:
            raise CheckpointError(
                f"{directory / DESCRIPTION} names a plug-in that is none: {plugin}; copy the checkpoint again"
            )
        if plugin["name"] not in REGISTRIES[plugin["kind"]]:
            raise CheckpointError(
                f"{directory} needs the {plugin['kind']} {plugin['name']!r} of the plug-in {plugin['module']}, which is not "
                "available: install it, or import it before loading"
            )


def find_run(checkpoint: Path) -> Path:
    """The directory of the run that a checkpoint belongs to; its own if it belongs to none."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def find_checkpoint(path: str | Path) -> Path:
    """Resolve a run directory (its ``best``, else ``last``) or a checkpoint directory. Raises CheckpointError."""
    path = Path(path).expanduser()
    for candidate in (path, path / "checkpoints" / "best", path / "checkpoints" / "last", path / "best", path / "last"):
        for directory in (candidate, *([previous_path(candidate)] if candidate.name else [])):
            if (directory / DESCRIPTION).is_file():
                return directory
    reason = f"it has no {DESCRIPTION} and no checkpoints/best or checkpoints/last" if path.exists() else "no such path"
    raise CheckpointError(f"no checkpoint at {path}: {reason}; give a run directory or a checkpoint directory")


def previous_path(path: Path) -> Path:
    """Where the old directory is while a new one replaces it."""
    return path.with_name(f".{path.name}.previous")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A directory to write to, which becomes ``path`` if the block succeeds, and is deleted if it raises.

    Raises CheckpointError in place of errors of the file system.
    """
    partial, previous = path.with_name(f".{path.name}.partial"), previous_path(path)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in (*partial.iterdir(), partial):
            _flush_to_disk(file)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
        partial.rename(path)
        _flush_to_disk(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise CheckpointError(
            f"cannot write {path}: {error}; the previous checkpoint is unchanged: free some disk space or choose another "
            "output_dir, then resume"
        ) from error
    shutil.rmtree(previous, ignore_errors=True)


def replace_text(file: Path, text: str) -> None:
    """Write a text file atomically: under another name, flushed to disk, then renamed."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    _flush_to_disk(partial)
    partial.replace(file)


def save_tensors(
    directory: Path, name: str, tensors: Mapping[str, Tensor], *, sharded: bool = False
) -> dict[str, list[str]]:
    """Write tensors to ``NAME.safetensors``, or to numbered shards; returns {file: names of its tensors}.

    A tensor larger than a shard is split along its first axis into ``NAME#00000``, ``NAME#00001``, ….
    """
    pieces = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    groups = _shards(pieces) if sharded else [pieces]
    files = {}
    for number, group in enumerate(groups):
        file = f"{name}-{number:05d}.safetensors" if sharded else f"{name}.safetensors"
        save_file(group, directory / file)
        (directory / file).chmod(0o666 & ~_umask())  # safetensors creates them private
        files[file] = list(group)
    return files


def load_tensors(directory: Path, files: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """The tensors that ``save_tensors`` wrote. Raises CheckpointError for a missing or damaged file."""
    pieces: dict[str, Tensor] = {}
    for file, names in files.items():
        if Path(file).name != file:
            raise CheckpointError(f"{directory} names the file {file!r} outside its directory; do not trust it")
        if not (directory / file).is_file():
            raise CheckpointError(f"{directory} is incomplete: {file} is missing; copy the whole directory again")
        try:
            pieces |= load_file(directory / file)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{directory / file} is damaged ({error}); copy it again") from error
        if missing := set(names) - pieces.keys():
            raise CheckpointError(f"{directory / file} lacks {sorted(missing)}; copy it again")
    tensors: dict[str, Tensor] = {}
    split: dict[str, list[Tensor]] = {}
    for name, value in pieces.items():
        if SHARD.search(name):
            split.setdefault(SHARD.sub("", name), []).append(value)
        else:
            tensors[name] = value
    return tensors | {name: torch.cat(parts) for name, parts in split.items()}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} contains a {type(content).__name__}, but an object was expected")
    return content


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, piece in _pieces(tensors):
        if piece.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = piece
        room -= piece.nbytes
    return [shard for shard in shards if shard]


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if tensor.nbytes <= SHARD_BYTES:
            yield name, tensor
            continue
        rows = max(1, SHARD_BYTES * len(tensor) // tensor.nbytes)
        for number, piece in enumerate(torch.split(tensor, rows)):
            yield f"{name}#{number:05d}", piece.contiguous()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
