"""Formats of data sets, a file each; ``open_dataset`` recognizes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import DatasetError

HDF5 = (".h5", ".hdf5", ".hdf")
MAPPINGS = (".yaml", ".yml")
READABLE = (
    "flowchunk's and diffusion_policy's zarr (a folder, or zipped), robomimic HDF5, LeRobot v2.0, v2.1 and v3.0 (a folder "
    "with meta/info.json), and HDF5 or npz files by a mapping (a YAML file)"
)


def open_dataset(
    path: str | Path,
    *,
    sources: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
) -> EpisodeSource:
    """Open a data set of any format for reading.

    sources, image_size: see ``EpisodeSource``. Raises DatasetError if the path does not exist, is of no known format, or the
    data set is damaged.
    """
    path = Path(path).expanduser()
    return _format_of(path).open(path, sources=sources, image_size=image_size)


def _format_of(path: Path) -> type[EpisodeSource]:
    """The class that reads the data set at a path; by default zarr, whose errors say what is missing."""
    if (path / "meta" / "info.json").is_file():
        from flowchunk.datasets.formats.lerobot import LeRobotSource

        return LeRobotSource
    if path.is_file() and path.suffix in HDF5:
        return _hdf5_format(path)
    if path.is_file() and path.suffix in MAPPINGS:
        from flowchunk.datasets.formats.mapped import MappedSource

        return MappedSource
    if path.is_file() and path.suffix == ".npz":
        raise NeedsMappingError(path)
    if path.is_dir() and not (path / "meta").exists() and (files := _array_files(path)):
        raise DatasetError(
            f"{path} is not a data set but a folder of {len(files)} files: give one of them, or a mapping that describes "
            f"all, which flowchunk data inspect {files[0]} suggests if their layout is not known"
        )
    if path.is_file() and path.suffix != ".zip":
        raise DatasetError(f"{path} is of no known format; readable are {READABLE}")
    from flowchunk.datasets.formats.zarr_store import Store

    return Store


def _array_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (*HDF5, ".npz"))


def _hdf5_format(path: Path) -> type[EpisodeSource]:
    from flowchunk.datasets.formats.robomimic import RobomimicSource, is_robomimic

    if not is_robomimic(path):
        raise NeedsMappingError(path)
    return RobomimicSource


class NeedsMappingError(DatasetError):
    """A file whose arrays have no known layout. file: its arrays; suggestion: a mapping to start from, as YAML."""

    def __init__(self, path: Path) -> None:
        from flowchunk.datasets.formats.array_files import open_array_file, suggest_mapping

        self.file = open_array_file(path)
        self.suggestion = suggest_mapping(self.file)
        super().__init__(
            f"{path} has no layout that is known, so a mapping must say what its arrays are: write a YAML file beside it, "
            f"and give that as the path. To start from:\n\n{self.suggestion}"
        )
