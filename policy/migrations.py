"""Migration of checkpoints of earlier formats: fields and weights that were renamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowchunk.policy.diffusion.objectives import RENAMED

SAMPLING = ("solver", "eta", "noise_scale")
VISION = {"shared": "share_weights", "picture_steps": "image_steps", "colour_jitter": "color_jitter"}
"""Options of image encoders: the names of format 1, and of some early checkpoints of format 2."""


def migrate_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a checkpoint in the current format.

    In format 1 sampling options were among the others; up to format 2 the network ``mlp`` had no skip.
    """
    if not isinstance(description.get("config"), Mapping):
        return dict(description)
    config = dict(description["config"])
    if isinstance(options := config.get("vision_options"), Mapping):
        config["vision_options"] = {VISION.get(name, name): value for name, value in options.items()}
    if description.get("format_version") == 1:
        config["objective"] = RENAMED.get(config.get("objective", "flow"), config.get("objective", "flow"))
        for old, new in (("snr_cap", "min_snr_gamma"), ("noise_draws", "num_noise_samples")):
            if old in config:
                config[new] = config.pop(old)
        config["sampling"] = {name: config.pop(name) for name in SAMPLING if name in config}
    if description.get("format_version") in (1, 2) and config.get("network") == "mlp":
        config["network_options"] = {"skip": False, **config.get("network_options", {})}
    return {**description, "config": config}


def migrate_weight_name(name: str, format_version: int) -> str:
    """The name of a weight in the current format. In format 1 the network was not part of a model."""
    if format_version == 1 and name.startswith("network."):
        return f"model.{name}"
    return name
