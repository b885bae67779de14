"""What a patch changes of a model, in numbers: layers, ranks, and how large the change is beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from palimpsest.core.delta import Delta, LowRank
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a model, such as its U-Net, under a patch.

    Args:
        name: as in `host.root`.
        changed, of: tensors of layers that are linear or convolutions: those that the patch changes, and all.
        other: tensors that it changes beside these, biases and norms.
        relative: the Frobenius norm of all changes by that of the tensors that they change.
        largest: the same of the tensor where it is largest, and that tensor's name.
    """

    name: str
    changed: int
    of: int
    other: int
    relative: float
    largest: tuple[float, str]


def parts(patch: Patch, host: Any) -> list[Part]:
    """What a patch changes of each part of a model. Cost: one pass over the changed tensors."""
    named = tensors_of(host.root)
    layers = {f"{name}.weight" for name, m in host.root.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    found = []
    for part in sorted({name.partition(".")[0] for name in patch.deltas}):
        names = [name for name in patch.deltas if name.partition(".")[0] == part]
        sizes = {n: (norm(patch.deltas[n], named[n].shape), float(named[n].detach().float().norm())) for n in names}
        ratios = {n: change / weight if weight else float(change > 0) for n, (change, weight) in sizes.items()}
        change, weight = (sum(s[i] ** 2 for s in sizes.values()) ** 0.5 for i in (0, 1))
        top = max(names, key=lambda n: ratios[n])
        changed = sum(name in layers for name in names)
        found.append(
            Part(
                name=part,
                changed=changed,
                of=sum(name.partition(".")[0] == part for name in layers),
                other=len(names) - changed,
                relative=change / weight if weight else float(change > 0),
                largest=(ratios[top], top),
            )
        )
    return found


def norm(delta: Delta, shape: torch.Size) -> float:
    """The Frobenius norm of a change; of two thin factors without their product."""
    if isinstance(delta, LowRank):
        up, down = delta.up.double(), delta.down.double()
        return max(0.0, float(((up.T @ up) * (down @ down.T)).sum())) ** 0.5
    return float(delta.dense(shape).double().norm())
