"""What merging asks of all changes at once, found in passes over blocks: sizes of largest entries, inner products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from palimpsest.core.change import Part
from palimpsest.core.delta import Delta, Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.core.stored import Stored, blocks

Bins = Callable[[Tensor, int], Tensor]
COARSE, FINE = 16, 15  # bits of a float32's size, which has 31 beside the sign: larger bits, larger number


def changed(parts: Sequence[Part]) -> list[str]:
    """The tensors that any of the changes names, sorted."""
    return sorted({name for part in parts for name in part.names()})


def thresholds(parts: Sequence[Part], base: Stored, names: Sequence[str], density: float) -> Tensor:
    """(n,) of each change the size of its k-th largest entry, k = the share `density` of all entries of `names`.

    A float's bits order like its size, so that counting the upper 16 of them, and then the lower 15 of those that fall
    together with the k-th, finds it exactly. Entries that a change leaves out are zeros and count.

    Args:
        names: the tensors over which entries are compared.

    Cost: two passes over all blocks; half a megabyte a change.
    """
    total = sum(base.shape(name).numel() for name in names)
    k = max(1, round(density * total))
    coarse = _counts(parts, base, names, COARSE, lambda bits, i: bits >> FINE)
    at, left = zip(*(_kth(row, k) for row in coarse), strict=True)
    fine = _counts(parts, base, names, FINE, lambda bits, i: bits[bits >> FINE == at[i]] & (2**FINE - 1))
    low = [_kth(row, due)[0] for row, due in zip(fine, left, strict=True)]
    bits = [(high << FINE) | last for high, last in zip(at, low, strict=True)]
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def _counts(parts: Sequence[Part], base: Stored, names: Sequence[str], width: int, bins: Bins) -> Tensor:
    """(n, 2^width) how many entries of each change fall into each bin; `bins(bits, i)` gives those of change i."""
    found = torch.zeros(len(parts), 2**width, dtype=torch.int64)
    for name in names:
        shape = base.shape(name)
        for start, stop in blocks(shape):
            for i, part in enumerate(parts):
                bits = part.rows(name, shape, start, stop).abs().reshape(-1).view(torch.int32)
                found[i] += torch.bincount(bins(bits, i), minlength=2**width)
    return found


def _kth(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest entry, and which of that bin's entries it is, counted from its largest."""
    above = counts.flip(0).cumsum(0)
    place = int((above >= k).nonzero()[0])
    bin_ = len(counts) - 1 - place
    return bin_, k - int(above[place] - counts[bin_])


def weighed(weights: Sequence[float], parts: Sequence[Part]) -> tuple[float, ...]:
    """One weight for each change: those that were given, or 1.

    Raises:
        BadRequest: more or fewer than changes, or one that is no number.
    """
    if weights and len(weights) != len(parts):
        raise BadRequest(f"{len(weights)} weights for {len(parts)} changes; give one for each, or none.")
    if not all(math.isfinite(w) for w in weights):
        raise BadRequest(f"Weights are {', '.join(map(str, weights))}; each is to be a number.")
    return tuple(weights) or (1.0,) * len(parts)


def mean_change(parts: Sequence[Part], base: Stored) -> Patch:
    """The mean of some changes as a patch in memory, for a model to stand there for a while.

    Cost: memory of all that they change.
    """
    deltas: dict[str, Delta] = {}
    for name in changed(parts):
        shape = base.shape(name)
        rows = shape[0] if len(shape) else 1
        total = sum((part.rows(name, shape, 0, rows) for part in parts), torch.zeros(1)) / len(parts)
        deltas[name] = Dense(value=total.reshape(shape))
    return Patch(base="", deltas=deltas)


def shares_of(first: Part, others: Sequence[Part], base: Stored, name: str) -> list[float]:
    """How much of one change is in each of some others, within one tensor: <other, first> / <first, first>.

    0 where the first does not change the tensor. Cost: a pass over its blocks.
    """
    shape, own, common = base.shape(name), 0.0, [0.0] * len(others)
    for start, stop in blocks(shape):
        mine = first.rows(name, shape, start, stop).double()
        own += float((mine * mine).sum())
        for i, part in enumerate(others):
            common[i] += float((mine * part.rows(name, shape, start, stop).double()).sum())
    return [c / own if own else 0.0 for c in common]
