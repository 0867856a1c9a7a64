"""Where a checkpoint is run, by name."""

from __future__ import annotations

from typing import Any

import torch

from flowchunk.datasets.errors import ConfigurationError


def choose_device(name: str) -> torch.device:
    """The device of ``device=auto|cpu|cuda|cuda:N|mps``; auto is the first accelerator that is there, else the CPU.

    Raises ConfigurationError for another name, and for a device that this machine does not have.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise ConfigurationError(f"unknown device {name!r}; there are auto, cpu, cuda, cuda:N and mps")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}[kind]
    if there <= int(number or 0):
        raise ConfigurationError(f"device={name}: this machine has {there} such devices; give device=auto or cpu")
    return torch.device(name)


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether this is a processor without instructions for bfloat16, on which it is many times slower than float32."""
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    known = [capabilities[name] for name in ("avx512_bf16", "amx_bf16") if name in capabilities]
    return bool(known) and not any(known)
