"""Nets for images of other channels than three."""

from collections.abc import Callable

from torch import nn


def take_channels(net: nn.Module, path: str, channels: int, initialise: Callable[[nn.Conv2d], object]) -> None:
    """Let the first convolution of `net`, which is at `path`, read images of `channels` channels.

    Where it does so already nothing changes; else it is replaced by a new one, drawn by `initialise`.
    """
    old = net.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    if old.in_channels == channels:
        return
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    initialise(new)
    net.set_submodule(path, new)


def he_normal(convolution: nn.Conv2d) -> None:
    """Normal weights of variance 2 / fan-out, zero bias, as ResNet's and VGG's authors have it."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
