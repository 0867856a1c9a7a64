"""A cache of decoded images for training: on disk, in memory, or on the device.

Stores hold images in compressed chunks, and reading a random batch takes longer than a training step. So they are decoded
once: to a memory-mapped file that later runs use again (memory does not grow with the data), or into memory.
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

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.image_cache_file import ImageCacheFile, decode_images, find_cache_file
from flowchunk.datasets.image_reader import ImageReader, report_dropped_episodes
from flowchunk.datasets.shape_repr import shape_repr
from flowchunk.datasets.specs import ObservationField

MODES = ("auto", "device", "disk", "ram")  # auto tries the other three in this order
MAPPED_BYTES = 128 * 2**20  # mapped pages to keep in the process's memory; recent kernels map far more than is read
GB = 1e9

Say = Callable[[str], None]
Write = Callable[[int, np.ndarray], object]  # takes the index of a block's first frame, and the block


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory.

    free: bytes. allocate: called with a key and (N, H, W, 3), allocates all images of that key and returns the function
    that writes them.
    """

    free: int
    allocate: Callable[[str, tuple[int, ...]], Write]


@dataclass(frozen=True)
class ImageCacheOptions:
    """Where images are cached for training.

    mode: "disk" (a memory-mapped file), "ram", "device" (the GPU's memory), or "auto": the device if the images fit into a
    third of its free memory, else the disk, else memory if they fit into half of what is available.
    directory: for the files, by default ``flowchunk`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. limit_gb: the largest size of
    that directory in GB (1e9 bytes). skip_corrupt: leave out episodes with unreadable frames instead of raising an error.
    Raises ConfigurationError for an unknown mode or a limit below 0.
    """

    mode: str = "auto"
    directory: str | Path | None = None
    limit_gb: float = 200.0
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigurationError(f"cache={self.mode} is unknown; choose one of {', '.join(MODES)}")
        if not self.limit_gb >= 0:
            raise ConfigurationError(f"cache_limit_gb={self.limit_gb} must be at least 0")

    @property
    def folder(self) -> Path:
        """The directory, with its default and ``~`` resolved."""
        if self.directory is not None:
            return Path(self.directory).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowchunk"


@dataclass
class ImageCache:
    """All images of a data set; ``load_image_cache`` creates it.

    arrays: {key: uint8 (N, H, W, 3)}; read-only memory maps if place is "disk", empty if it is "device". place: "disk",
    "ram" or "device". dropped: {episode: reason} for episodes with unreadable frames, which are black in the arrays.
    """

    arrays: Mapping[str, np.ndarray]
    place: str
    dropped: Mapping[int, str]
    maps: tuple[mmap.mmap, ...] = field(default=(), repr=False)
    _resident: int = field(default_factory=lambda: _file_backed_memory(), repr=False)

    __repr__ = shape_repr

    def release_pages(self) -> None:
        """Unmap the pages that were read once there are many, so that memory does not grow; call it after reading.

        They stay in the operating system's page cache, so reading them again needs no disk access.
        """
        if self.maps and _file_backed_memory() > self._resident + MAPPED_BYTES:
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._resident = _file_backed_memory()


def load_image_cache(
    store: EpisodeSource,
    fields: Mapping[str, ObservationField],
    options: ImageCacheOptions,
    *,
    device: DeviceMemory | None = None,
    say: Say | None = print,
) -> ImageCache:
    """Decode the images of ``fields``, or find them decoded, in the place that the options choose.

    device: the memory that mode "device" uses; None without a device. say: called with messages on what was chosen and why,
    and on dropped episodes; None for silence.
    Raises DatasetError if images are missing, damaged, not as ``fields`` describes them, or fit nowhere;
    ConfigurationError for mode "device" without a device.
    """
    report, visible = say or _ignore, say is not None
    sources = {key: ImageReader.find(store, key, spec) for key, spec in fields.items()}
    needed = sum(store.num_frames * spec.size for spec in fields.values())
    place, files, reason = _choose(sources, needed, options, device.free if device else None, visible=visible)
    report(f"{_gb(needed)} of images {_PLACES[place]}, cache={place} ({reason})")
    arrays, damaged, maps = dict[str, np.ndarray](), {}, []
    for key, source in sources.items():
        if place == "disk":
            damaged[key] = _on_disk(source, files[key], options, report, visible=visible)
            arrays[key], mapped = files[key].open()
            maps.append(mapped)
        else:
            allocate = device.allocate if device and place == "device" else partial(_allocate, arrays)
            write = allocate(key, (store.num_frames, *source.field.shape))
            damaged[key] = _write_blocks(source, options, write, visible=visible)
    return ImageCache(arrays, place, report_dropped_episodes(store, sources, damaged, report), tuple(maps))


