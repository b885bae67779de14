"""How far the edited model's pictures are from the untouched model's as distributions, in a judge's features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.probes.drawn import Drawn
from palimpsest.probes.evidence import Probe

_FEWEST = 8  # pictures below which a distance between distributions says nothing
_MOST = 4_000  # pictures above which the matrix of all pairs takes gigabytes
_SMALL = 1_000  # pictures up to which all pairs cost nothing
_FLIPS = 999


class Distance(Probe):
    """Kernel and Frechet distance between the pictures before and after, for each role and judge.

    Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with `k(x, y) = (x.y / d + 1)^3`. Rows i and j that share
    a prompt and seed never meet, so the same seeds on both sides do not pull it down. p: swapping before and after
    within pairs (999 random swaps). Floor: the 95 % quantile of swaps between two seeds of the untouched model,
    scaled to the number of pictures. Frechet distance (Heusel et al. 2017): on the first seed of each prompt, with
    the untouched model's other seed as its floor, because its bias depends on the number of pictures.
    """

    name = "distance"
    makes = ("kernel distance", "Frechet distance")
    subjects = ("generator",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """Up to two readings for each role, or file of prompts, and judge; those with fewer than 8 pictures are left
        out, and of more than 4,000 so many, evenly spread."""
        found = []
        for judge in evidence.featured():
            features = {which: evidence(which, judge, "features") for which in ("before", "after", "other")}
            for role, name, rows, twins in evidence.plan.scopes():
                if len(rows) < _FEWEST:
                    continue
                rows, twins = spread(rows), spread(twins)
                before, after = features["before"][rows], features["after"][rows]
                firsts = torch.tensor(evidence.plan.twins)[twins]
                one, other, edited = features["before"][firsts], features["other"][twins], features["after"][firsts]
                value, null = kernel(before, after)
                floor = float(np.quantile(kernel(one, other)[1], 0.95)) * len(twins) / len(rows)
                common = {"concept": name, "role": role, "evaluator": evidence.evaluators[judge]}
                found.append(
                    Reading(
                        name="kernel distance",
                        value=_short(value),
                        n=len(rows),
                        floor=_short(max(0.0, floor)),
                        p=min(1.0, evidence.plan.looks * (1 + int((null >= value - 1e-12).sum())) / (1 + _FLIPS)),
                        **common,
                    )
                )
                if len(firsts) >= _FEWEST:
                    found.append(
                        Reading(
                            name="Frechet distance",
                            value=_short(frechet(one, edited)),
                            n=len(firsts),
                            floor=_short(frechet(one, other)),
                            **common,
                        )
                    )
        return found


def spread(rows: Tensor) -> Tensor:
    """At most `_MOST` rows, evenly spread."""
    return rows if len(rows) <= _MOST else rows[torch.linspace(0, len(rows) - 1, _MOST).long()]


def kernel(a: Tensor, b: Tensor) -> tuple[float, np.ndarray]:
    """Unbiased MMD^2 of paired sets (n, d), and its values under random swaps within pairs.

    With h_ij = k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(b_i, a_j) it is the mean of h over i != j; swapping pair i
    only changes the sign of row and column i, so each swap costs one quadratic form.
    """
    a, b = a.double(), b.double()
    d, n = a.shape[1], len(a)

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / d + 1) ** 3

    cross = k(a, b)
    h = (k(a, a) + k(b, b) - cross - cross.T).fill_diagonal_(0)
    signs = torch.randint(0, 2, (_FLIPS, n), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    null = ((signs @ h) * signs).sum(1) / (n * (n - 1))
    return float(h.sum()) / (n * (n - 1)), null.numpy()


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to (n, d) and (m, d).

    |mean difference|^2 + tr A + tr B - 2 tr (A B)^(1/2); the last trace is the nuclear norm of the cross products of
    the centred rows, so that no d x d root is taken and fewer rows than features are no trouble.
    """
    a, b = a.double(), b.double()
    x, y = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5
    if min(len(x), len(y)) > max(_SMALL, x.shape[1]):  # the same singular values, from matrices as wide as features
        x, y = torch.linalg.qr(x, mode="r").R, torch.linalg.qr(y, mode="r").R
    root = torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * root))


def _short(x: float) -> float:
    return float(f"{round(x, 9):.5g}")
