"""flowchunk data: look at a data set, convert it, edit it, or replay it in simulation.

usage: flowchunk data inspect PATH [output_dir=DIR]
       flowchunk data convert SOURCE OUT [task=TASK] [KEY=VALUE ...] [--skip-corrupt]
       flowchunk data edit SOURCE OUT [KEY=VALUE ...] [--skip-corrupt]
       flowchunk data replay PATH task=TASK|env_id=ID [KEY=VALUE ...]

  PATH, SOURCE                     a data set of any of these formats, which are recognized: zarr of
                                   flowchunk or diffusion_policy (folder or .zarr.zip), robomimic
                                   HDF5, LeRobot v2.0, v2.1 and v3.0; HDF5 or npz of another layout
                                   by a mapping (a YAML file)
  output_dir=DIR                   also write plots of the values and sheets of the images
  to=FORMAT                        flowchunk | diffusion_policy | robomimic | lerobot (v3.0)
  jpeg=QUALITY                     of to=flowchunk: images as JPEG, 1 to 100 (default: losslessly)
  codec=NAME                       of to=lerobot: images as h264 | av1 video, or lossless as png
  task=TASK                        the task that says what the numbers mean (default: the data set)
  dataset.sources.KEY=ARRAY        the array of SOURCE that holds a key of the task
  dataset.KEY=VALUE                what the data set does not say, as in flowchunk train
  env.KEY=VALUE                    an argument of the task's environment
  --skip-corrupt                   leave out episodes with damaged images, and list them

inspect prints the format, episodes, lengths, keys, shapes, ranges, tasks, specifications, and
contradictions in the data set; of an unfinished recording, those of its finished episodes.

convert writes a new data set, OUT, episode by episode, with specifications beside the data, and
says what the format cannot hold. Flowchunk's store keeps images in sharded, compressed chunks.

edit writes a new store, too; SOURCE remains as it is. It takes jpeg, dataset.KEY and
--skip-corrupt as convert does, and these, in this order; SOURCE's episodes are numbered from 0:

  merge=[PATH,...]                 append data sets with equal specifications, numbered on
  delete=[3,7:10]                  leave out episodes 3, 7, 8 and 9
  keep=[0:100]                     keep only these, in place of delete
  split={train: 0.9, valid: 0.1}   a store for each part, OUT_train.zarr and OUT_valid.zarr for
                                   OUT.zarr; fractions, or numbers of episodes; seed=SEED
  trim_idle=FRACTION               leave out time steps at the start and the end of episodes in
                                   which no action changes by more than this fraction of its
                                   range; one is left at each end
  reference=NAME                   make actions absolute, delta or relative; a list for one each
  relative_to=[KEY.NAME,...]       the observed value that each refers to (default: of its name)
  rotation=NAME                    rotations as rotation_6d | axis_angle | euler_xyz |
                                   quaternion_xyzw | quaternion_wxyz | matrix; which dimensions
                                   they are: dataset.rotations={axis_angle: [rx,ry,rz]}
  rename={old: new}                keys of observations; dataset.exclude=[KEY] leaves keys out

replay starts each episode where it was recorded, takes its actions whatever happens, and says in
how many the task still succeeds: of Push-T, of the arm, of adroit_door and of robomimic, whose
environment is made with the data's own arguments. It prints a table, and writes replay.json.

  episodes=N                       only the first so many
  env_id=ID                        another environment; it needs start_options(source, episode)
  output_dir=DIR                   default: outputs/replay-NAME
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowchunk.datasets.errors import ConfigurationError

SKIP_CORRUPT = "--skip-corrupt"


def run(arguments: list[str]) -> None:
    """Inspect, convert, edit or replay a data set with command-line arguments."""
    if arguments[:1] == ["convert"]:
        from flowchunk.cli.convert import convert_store  # here because it imports torch and environments

        convert_store(arguments[1:])
    elif arguments[:1] == ["edit"]:
        from flowchunk.cli.edit import edit_datasets  # here because it imports torch

        edit_datasets(arguments[1:])
    elif arguments[:1] == ["replay"]:
        from flowchunk.cli.replay import replay_dataset  # here because it imports torch and environments

        replay_dataset(arguments[1:])
    elif len(arguments) in (2, 3) and arguments[0] == "inspect":
        from flowchunk.cli.inspect import inspect_dataset

        inspect_dataset(arguments[1], arguments[2:])
    else:
        raise ConfigurationError(
            "usage: flowchunk data inspect PATH [output_dir=DIR], or flowchunk data convert|edit SOURCE OUT [KEY=VALUE ...], "
            "or flowchunk data replay PATH task=TASK [KEY=VALUE ...]"
        )


@dataclass(frozen=True)
class DataArguments:
    """Arguments of a command that writes a data set. skip_corrupt: whether to leave out episodes with damaged images."""

    source: str
    out: str
    options: Sequence[str]
    skip_corrupt: bool

    @classmethod
    def parse(cls, arguments: Sequence[str], *, usage: str) -> DataArguments:
        """SOURCE OUT [KEY=VALUE ...] [--skip-corrupt], in any order. Raises ConfigurationError."""
        paths = [argument for argument in arguments if "=" not in argument and argument != SKIP_CORRUPT]
        if len(paths) != 2 or any(path.startswith("-") for path in paths):
            raise ConfigurationError(f"usage: {usage}")
        source, out = paths
        options = [argument for argument in arguments if "=" in argument]
        return cls(source, out, options, SKIP_CORRUPT in arguments)
