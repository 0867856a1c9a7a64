"""Data sets of other formats that are damaged or contradict themselves: one message that says where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
import zarr

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats import NeedsMappingError, open_dataset
from tests.datasets.formats.damage import read_everything, truncate
from tests.datasets.formats.foreign import (
    FRAMES,
    HZ,
    IMAGES,
    LENGTHS,
    STATES,
    write_mapped_hdf5,
    write_mapped_npz,
    write_mapped_npz_files,
    write_robomimic,
    write_zarr,
    write_zarr_zip,
)


def test_a_truncated_hdf5_file(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path)
    truncate(path)
    with pytest.raises(DatasetError, match=r"demos.hdf5 cannot be opened as HDF5 .*truncated.*copy it again"):
        open_dataset(path)


def test_a_damaged_episode_of_an_hdf5_file_is_named(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path)
    with h5py.File(path, "r") as file:
        chunk = file["data/demo_9/obs/front"].id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\0" * chunk.size)
    source = open_dataset(path)
    with pytest.raises(DatasetError, match=r"obs/front .*episode 1, demo_9: .*copy the data set again"):
        source.read("front")
    np.testing.assert_array_equal(source.read("front", 0, LENGTHS[0]), IMAGES[: LENGTHS[0]])


def test_a_truncated_zip(tmp_path: Path) -> None:
    path = write_zarr_zip(tmp_path)
    truncate(path)
    with pytest.raises(DatasetError, match="is not a data set: zarr cannot open it"):
        open_dataset(path)


def test_a_zip_with_a_damaged_chunk(tmp_path: Path) -> None:
    path = write_zarr_zip(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(b"data/state/1.0") + 60
    content[place : place + 8] = b"\0" * 8
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read: a chunk is damaged"):
        open_dataset(path).read("state")


def test_a_truncated_npz(tmp_path: Path) -> None:
    path = write_mapped_npz(tmp_path)
    truncate(tmp_path / "all.npz")
    with pytest.raises(DatasetError, match=r"all.npz cannot be opened as npz .*copy it again"):
        open_dataset(path)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(file: Any, name: str, values: np.ndarray) -> None:
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda file: replaced(file, "data/demo_9/obs/state", STATES[:3]),
            r"demo_9/obs/state .*\(3, 2\), but \(4, 2\)",
        ),
        (lambda file: replaced(file, "data/demo_9/obs/state", np.zeros((4, 3))), r"demo_9/obs/state .*but \(4, 2\)"),
        (lambda file: file.pop("data/demo_10/obs/state"), r"demo_10/obs/state .* has shape None.*episode 2"),
        (lambda file: file.pop("data/demo_10/actions"), r"demo_10 .* has no actions"),
        (lambda file: replaced(file, "mask/valid", np.array([b"demo_77"])), r"mask/valid .*demo_77.*correct it"),
    ],
)
def test_episodes_of_hdf5_that_do_not_fit(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    path = write_robomimic(tmp_path)
    edit(path, change)
    with pytest.raises(DatasetError, match=message):
        _ = open_dataset(path).validation_episodes


def test_demonstrations_without_observations_say_so(tmp_path: Path) -> None:
    """robosuite's raw ones hold states of the simulation."""
    path = write_robomimic(tmp_path)

    def strip(file: Any) -> None:
        for demo in file["data"].values():
            del demo["obs"], demo["next_obs"]
            demo["states"] = np.zeros((len(demo["actions"]), 9))

    edit(path, strip)
    source = open_dataset(path)
    assert source.format == "robosuite HDF5 without observations"
    with pytest.raises(DatasetError, match=r"nothing to observe; it holds no observations.*dataset_states_to_obs"):
        derive_specs(source)
    assert derive_specs(source, SpecOptions(observe=["states"])).observation_spec.fields["states"].shape == (9,)


