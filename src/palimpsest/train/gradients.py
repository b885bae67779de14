"""Gradients of a model's own parameters, where it stands: what saliency is computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from palimpsest.core.errors import BadRequest
from palimpsest.train import ranks


def gradients_of(root: nn.Module, names: Sequence[str], losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """The gradient of the sum of some losses with respect to named parameters, which stay as they are.

    Args:
        root: owns the parameters, named as in `root.named_parameters()`.
        losses: each gives a scalar; one graph at a time is held in memory.

    Returns:
        By name, in the parameter's dtype; zeros where no loss depends on the parameter. The tensors keep no graph.

    Raises:
        BadRequest: the model has no such parameter.

    Cost: one forward and backward for each loss; memory of the named parameters once (twice while adding).
    """
    known = dict(root.named_parameters(remove_duplicate=False))
    missing = [n for n in names if n not in known]
    if missing:
        raise BadRequest(f"There is no parameter {missing[0]!r} in this model.")
    chosen = [known[n] for n in names]
    frozen = [p for p in chosen if not p.requires_grad]
    found = {n: torch.zeros_like(p, requires_grad=False) for n, p in zip(names, chosen, strict=True)}
    try:
        for p in frozen:
            p.requires_grad_(True)
        for loss in losses:
            with torch.enable_grad():
                parts = torch.autograd.grad(loss(), chosen, allow_unused=True)
            for n, g in zip(names, parts, strict=True):
                if g is not None:
                    found[n] += g
    finally:
        for p in frozen:
            p.requires_grad_(False)
    return dict(ranks.averaged(found))