def available_memory() -> int:
    """Bytes of memory that the operating system reports as available; half of all memory if it reports nothing."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _file_backed_memory() -> int:
    """Bytes of mapped files in the process's memory; 0 if the operating system does not report them (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _choose(
    sources: Mapping[str, ImageReader],
    needed: int,
    options: ImageCacheOptions,
    device_free: int | None,
    *,
    visible: bool,
) -> tuple[str, dict[str, ImageCacheFile], str]:
    """The first place that has room: its name, the files if it is the disk, and why it was chosen."""
    is_auto, files = options.mode == "auto", dict[str, ImageCacheFile]()
    problems: list[str] = []
    if options.mode == "device" and device_free is None:
        raise ConfigurationError("cache=device needs a GPU, but training runs on the CPU; use cache=auto, disk or ram")
    for place in MODES[1:] if is_auto else (options.mode,):
        if place == "disk":
            files = {key: find_cache_file(options.folder, source, visible=visible) for key, source in sources.items()}
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
        f"cache={options.mode}: no place for {_gb(needed)} of images: {'; '.join(problems)}. Free some space, or choose: "
        "cache=disk with another cache_dir or a larger cache_limit_gb, cache=ram, cache=device, or a smaller data set"
    )


def _memory_problem(where: str, needed: int, free: int, *, parts: int) -> str | None:
    if needed * parts <= free:
        return None
    share = "" if parts == 1 else f", of which 1/{parts} may be used"
    return f"{where} has {_gb(free)} free{share}"


def _disk_problem(files: list[ImageCacheFile], options: ImageCacheOptions) -> str | None:
    """Why the missing files cannot be written; None if they can."""
    new = sum({file.path: file.nbytes for file in files if file.read_damaged() is None}.values())
    if not new:
        return None
    try:
        return _no_room(new, options)
    except OSError as error:
        return f"{options.folder} cannot be written ({error})"


def _no_room(new: int, options: ImageCacheOptions) -> str | None:
    """Why that many bytes do not fit into the folder, which is created; None if they do. Raises OSError if it cannot be."""
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
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=options.folder):
        return None


def _on_disk(
    source: ImageReader, file: ImageCacheFile, options: ImageCacheOptions, report: Say, *, visible: bool
) -> dict[int, str]:
    """Decode into the file if it is missing; returns {frame: what is wrong}."""
    damaged = file.read_damaged()
    report(f"{source}: {_gb(file.nbytes)} {'are decoded to' if damaged is None else 'found in'} {file.path}")
    if damaged is None:
        return file.build(source, skip_corrupt=options.skip_corrupt, visible=visible)
    if damaged and not options.skip_corrupt:
        raise source.damage_error(damaged)
    return damaged


def _write_blocks(source: ImageReader, options: ImageCacheOptions, write: Write, *, visible: bool) -> dict[int, str]:
    """Decode the source, passing each block to ``write``; returns {frame: what is wrong}."""
    written = 0

    def write_next(block: np.ndarray) -> None:
        nonlocal written
        write(written, block)
        written += len(block)

    return decode_images(source, write_next, skip_corrupt=options.skip_corrupt, visible=visible)


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