def test_delta_actions_by_the_controller(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path)
    assert {one.reference for one in derive_specs(open_dataset(path)).action_spec.dimensions} == {"absolute"}
    arguments = {"env_kwargs": {"control_freq": HZ, "controller_configs": {"control_delta": True}}}
    edit(path, lambda file: file["data"].attrs.update(env_args=json.dumps(arguments)))
    assert {one.reference for one in derive_specs(open_dataset(path)).action_spec.dimensions} == {"delta"}


@pytest.mark.parametrize(
    ("controller", "size", "grippers"),
    [("OSC_POSE", 7, [6]), ("OSC_POSITION", 4, [3]), ("OSC_POSE", 14, [6, 13]), ("OSC_POSE", 6, []), ("WHEELS", 7, [])],
)
def test_a_gripper_is_set_and_not_moved_by_a_delta(
    controller: str, size: int, grippers: list[int], tmp_path: Path
) -> None:
    path = write_robomimic(tmp_path)

    def change(file: Any) -> None:
        kwargs = {"control_freq": HZ, "controller_configs": {"type": controller, "control_delta": True}}
        file["data"].attrs.update(env_args=json.dumps({"env_kwargs": kwargs}))
        for demo in file["data"].values():
            rows = len(demo["actions"])
            del demo["actions"]
            demo["actions"] = np.zeros((rows, size), np.float32)

    edit(path, change)
    found = derive_specs(open_dataset(path)).action_spec.dimensions
    assert [index for index, one in enumerate(found) if one.reference == "absolute"] == grippers
    assert {one.reference for one in found} <= {"absolute", "delta"}


