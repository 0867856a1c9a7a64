"""Keep a data set's pictures where training reads them fast: expanded on disk, in memory, or for the device.

Stores hold frames in compressed chunks, and reading random ones costs more than a training step. So they are expanded once:
to a memory-mapped file that later runs find again (memory does not grow with the data), or into memory.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.frame_file import FrameFile, expand, frame_file
from flowchunk.datasets.frames import PictureSource, name_dropped_episodes
from flowchunk.datasets.specs import ObservationField
from flowchunk.datasets.store import Store

MODES = ("auto", "device", "disk", "ram")  # auto tries the others in this order
MAPPED_BYTES = 128 * 2**20  # of maps that may be in the process's memory; recent kernels map far more than is read
GB = 1e9

Say = Callable[[str], None]
Write = Callable[[int, np.ndarray], object]  # takes a block of frames, and the number of its first


@dataclass(frozen=True)
class DeviceMemory:
    """A device's own memory: free bytes, and what makes room for all frames (N, H, W, 3) of a key and then takes them."""

    free: int
    allocate: Callable[[str, tuple[int, ...]], Write]


@dataclass(frozen=True)
class FrameCacheOptions:
    """Where pictures are kept for training.

    mode: "disk" (a memory-mapped file), "ram", "device" (the GPU's memory), or "auto", which takes the device where they fit
    into a third of its free memory, else the disk, else memory where they fit into half of what is available.
    directory: of the files, by default ``flowchunk`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. limit_gb: how large that
    directory may grow, in GB (1e9 bytes). skip_corrupt: leave out episodes with frames that cannot be read, instead of
    raising an error. Raises ConfigurationError for another mode or a limit below 0.
    """

    mode: str = "auto"
    directory: str | Path | None = None
    limit_gb: float = 200.0
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigurationError(f"cache={self.mode}: unknown; there are {', '.join(MODES)}")
        if not self.limit_gb >= 0:
            raise ConfigurationError(f"cache_limit_gb={self.limit_gb} must be at least 0")

    @property
    def folder(self) -> Path:
        """The directory of the files."""
        if self.directory is not None:
            return Path(self.directory).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowchunk"


@dataclass
class Frames:
    """All frames of a data set's pictures.

    arrays: {key: uint8 (N, H, W, 3)}, memory maps, read-only, where place is "disk"; none where it is "device". dropped:
    {episode: why} of those that hold frames which cannot be read (black here).
    """

    arrays: Mapping[str, np.ndarray]
    place: str
    dropped: Mapping[int, str]
    maps: tuple[mmap.mmap, ...] = ()
    _resident: int = field(default_factory=lambda: _file_backed_memory(), repr=False)

    def release_pages(self) -> None:
        """To be called after reading: gives the maps' pages back once they are many, so that memory does not grow.

        What was read stays in the operating system's page cache, so that reading it again costs no disk access.
        """
        if self.maps and _file_backed_memory() > self._resident + MAPPED_BYTES:
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._resident = _file_backed_memory()


def load_frames(
    store: Store,
    fields: Mapping[str, ObservationField],
    options: FrameCacheOptions,
    *,
    device: DeviceMemory | None = None,
    say: Say | None = print,
) -> Frames:
    """All frames of the pictures ``fields``, where the options want them.

    device: what "device" means, None where there is none. say: is told what was chosen and why, and which episodes are
    dropped; None for silence.
    Raises DatasetError where pictures are missing, damaged, of another kind than ``fields`` says, or fit nowhere;
    ConfigurationError for mode "device" without one.
    """
    tell, visible = say or _ignore, say is not None
    sources = {key: PictureSource.find(store, key, one) for key, one in fields.items()}
    needed = sum(store.frames * one.size for one in fields.values())
    place, files, why = _choose(sources, needed, options, device.free if device else None, visible=visible)
    tell(f"{_gb(needed)} of pictures {_PLACES[place]}, cache={place} ({why})")
    arrays, damaged, maps = dict[str, np.ndarray](), {}, []
    for key, source in sources.items():
        if place == "disk":
            damaged[key] = _on_disk(source, files[key], options, tell, visible=visible)
            arrays[key], mapped = files[key].open()
            maps.append(mapped)
        else:
            allocate = device.allocate if device and place == "device" else partial(_allocate, arrays)
            write = allocate(key, (store.frames, *source.field.shape))
            damaged[key] = _write_blocks(source, options, write, visible=visible)
    return Frames(arrays, place, name_dropped_episodes(store, sources, damaged, tell), tuple(maps))


