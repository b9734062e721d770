"""What architectures share: activations and initialisations by name. Torch wakes on use."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "elu", "tanh", "sigmoid"]
Initialisation = Literal["default", "kaiming", "xavier", "orthogonal"]


def activation(name: Activation) -> nn.Module:
    """A fresh activation module."""
    from torch import nn

    modules: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "elu": nn.ELU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
    }
    return modules[name]()


def initialise(body: nn.Module, how: Initialisation, nonlinearity: Activation) -> nn.Module:
    """Draw the weight matrices and kernels anew in place; biases start at 0. Returns `body`.

    `default` keeps torch's own. kaiming: He et al. 2015; xavier: Glorot and Bengio 2010;
    orthogonal: Saxe et al. 2014.
    """
    from torch import nn

    if how == "default":
        return body
    gain = nn.init.calculate_gain(nonlinearity if nonlinearity in ("tanh", "sigmoid") else "relu")
    for module in body.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            _draw(module.weight, how, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                if name.startswith("bias"):
                    nn.init.zeros_(parameter)
                    continue
                for gate in parameter.detach().split(module.hidden_size):
                    _draw(gate, how, gain)
    return body


def _draw(weight: torch.Tensor, how: Initialisation, gain: float) -> None:
    from torch import nn

    if how == "kaiming":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    elif how == "xavier":
        nn.init.xavier_uniform_(weight, gain)
    else:
        nn.init.orthogonal_(weight, gain)


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after `halving`."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def halving(channels: int, wider: int, size: tuple[int, int], *, bias: bool) -> nn.Module:
    """A convolution from a picture of `size` to half of it, rounded up."""
    from torch import nn

    # An odd side is padded once more: 4 pixels at every second place then meet each of it alike.
    padding = (1 + size[0] % 2, 1 + size[1] % 2)
    return nn.Conv2d(channels, wider, 4, stride=2, padding=padding, bias=bias)


def doubling(channels: int, narrower: int, size: tuple[int, int], *, bias: bool) -> nn.Module:
    """A transposed convolution from half of `size`, rounded up, to `size`: `halving` undone."""
    from torch import nn

    odd = (size[0] % 2, size[1] % 2)
    return nn.ConvTranspose2d(
        channels,
        narrower,
        4,
        stride=2,
        padding=(1 + odd[0], 1 + odd[1]),
        output_padding=odd,
        bias=bias,
    )


def activated(name: Activation, channels: int, *, batch_norm: bool) -> list[nn.Module]:
    """What follows a layer of planes: normalisation where it is wanted, and the activation."""
    from torch import nn

    return [*([nn.BatchNorm2d(channels)] if batch_norm else []), activation(name)]


def enlarging(
    channels: int,
    narrower: int,
    size: tuple[int, int],
    then: Activation | None,
    *,
    batch_norm: bool,
) -> list[nn.Module]:
    """`doubling`, normalised and activated; without `then` neither, for the levels of a picture."""
    if then is None:
        return [doubling(channels, narrower, size, bias=True)]
    return [
        doubling(channels, narrower, size, bias=not batch_norm),
        *activated(then, narrower, batch_norm=batch_norm),
    ]


def unfolding(
    latent: int, planes: tuple[int, int, int], then: Activation, *, batch_norm: bool
) -> list[nn.Module]:
    """`[batch, latent]` -> `[batch, channels, height, width]`: what a picture is enlarged from."""
    from torch import nn

    return [
        nn.Linear(latent, prod(planes), bias=not batch_norm),
        nn.Unflatten(1, planes),
        *activated(then, planes[0], batch_norm=batch_norm),
    ]