def test_a_file_of_no_known_layout_comes_with_a_mapping_to_start_from(tmp_path: Path) -> None:
    write_mapped_hdf5(tmp_path)
    with pytest.raises(NeedsMappingError, match="a mapping must say what its arrays are") as error:
        open_dataset(tmp_path / "trajectories.h5")
    suggestion = tmp_path / "suggested.yaml"
    suggestion.write_text(error.value.suggestion.replace("HZ", "10"))
    source = open_dataset(suggestion)
    np.testing.assert_array_equal(source.read("proprio"), STATES)
    assert {*derive_specs(source).observation_spec.fields} == {"proprio", "rgb"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: at.update(data="nothing*.npz"), "matches no file"),
        (lambda at: at.update(episode_end="ends"), "unknown entry 'episode_end'; did you mean episode_ends"),
        (lambda at: at["action"].update(name=["a"]), "unknown entry 'name'; did you mean names"),
        (lambda at: at["action"].pop("array"), "every key needs array: NAME"),
        (lambda at: at.pop("action"), "needs the section action"),
        (lambda at: at["action"].update(array="acts"), r"no array acts; did you mean act\?$"),
        (lambda at: at["action"].update(array="q"), "no array q; there are "),
        (lambda at: at["action"].update(names=["a", "b"]), "has 1 dimensions, but 2 names"),
        (lambda at: at["observations"]["state"].update(array="pos"), "state in .*no array pos"),
        (lambda at: at.update(episode_ends="proprio"), "must increase up to the number of rows"),
        (lambda at: at.update(episode_ends="end"), "is no array"),
        (lambda at: at.pop("data"), "is not a mapping"),
        (lambda at: at["observations"]["state"].update(array="proprios"), "no array proprios; did you mean proprio"),
        (lambda at: at["observations"]["state"].update(array="ends"), "has 3 rows, but there are 20 actions"),
        (lambda at: at.update(data="/nowhere/a.npz"), "must be a path relative to the mapping"),
        (lambda at: at.update(control_hz="10 Hz"), "control_hz: 10 Hz .* must be a number"),
        (lambda at: at["action"].update(reference="deltas"), "reference 'deltas' must be one of"),
        (lambda at: at["observations"]["state"].update(wraps=["z"]), "wraps names 'z', which is no dimension"),
    ],
)
def test_a_mapping_that_does_not_fit(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    path = write_mapped_npz(tmp_path)
    mapping = yaml.safe_load(path.read_text())
    change(mapping)
    path.write_text(yaml.safe_dump(mapping))
    with pytest.raises(DatasetError, match=message):
        _ = open_dataset(path).description


def test_a_mapping_of_groups_that_are_not_there(tmp_path: Path) -> None:
    path = write_mapped_hdf5(tmp_path)
    path.write_text(path.read_text().replace("traj_*", "demo_*"))
    with pytest.raises(DatasetError, match=r"demo_.* matches no group"):
        open_dataset(path)


def test_a_mapped_array_of_texts(tmp_path: Path) -> None:
    path = write_mapped_npz(tmp_path)
    with np.load(tmp_path / "all.npz") as arrays:
        np.savez(tmp_path / "all.npz", **{**arrays, "proprio": np.array(["left"] * len(arrays["act"]))})
    with pytest.raises(
        DatasetError, match=r"'proprio', which holds no numbers; leave it out, or use one of \['act', 'rgb'"
    ):
        _ = open_dataset(path).description


def test_a_wrong_array_of_groups_is_compared_with_those_of_its_group(tmp_path: Path) -> None:
    path = write_mapped_hdf5(tmp_path)
    mapping = yaml.safe_load(path.read_text())
    mapping["action"]["array"] += "s"
    path.write_text(yaml.safe_dump(mapping))
    with pytest.raises(DatasetError, match=r"has no array traj_\d+/acts; did you mean act\?$"):
        open_dataset(path)


def test_a_folder_of_files_says_what_can_be_done_with_them(tmp_path: Path) -> None:
    write_mapped_npz(tmp_path)
    with pytest.raises(DatasetError, match=r"a folder of 1 files: .*flowchunk data inspect .*/all\.npz suggests"):
        open_dataset(tmp_path)
    with pytest.raises(NeedsMappingError):
        open_dataset(tmp_path / "all.npz")


def test_a_mapping_that_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mapping.yaml"
    path.write_text("data: [")
    with pytest.raises(DatasetError, match="cannot be read as YAML"):
        open_dataset(path)


def test_names_units_and_angles_of_a_mapping(tmp_path: Path) -> None:
    specs = derive_specs(open_dataset(write_mapped_npz_files(tmp_path)))
    state = specs.observation_spec.fields["state"]
    assert (state.names, state.units, state.wraps) == (("x", "y"), ("m", "rad"), (1,))
    assert specs.observation_spec.fields["front"].camera == "front"
    assert (specs.action_spec.names, specs.action_spec.dimensions[0].unit) == (("a",), "m")


@pytest.mark.parametrize("name", ["notes.txt", "data.pkl"])
def test_a_file_of_no_known_format(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("text")
    with pytest.raises(DatasetError, match=r"no known format; readable are .*robomimic HDF5, LeRobot"):
        open_dataset(tmp_path / name)


def test_no_actions(tmp_path: Path) -> None:
    path = write_zarr(tmp_path)
    shutil.rmtree(path / "data" / "action")
    source = open_dataset(path)
    with pytest.raises(DatasetError, match=r"has no actions; .*dataset.sources.action=ARRAY, one of .*state"):
        derive_specs(source, SpecOptions(control_hz=HZ))
    with_action = open_dataset(path, sources={"action": "state[1:]"})
    assert derive_specs(with_action, SpecOptions(control_hz=HZ, observe=["state"])).action_spec.size == 1


def test_images_in_a_codec_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UMI's images are JPEG-XL, which needs imagecodecs."""
    path = write_zarr(tmp_path)
    meta = path / "data" / "img" / ".zarray"
    content = json.loads(meta.read_text())
    content["compressor"] = {"id": "imagecodecs_jpegxl", "level": 99}
    meta.write_text(json.dumps(content))
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs.numcodecs", None)
    with pytest.raises(DatasetError, match=r"imagecodecs_jpegxl.*pip install 'flowchunk\[umi\]'"):
        read_everything(path)


def test_arrays_that_are_neither_vectors_nor_images_are_left_out_and_named(tmp_path: Path) -> None:
    path = write_zarr(tmp_path)
    root = zarr.open_group(path, mode="a")
    root.create_array("data/depth", data=np.zeros((FRAMES, 32, 48, 1), np.float32), chunks=(4, 32, 48, 1))
    described = open_dataset(path).description
    assert "depth" not in described.observations
    assert "left out, neither vectors nor RGB images (height, width, 3): depth (32, 48, 1)" in " ".join(described.notes)


def test_episodes_of_different_types_keep_their_values(tmp_path: Path) -> None:
    """Whole numbers in the first episode must not truncate the others."""
    path = write_mapped_npz_files(tmp_path)
    np.savez(tmp_path / "episode_0.npz", act=np.zeros((7, 1), int), proprio=STATES[:7], rgb=IMAGES[:7])
    source = open_dataset(path)
    np.testing.assert_array_equal(source.read("action")[:8, 0], [0] * 7 + [7.5])
    hdf5 = write_robomimic(tmp_path)
    edit(hdf5, lambda file: replaced(file, "data/demo_2/actions", np.zeros((7, 1), np.int64)))
    np.testing.assert_array_equal(open_dataset(hdf5).read("action")[:8, 0], [0] * 7 + [7.5])


def test_a_mapped_episode_of_another_shape_is_named(tmp_path: Path) -> None:
    path = write_mapped_npz_files(tmp_path)
    np.savez(
        tmp_path / "episode_1.npz", act=np.zeros((4, 1)), proprio=STATES[7:11], rgb=np.zeros((4, 48, 32, 3), np.uint8)
    )
    with pytest.raises(DatasetError, match=r"rgb in .*episode_1.npz has frames of shape \(48, 32, 3\) in episode 1"):
        open_dataset(path).read("front")


def test_an_episode_without_rows(tmp_path: Path) -> None:
    path = write_mapped_npz_files(tmp_path)
    np.savez(tmp_path / "episode_1.npz", act=np.zeros((0, 1)), proprio=STATES[:0], rgb=IMAGES[:0])
    with pytest.raises(DatasetError, match=r"episode_1.npz has an episode without rows"):
        open_dataset(path)


def test_one_unit_for_all_dimensions(tmp_path: Path) -> None:
    path = write_mapped_npz(tmp_path)
    mapping = yaml.safe_load(path.read_text())
    mapping["observations"]["state"]["units"] = "rad"
    path.write_text(yaml.safe_dump(mapping))
    assert open_dataset(path).description.observations["state"].units == ("rad", "rad")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write_zarr(tmp_path)
    for columns in ("[5:7]", "[:3]"):
        with pytest.raises(DatasetError, match=r"outside of data/state .* has 2 columns"):
            open_dataset(path, sources={"x": f"state{columns}"}).shape("x")


def test_arrays_of_a_store_that_are_no_rows_of_numbers_are_left_out(tmp_path: Path) -> None:
    path = write_zarr(tmp_path)
    root = zarr.open_group(path, mode="a")
    root.create_array("data/version", data=np.array(1))
    root.create_array("data/text", data=np.array(["abc"] * FRAMES))
    assert {*open_dataset(path).arrays} == {"action", "img", "state"}


def test_an_array_is_excluded_by_its_own_name_too(tmp_path: Path) -> None:
    source = open_dataset(write_robomimic(tmp_path))
    assert {*derive_specs(source, SpecOptions(exclude=["obs/state"])).observation_spec.fields} == {"front"}


def test_chunks_of_zeros_that_were_not_written(tmp_path: Path) -> None:
    """zarr-python 3 leaves them out in format 2, where they cannot be told from lost ones."""
    path = write_zarr(tmp_path)
    root = zarr.open_group(path, mode="a")
    root.create_array("data/still", data=np.zeros((FRAMES, 1), np.float32), chunks=(4, 1))
    with pytest.raises(DatasetError, match=r"data/still .*is incomplete.*write it anew with .*write_empty_chunks"):
        open_dataset(path).read("still")
