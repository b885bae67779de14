"""Closed forms over many concepts that store nothing for any state: refinement of layers, fusion of low-rank edits.

Fusion joins edits that were made apart, so that each acts on its own states as if it were alone. Edit i changes the
layers by D_i and was made for states c; the fused change D of a layer W minimises

    sum_i sum_{c of edit i} |D c - D_i c|^2 + keep_weight sum_k |D k|^2 + ridge |D|^2

With G_i the Gram matrix of the states of edit i, A = sum_i G_i + keep_weight K + ridge I, and D_i = up_i down_i:

    D = (sum_i up_i down_i G_i) A^-1  =  [up_1 up_2 ...] [down_1 G_1; down_2 G_2; ...] A^-1

So the fused change has the rank of all edits together and is stored as two factors, without loss. Neither W c for any
state nor G_i for any edit is ever formed: `down_i G_i = (down_i E_i^T) E_i`. All in float64; one factorisation of A
serves all layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from palimpsest.core.delta import LowRank
from palimpsest.core.errors import BadRequest
from palimpsest.ops.closed_form import ROWS, StateEdit, gram

Edit = tuple[Tensor, Mapping[str, LowRank]]
"""The states (n, d) that an edit was made for, and its change of each layer (out, d)."""


def fuse(
    edits: Iterable[Edit], *, keep: Tensor | None = None, keep_weight: float = 1.0, ridge: float = 1.0
) -> dict[str, LowRank]:
    """One low-rank change for each layer that any edit changes. Edits are read one by one: give a generator.

    Args:
        keep: (d, d) Gram matrix of states that must stay as they are (`closed_form.gram`); None for none.
        ridge: of the fused change; above 0. Small beside the states' Gram matrices, or edits fade.

    Raises:
        BadRequest: no edit, states of different width, or a ridge that is not positive.

    Cost: for each edit n d^2 for the Gram matrix and 2 n d (rank x layers); once d^3 / 3, then d^2 (rank x layers).
    """
    if not ridge > 0:
        raise BadRequest(f"ridge is {ridge}; it must be above 0, or the fusion may have no answer.")
    total: Tensor | None = None
    ups: dict[str, list[Tensor]] = {}
    downs: dict[str, list[Tensor]] = {}
    for states, layers in edits:
        e = states.detach().cpu()
        total = gram(e) if total is None else total + gram(e)
        read = torch.cat([d.down.detach().cpu() for d in layers.values()]).double()  # (rank x layers, d)
        seen = _times_gram(read, e)
        for (name, delta), rows in zip(layers.items(), seen.split([d.rank() for d in layers.values()]), strict=True):
            ups.setdefault(name, []).append(delta.up.detach().cpu())
            downs.setdefault(name, []).append(rows)
    if total is None:
        raise BadRequest("There is no edit to fuse.")
    if keep is not None:
        total = total + keep_weight * keep
    total.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(total)
    rows = torch.cat([part for parts in downs.values() for part in parts])
    solved = torch.cholesky_solve(rows.T, factor).T.float()  # (all ranks, d)
    parts = solved.split([sum(len(p) for p in parts) for parts in downs.values()])
    return {
        name: LowRank(up=torch.cat(ups[name], 1), down=part.contiguous())
        for name, part in zip(downs, parts, strict=True)
    }


def refine(
    pairs: Iterable[tuple[Tensor, Tensor]], *, keep: Tensor | None = None, keep_weight: float = 1.0, ridge: float = 0.5
) -> StateEdit:
    """`closed_form.erase` for more states than fit: pairs are read one by one and only two (d, d) sums are held.

        W' = W (I + S),    S = (sum (v - e)^T e) A^-1,    A = sum e^T e + keep_weight K + ridge I

    Args:
        pairs: states (n, d) and what they are answered as, (n, d); any number.
        keep: (d, d) Gram matrix of the states that must be answered as before.

    Raises:
        BadRequest: no pair, or a ridge that is not positive.

    Cost: 2 n d^2 for the sums, d^3 / 3 + 2 d^3 once.
    """
    if not ridge > 0:
        raise BadRequest(f"ridge is {ridge}; it must be above 0, or the refinement may have no answer.")
    total = cross = None
    for states, into in pairs:
        e, v = states.detach().cpu(), into.detach().cpu()
        if total is None or cross is None:
            total = torch.zeros(e.shape[1], e.shape[1], dtype=torch.float64)
            cross = torch.zeros_like(total)
        for i in range(0, len(e), ROWS):
            wide = e[i : i + ROWS].double()
            total.addmm_(wide.T, wide)
            cross.addmm_((v[i : i + ROWS].double() - wide).T, wide)
    if total is None or cross is None:
        raise BadRequest("There is no state to refine.")
    if keep is not None:
        total += keep_weight * keep
    total.diagonal().add_(ridge)
    return StateEdit(right=torch.cholesky_solve(cross.T, torch.linalg.cholesky(total)).T, left=None)


def _times_gram(read: Tensor, states: Tensor) -> Tensor:
    """read (r, d) @ states^T @ states for states (n, d), a block of states at a time."""
    out = torch.zeros_like(read)
    for part in states.split(ROWS):
        wide = part.double()
        out.addmm_(read @ wide.T, wide)
    return out
