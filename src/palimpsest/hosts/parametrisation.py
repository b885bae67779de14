"""What a diffusion network outputs, and the clean latents that this stands for."""

from __future__ import annotations

from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "flow")


def to_x0(prediction: str, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 of a network's output at `x = alpha * x0 + sigma * noise`, in float32.

    epsilon: output = noise; v_prediction: output = alpha * noise - sigma * x0; flow: output = noise - x0.
    """
    output, x = output.float(), x.float()
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "v_prediction":
        return alpha * x - sigma * output
    return x - sigma * output


def from_x0(prediction: str, x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The output that stands for this x0: the inverse of `to_x0`, in float32. Needs sigma > 0."""
    x0, x = x0.float(), x.float()
    if prediction == "flow":
        return (x - x0) / sigma
    noise = (x - alpha * x0) / sigma
    return noise if prediction == "epsilon" else alpha * noise - sigma * x0
