"""Closed-form edits of linear layers that read the same states.

Every edit here asks a layer W (out, d) to answer some states e_i as it answered other states v_i, and the kept
states k_j as before:

    minimise over W':  erase_weight * sum_i |W' e_i - W v_i|^2 + keep_weight * sum_j |W' k_j - W k_j|^2
                       + ridge * |W' - W|^2

With E, V, K holding states as rows and A = erase_weight E^T E + keep_weight K^T K + ridge I, the minimiser is

    W' = W (I + S),    S = erase_weight (V - E)^T E A^-1        (d, d)

S does not depend on W. So one Cholesky factorisation serves all layers, chains of edits multiply as (d, d) matrices,
and a change of rank r is stored as two thin factors. Everything in the space of states is float64; only the products
with W run in the accuracy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.core.delta import Delta, Dense, LowRank
from palimpsest.core.errors import BadRequest

ROWS = 4096  # states that are widened to float64 at a time
BLOCK = 192  # columns of a Gram matrix that are multiplied at a time


@dataclass(frozen=True, kw_only=True)
class StateEdit:
    """S = left^T right: what each layer W becomes is W (I + S).

    Args:
        right: (r, d) float64, r <= d; its rows are orthonormal where there is a `left`, so that nothing cancels
            in the product when it is later taken in float32.
        left: (r, d) float64; None stands for the identity, with r = d.
    """

    right: Tensor
    left: Tensor | None

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def dense(self) -> Tensor:
        """S (d, d), float64."""
        return self.right if self.left is None else self.left.T @ self.right

    def factors(self, thin: bool) -> tuple[Tensor, ...]:
        """(left^T, right), or S alone."""
        return (self.left.T, self.right) if thin and self.left is not None else (self.dense(),)

    def map(self, states: Tensor) -> Tensor:
        """(n, d) float64: W reads the mapped states as the edited W' reads `states`."""
        states = states.double()
        coded = states @ self.right.T
        return states + (coded if self.left is None else coded @ self.left)

    def then(self, later: StateEdit) -> StateEdit:
        """Both edits, the later one made on the layers that this one had changed: (I + S)(I + S') - I."""
        if self.left is None or later.left is None:
            s = later.dense()
            return StateEdit(right=self.dense() + s + self.dense() @ s, left=None)
        left = later.left + (later.left @ self.right.T) @ self.left
        return _thin(torch.cat([self.left, left]), torch.cat([self.right, later.right]))


def gram(states: Tensor) -> Tensor:
    """states^T states (d, d) in float64, for states (n, d). Keep it where the same retain set serves many edits."""
    total = torch.zeros(states.shape[1], states.shape[1], dtype=torch.float64)
    for part in states.detach().cpu().split(ROWS):
        wide = part.double()
        total.addmm_(wide.T, wide)
    return total


def erase(
    states: Tensor,
    into: Tensor,
    *,
    keep: Tensor | None = None,
    erase_weight: float = 1.0,
    keep_weight: float = 1.0,
    ridge: float = 0.5,
) -> StateEdit:
    """The edit after which every layer answers `states` as it answered `into`.

    Args:
        states, into: (n, d); row i is answered as row i.
        keep: (d, d) Gram matrix of the states that must be answered as before (`gram`); None for none.
        erase_weight, keep_weight: of the two sums in the objective.
        ridge: of the distance to the old weights; above 0.

    Raises:
        BadRequest: shapes that do not fit, a ridge that is not positive, or states that are not finite.

    Cost: n d^2 for the Gram matrix, d^3 / 3 for the factorisation, 2 n d^2 for the solve; no product with a layer.
    """
    _check(states, into, ridge)
    e, v = states.detach().cpu().double(), into.detach().cpu().double()
    d = e.shape[1]
    a = erase_weight * gram(e)
    if keep is not None:
        a += keep_weight * keep
    a.diagonal().add_(ridge)
    moved = (v != e).any(1)  # a state that is answered as itself shapes A, but adds nothing to S
    if not bool(moved.any()):
        return StateEdit(right=e.new_zeros(0, d), left=e.new_zeros(0, d))
    e, v = e[moved], v[moved]
    factor = torch.linalg.cholesky(a)
    if len(e) >= d:
        s = torch.cholesky_solve(e.T @ (v - e), factor).T * erase_weight
        return StateEdit(right=s, left=None)
    return _thin(v - e, torch.cholesky_solve(e.T, factor).T * erase_weight)


