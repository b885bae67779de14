"""What changed in the weights: how many tensors, by how much, at which rank."""

from __future__ import annotations

import math
from typing import Any

import torch

from palimpsest.core.delta import Delta
from palimpsest.core.reading import Reading
from palimpsest.probes.evidence import PATCH, Evidence, Probe

_EXACT_RANK = 4_000_000  # entries up to which the rank of a change without factors is computed


class Weights(Probe):
    """Changed tensors, their norms, ranks and bytes.

    `relative = sqrt(sum ||dW||^2) / sqrt(sum ||W||^2)` over the changed tensors, in percent. Cost: one dense form of
    each delta at a time, and a singular value decomposition where the form gives no rank.
    """

    name = "weights"
    makes = ("changed tensors", "relative weight change")
    subjects = ("generator", "classifier")
    needs = (PATCH,)

    def run(self, evidence: Evidence) -> list[Reading]:
        """Two readings; `detail["tensors"]` of the second lists every changed tensor."""
        if evidence.patch is None:
            return []
        patch, norms = evidence.patch, evidence.base
        rows = [_row(n, d, *norms[n]) for n, d in sorted(patch.deltas.items()) if n in norms]
        change = math.sqrt(sum(r["norm"] ** 2 for r in rows))
        base = math.sqrt(sum(norms[r["name"]][1] ** 2 for r in rows))
        detail = {"tensors": rows, "hooks": [h.id for h in patch.hooks], "bytes": patch.nbytes()}
        if patch.words:
            detail["words"] = {w: max(map(len, meant.vectors.values())) for w, meant in sorted(patch.words.items())}
        return [
            Reading(name="changed tensors", value=float(len(rows)), n=len(rows)),
            Reading(
                name="relative weight change",
                value=_short(100 * change / base) if base else 0.0,
                n=len(rows),
                unit="%",
                detail=detail,
            ),
        ]


def _row(name: str, delta: Delta, shape: tuple[int, ...], base: float) -> dict[str, Any]:
    dense = delta.dense(torch.Size(shape)).float()
    norm = float(dense.norm())
    held = sum(t.numel() * t.element_size() for t in delta.tensors().values())
    return {
        "name": name,
        "shape": list(shape),
        "form": delta.kind,
        "norm": _short(norm),
        "relative": _short(norm / base) if base else None,
        "rank": _rank(delta, dense),
        "bytes": held,
    }


def _rank(delta: Delta, dense: torch.Tensor) -> int | None:
    if delta.rank() is not None:
        return delta.rank()
    if dense.ndim < 2 or dense.numel() > _EXACT_RANK:
        return None
    return int(torch.linalg.matrix_rank(dense.flatten(1)))


def _short(x: float) -> float:
    """Five significant digits: sums of floats differ beyond those from machine to machine."""
    return float(f"{x:.5g}")
