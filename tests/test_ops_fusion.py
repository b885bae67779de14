"""Fusion of low-rank edits, against the formula with every state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hosts_fixtures import largest
from palimpsest.core.delta import LowRank
from palimpsest.core.errors import BadRequest
from palimpsest.ops import closed_form
from palimpsest.ops.fusion import fuse, refine


def random_edits(d: int = 12, out: int = 7) -> list[tuple[Tensor, dict[str, LowRank]]]:
    g = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(9, d, generator=g),
            {n: LowRank(up=torch.randn(out, 2, generator=g), down=torch.randn(2, d, generator=g)) for n in "ab"},
        )
        for _ in range(3)
    ]


def test_fusion_is_the_papers_solve() -> None:
    edits, g = random_edits(), torch.Generator().manual_seed(4)
    w, k = torch.randn(7, 12, generator=g).double(), torch.randn(5, 12, generator=g)
    found = fuse(iter(edits), keep=closed_form.gram(k), keep_weight=0.7, ridge=0.3)
    for name in "ab":
        left = 0.3 * w + 0.7 * w @ k.double().T @ k.double()
        right = 0.3 * torch.eye(12).double() + 0.7 * k.double().T @ k.double()
        for states, change in edits:
            own = w + (change[name].up @ change[name].down).double()
            for c in states.double():  # the code keeps W c for every state; here it is only a check
                left += torch.outer(own @ c, c)
                right += torch.outer(c, c)
        expected = left @ torch.linalg.inv(right) - w
        assert found[name].rank() == 6
        assert largest(found[name].dense(w.shape).double(), expected) < 1e-4


def test_a_fused_edit_acts_on_its_own_states_as_if_alone() -> None:
    g = torch.Generator().manual_seed(5)
    edits = [(states[:3] + 3 * torch.randn(3, 12, generator=g), change) for states, change in random_edits()]
    found = fuse(edits, ridge=1e-6)  # nine states in twelve dimensions do not meet
    for states, change in edits:
        for name in "ab":
            alone = states @ change[name].dense(torch.Size((7, 12))).T
            assert largest(states @ found[name].dense(torch.Size((7, 12))).T, alone) < 1e-3


def test_refinement_in_parts_is_the_solve_at_once() -> None:
    g = torch.Generator().manual_seed(6)
    e, v, k = (torch.randn(n, 12, generator=g) for n in (40, 40, 9))
    at_once = closed_form.erase(e, v, keep=closed_form.gram(k), keep_weight=0.4, ridge=0.3)
    parts = refine(zip(e.split(7), v.split(7), strict=True), keep=closed_form.gram(k), keep_weight=0.4, ridge=0.3)
    assert largest(parts.dense(), at_once.dense()) < 1e-9
    with pytest.raises(BadRequest, match="no state"):
        refine([])


def test_fusion_refuses_what_it_cannot_solve() -> None:
    with pytest.raises(BadRequest, match="ridge"):
        fuse(random_edits(), ridge=0.0)
    with pytest.raises(BadRequest, match="no edit"):
        fuse([])
