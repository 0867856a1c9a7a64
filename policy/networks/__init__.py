"""Networks for action chunks, all with one signature: ``network(x, t, condition, *, t_end=None) -> like x``.

x: noisy chunk (B, H, D). t: times (B,), or (B, H) with a time per token. condition: (B, C). t_end: the second time of
flow maps, like t; by default equal to t. Every network starts as the zero velocity: its output layer and its residual
gates are initialized to zero.
"""

from collections.abc import Callable

from torch import nn

from flowchunk.policy.networks.dit import DiT
from flowchunk.policy.networks.gru import GRU
from flowchunk.policy.networks.mixer import Mixer
from flowchunk.policy.networks.mlp import MLP
from flowchunk.policy.networks.unet1d import UNet1D
from flowchunk.policy.registry import Registry

NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "network", {"mlp": MLP, "mixer": Mixer, "dit": DiT, "unet1d": UNet1D, "gru": GRU}
)

__all__ = ["GRU", "MLP", "NETWORKS", "DiT", "Mixer", "UNet1D"]
