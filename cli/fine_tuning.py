"""The options of fine-tuning: those that the checkpoint determines, and those that may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import read_description
from flowchunk.policy.sampling import SamplingOptions

CHANGEABLE = (
    "n_action_steps",
    "time_density",
    "time_density_options",
    "min_snr_gamma",
    "num_noise_samples",
    "estimate_every",
    "prefix_max",
    "mask_padding",
)
"""Options of ``policy`` that the weights do not depend on, besides those of sampling."""
SAMPLING = ("solver", "eta")


def with_checkpoint(options: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The options of ``schemas.TRAIN`` with the policy of the checkpoint ``training.init_from``.

    given: names of the options that were given explicitly. Raises ConfigurationError if one of them differs from the
    checkpoint and cannot be changed, CheckpointError if there is no checkpoint.
    """
    init_from = options["training"]["init_from"]
    kept = _options_of(read_description(init_from))
    policy = dict(kept["policy"])
    for name in (*CHANGEABLE, *SAMPLING):
        if any(key == f"policy.{name}" or key.startswith(f"policy.{name}.") for key in given):
            policy[name] = options["policy"][name]
    policy["frame"] = _with_given_landmarks(policy["frame"], options["policy"]["frame"], given)
    evaluation = dict(options["evaluation"])
    if "evaluation.noise_scale" not in given:
        evaluation["noise_scale"] = kept["noise_scale"]
    tuned = {**options, **{name: kept[name] for name in ("objective", "schedule", "network", "vision")}}
    tuned |= {"policy": {**options["policy"], **policy}, "evaluation": evaluation}
    if normalized := sorted(key for key in given if key.startswith("dataset.normalizer")):
        raise ConfigurationError(
            f"{normalized[0]}: fine-tuning keeps the normalizer of {init_from}, which its weights depend on; leave it out"
        )
    for key in sorted(given):
        if key.partition(".")[0] in ("objective", "schedule", "network", "vision", "policy"):
            requested, trained = _value(options, key), _value(tuned, key)
            if requested != trained:
                raise ConfigurationError(
                    f"{key}={_shown(requested)}: {init_from} was trained with {key}={_shown(trained)}, and "
                    "fine-tuning keeps it; leave it out, or train from the beginning without training.init_from"
                )
    return tuned


def _with_given_landmarks(
    frame: Mapping[str, Any] | None, requested: Mapping[str, Any] | None, given: Collection[str]
) -> Mapping[str, Any] | None:
    """The checkpoint's frame with landmarks that were given, and null for the others: where the environment has them."""
    if not frame or not frame.get("landmarks"):
        return frame
    asked = dict((requested or {}).get("landmarks") or {})
    section = "policy.frame.landmarks"  # given whole, or by its keys
    said = [name for name in frame["landmarks"] if {section, f"{section}.{name}"} & set(given)]
    return {**frame, "landmarks": {name: asked.get(name) if name in said else None for name in frame["landmarks"]}}


def _options_of(description: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(description["config"])
    sampling = SamplingOptions(**config.pop("sampling"))
    crops = [field.get("crop") for field in description["observation_spec"].values() if isinstance(field, Mapping)]
    crop = next((crop for crop in crops if crop is not None), None)
    return {
        "objective": config.pop("objective", "flow"),
        "schedule": config.pop("schedule", None),
        "network": {"name": config.pop("network"), **config.pop("network_options")},
        "vision": {
            "name": config.pop("vision", None),
            "crop": crop,
            "weights": None,
            "pretrain_steps": None,
            **(config.pop("vision_options", None) or {}),
        },
        "noise_scale": sampling.noise_scale,
        "policy": {
            "frame": None,
            "estimated": (),
            "estimate_every": 1,
            **config,
            "solver": sampling.solver,
            "eta": sampling.eta,
        },
    }


def _value(options: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; for a group, the name of its choice."""
    value: Any = options
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value["name"] if isinstance(value, Mapping) and "name" in value else value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