def edit_layers(weights: Mapping[str, Tensor], edit: StateEdit) -> dict[str, Delta]:
    """The change W S of each layer's weight (out, d), float32 or wider, in the smaller of its two forms.

    Cost: out d r for a low-rank layer, out d^2 for a dense one. All low-rank layers share one `down`.
    """
    if edit.rank == 0:
        return {}
    deltas: dict[str, Delta] = {}
    made: dict[tuple[bool, torch.device, torch.dtype], tuple[Tensor, ...]] = {}  # shared by all layers alike
    for name, weight in weights.items():
        w = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        out, d = w.shape
        thin = edit.left is not None and edit.rank * (out + d) < out * d
        key = (thin, w.device, w.dtype)
        if key not in made:
            made[key] = tuple(f.to(w.device, w.dtype) for f in edit.factors(thin))
        change = w @ made[key][0]
        deltas[name] = LowRank(up=change, down=made[key][1]) if thin else Dense(value=change)
    return deltas


def layers_gram(weights: Iterable[Tensor]) -> Tensor:
    """G = sum over layers of W^T W (d, d), float64: how strongly all layers together read each direction.

    Cost: sum(out) d^2, half of a full product, since only the upper blocks are multiplied.
    """
    total: Tensor | None = None
    for weight in weights:
        w = weight.detach().cpu().double()
        d = w.shape[1]
        total = torch.zeros(d, d, dtype=torch.float64) if total is None else total
        for i in range(0, d, BLOCK):
            total[i : i + BLOCK, i:].addmm_(w[:, i : i + BLOCK].T, w[:, i:])
    if total is None:
        raise BadRequest("There is no layer to edit.")
    return total.triu() + total.triu(1).T


def mimic(states: Tensor, reads: Tensor, edit: StateEdit, *, ridge: float) -> Tensor:
    """States c' that the edited layers answer most like the untouched ones answer `states`.

    c' minimises  sum over layers of |W' c' - W c|^2 + ridge |c'|^2,  so with M = I + S and G = sum W^T W:

        c' = (M^T G M + ridge I)^-1 M^T G c

    Args:
        states: (n, d).
        reads: G, from `layers_gram` of the untouched layers.

    Returns: (n, d) float64.
    """
    m = edit.dense() + torch.eye(reads.shape[0], dtype=torch.float64)
    gm = reads @ m
    a = m.T @ gm
    a.diagonal().add_(ridge)
    rhs = gm.T @ states.detach().cpu().double().T  # G is symmetric, so M^T G = (G M)^T
    return torch.cholesky_solve(rhs, torch.linalg.cholesky(a)).T


def _thin(left: Tensor, right: Tensor) -> StateEdit:
    """left^T right with at most d rows and an orthonormal `right`."""
    n, d = right.shape
    if n >= d:
        return StateEdit(right=left.T @ right, left=None)
    q, r = torch.linalg.qr(right.T)  # right = r^T q^T
    return StateEdit(right=q.T, left=r @ left)


def _check(states: Tensor, into: Tensor, ridge: float) -> None:
    if states.ndim != 2 or states.shape != into.shape or not len(states):
        raise BadRequest(
            f"States {tuple(states.shape)} cannot be sent to {tuple(into.shape)}; both must be (n, d) with n >= 1."
        )
    if not ridge > 0:
        raise BadRequest(f"ridge is {ridge}; it must be above 0, or the solve may have no answer.")
    if not (bool(states.isfinite().all()) and bool(into.isfinite().all())):
        raise BadRequest("Some text states are not finite numbers; the model's text encoder is damaged.")
