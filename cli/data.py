"""flowchunk data: look at a data set, or convert it.

usage: flowchunk data inspect PATH [output_dir=DIR]
       flowchunk data convert SOURCE OUT [task=TASK] [KEY=VALUE ...] [--skip-corrupt]

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
"""

from __future__ import annotations

from flowchunk.datasets.errors import ConfigurationError


def run(arguments: list[str]) -> None:
    """Inspect or convert a data set with command-line arguments."""
    if arguments[:1] == ["convert"]:
        from flowchunk.cli.convert import convert_store  # here because it imports torch and environments

        convert_store(arguments[1:])
    elif len(arguments) in (2, 3) and arguments[0] == "inspect":
        from flowchunk.cli.inspect import inspect_dataset

        inspect_dataset(arguments[1], arguments[2:])
    else:
        raise ConfigurationError(
            "usage: flowchunk data inspect PATH [output_dir=DIR], or flowchunk data convert SOURCE OUT [KEY=VALUE ...]"
        )
