"""A low-rank change of a weight in training, applied to what flows through the layer and never written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F


class Factored:
    """Stands for the weight W + up @ down in a layer, by torch's protocol for objects in the place of tensors.

    A linear map answers x W^T + (x down^T) up^T, a convolution likewise. So neither the sum nor its gradient, each as
    large as W, is ever made: a step costs 2 r (in + out) products a position more, and 2 in out fewer, and memory for
    the factors alone. Any other use of the weight gets the sum.

    Args:
        whole: W (out, ...), which is not trained.
        up, down: (out, r) and (r, in), in being the product of W's other axes; float32 leaves.
    """

    def __init__(self, whole: Tensor, up: Tensor, down: Tensor) -> None:
        self.whole, self.up, self.down = whole, up, down

    def sum(self) -> Tensor:
        """The changed weight, in W's dtype."""
        return (self.whole.float() + (self.up @ self.down).view(self.whole.shape)).to(self.whole.dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole if name in {"shape", "dtype", "device", "ndim"} else self.sum(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if len(args) > 1 and isinstance(args[1], Factored):
            x, weight, *rest = args
            if func is F.linear:
                return weight._linear(x, *rest, **kwargs)
            if func is F.conv2d and (rest[4:] or (kwargs.get("groups", 1),))[0] == 1:
                return weight._conv2d(x, *rest, **kwargs)
        return func(*map(_summed, args), **{k: _summed(v) for k, v in kwargs.items()})

    def _linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        up, down = self.up.to(self.whole.dtype), self.down.to(self.whole.dtype)
        return F.linear(x, self.whole, bias) + F.linear(F.linear(x, down), up)

    def _conv2d(self, x: Tensor, bias: Tensor | None = None, *how: Any, **named: Any) -> Tensor:
        up, down = self.up.to(self.whole.dtype), self.down.to(self.whole.dtype)
        inner = F.conv2d(x, down.view(len(down), *self.whole.shape[1:]), None, *how, **named)
        return F.conv2d(x, self.whole, bias, *how, **named) + F.conv2d(inner, up[:, :, None, None])


def _summed(value: Any) -> Any:
    return value.sum() if isinstance(value, Factored) else value