def available_memory() -> int:
    """Bytes of memory that programs can still take, as far as the operating system tells; half of all where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _file_backed_memory() -> int:
    """Bytes of files that are in the process's memory; 0 where the operating system does not tell, as outside Linux."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _choose(
    sources: Mapping[str, PictureSource],
    needed: int,
    options: FrameCacheOptions,
    device_free: int | None,
    *,
    visible: bool,
) -> tuple[str, dict[str, FrameFile], str]:
    """The first place without a problem: its name, the files if it is the disk, and why it was chosen."""
    is_auto, files = options.mode == "auto", dict[str, FrameFile]()
    problems: list[str] = []
    if options.mode == "device" and device_free is None:
        raise ConfigurationError("cache=device needs a GPU, but training runs on the CPU; use cache=auto, disk or ram")
    for place in MODES[1:] if is_auto else (options.mode,):
        if place == "disk":
            files = {key: frame_file(options.folder, source, visible=visible) for key, source in sources.items()}
            problem = _disk_problem(list(files.values()), options)
        elif place == "device":
            problem = _memory_problem("the device", needed, device_free or 0, parts=3 if is_auto else 1)
        else:
            problem = _memory_problem("memory", needed, available_memory(), parts=2 if is_auto else 1)
        if problem is None:
            return place, files, "; ".join((*problems, _REASONS[place])) if is_auto else "as asked"
        if not (place == "device" and device_free is None):
            problems.append(problem)
    raise DatasetError(
        f"cache={options.mode}: no place for {_gb(needed)} of pictures: {'; '.join(problems)}. Free some space, or choose: "
        "cache=disk with another cache_dir or a larger cache_limit_gb, cache=ram, cache=device, or a smaller data set"
    )


def _memory_problem(where: str, needed: int, free: int, *, parts: int) -> str | None:
    if needed * parts <= free:
        return None
    share = "" if parts == 1 else f", of which 1/{parts} may be used"
    return f"{where} has {_gb(free)} free{share}"


def _disk_problem(files: list[FrameFile], options: FrameCacheOptions) -> str | None:
    """Why the files that are not there yet cannot be written."""
    new = sum({file.path: file.nbytes for file in files if file.read_damaged() is None}.values())
    if not new:
        return None
    held = sum(path.stat().st_size for path in options.folder.glob("*.npy"))
    if held + new > options.limit_gb * GB:
        return (
            f"{options.folder} holds {_gb(held)} and needs {_gb(new)} more, but cache_limit_gb={options.limit_gb:g} "
            "(old .npy files there may be deleted)"
        )
    existing = next(folder for folder in (options.folder, *options.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if new > free:
        return f"the disk of {options.folder} has {_gb(free)} free and {_gb(new)} are needed"
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.folder):
            return None
    except OSError as error:
        return f"{options.folder} cannot be written ({error})"


def _on_disk(
    source: PictureSource, file: FrameFile, options: FrameCacheOptions, tell: Say, *, visible: bool
) -> dict[int, str]:
    """Expand into the file unless it is there; {frame: what is wrong}."""
    damaged = file.read_damaged()
    tell(f"{source}: {_gb(file.nbytes)} {'are expanded to' if damaged is None else 'found in'} {file.path}")
    if damaged is None:
        return file.build(source, skip_corrupt=options.skip_corrupt, visible=visible)
    if damaged and not options.skip_corrupt:
        raise source.damage_error(damaged)
    return damaged


def _write_blocks(source: PictureSource, options: FrameCacheOptions, write: Write, *, visible: bool) -> dict[int, str]:
    """Expand by ``write``; {frame: what is wrong}."""
    written = 0

    def take(block: np.ndarray) -> None:
        nonlocal written
        write(written, block)
        written += len(block)

    return expand(source, take, skip_corrupt=options.skip_corrupt, visible=visible)


def _allocate(arrays: dict[str, np.ndarray], key: str, shape: tuple[int, ...]) -> Write:
    array = arrays[key] = np.empty(shape, np.uint8)

    def write(start: int, block: np.ndarray) -> None:
        array[start : start + len(block)] = block

    return write


_PLACES = {"disk": "in a memory-mapped file", "ram": "in memory", "device": "on the device"}
_REASONS = {
    "disk": "memory does not grow with the data",
    "ram": "they fit into half of the available memory",
    "device": "they fit into a third of its free memory",
}


def _gb(nbytes: float) -> str:
    return f"{nbytes / GB:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.2f} MB"


def _ignore(_: str) -> None:
    pass
