"""Shapes of tensors in signatures; checked under pytest, where ``tests/conftest.py`` installs jaxtyping's hook."""

from __future__ import annotations

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Data = Float[Tensor, "batch *data"]
"""Data, noise or anything between, and velocities: (B, …)."""
Times = Float[Tensor, "batch *tokens"]
"""Times from noise at 0 to data at 1: (B,) per sample, or (B, H) per token."""
Mask = Bool[Tensor, "batch *masked"] | Float[Tensor, "batch *masked"]
"""(B,) or (B, H): False or 0 for padding, otherwise the weight."""
Condition = Float[Tensor, "batch condition"]
"""What a network is conditioned on: (B, C)."""
Chunk = Float[Tensor, "batch horizon action"]
"""Chunks of actions: (B, H, D)."""
Images = UInt8[Tensor, "batch steps height width 3"]
"""Observed images, channels last: (B, To, H, W, 3)."""
