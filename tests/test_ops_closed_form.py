"""Closed-form edits against the normal equations, written out layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from palimpsest.core.delta import Dense, LowRank
from palimpsest.core.errors import BadRequest
from palimpsest.ops import closed_form

D = 24
OUT = (16, 40, 7)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(d: int = D) -> dict[str, Tensor]:
    return {f"layer{i}": draw(out, d, seed=10 + i) / d**0.5 for i, out in enumerate(OUT)}


def naive(w: Tensor, e: Tensor, v: Tensor, k: Tensor, erase_weight: float, keep_weight: float, ridge: float) -> Tensor:
    """The new weight, from the sums of outer products."""
    w, e, v, k = w.double(), e.double(), v.double(), k.double()
    left, right = ridge * w, ridge * torch.eye(w.shape[1], dtype=torch.float64)
    for e_i, v_i in zip(e, v, strict=True):
        left = left + erase_weight * torch.outer(w @ v_i, e_i)
        right = right + erase_weight * torch.outer(e_i, e_i)
    for k_j in k:
        left = left + keep_weight * torch.outer(w @ k_j, k_j)
        right = right + keep_weight * torch.outer(k_j, k_j)
    return left @ torch.linalg.inv(right)


@pytest.mark.parametrize("n", [1, 3, D - 1, D, 3 * D])
@pytest.mark.parametrize("kept", [0, 5])
def test_the_edit_solves_the_normal_equations(n: int, kept: int) -> None:
    e, v, k = draw(n, D, seed=1), draw(n, D, seed=2), draw(kept, D, seed=3)
    edit = closed_form.erase(e, v, keep=closed_form.gram(k), erase_weight=0.7, keep_weight=0.3, ridge=0.2)
    deltas = closed_form.edit_layers(layers(), edit)
    for name, w in layers().items():
        change = naive(w, e, v, k, 0.7, 0.3, 0.2) - w.double()
        found = deltas[name].dense(w.shape).double()
        assert (found - change).norm() <= 1e-6 * change.norm()


def test_collinear_states_keep_their_accuracy() -> None:
    # Real text states share a large common part and are edited with a small ridge: the hard case for float32.
    d = 96
    e = 20 * draw(1, d, seed=4) + 0.05 * draw(40, d, seed=5)
    v, k = 20 * draw(1, d, seed=4) + draw(40, d, seed=6), draw(30, d, seed=7)
    edit = closed_form.erase(e, v, keep=closed_form.gram(k), ridge=0.1)
    deltas = closed_form.edit_layers(layers(d), edit)
    for name, w in layers(d).items():
        change = naive(w, e, v, k, 1.0, 1.0, 0.1) - w.double()
        found = deltas[name].dense(w.shape).double()
        assert (found - change).norm() <= 1e-6 * change.norm()


def test_the_smaller_form_is_chosen_for_each_layer() -> None:
    few = closed_form.edit_layers(layers(), closed_form.erase(draw(2, D, seed=1), draw(2, D, seed=2)))
    assert all(isinstance(d, LowRank) and d.rank() == 2 for d in few.values())
    many = closed_form.edit_layers(layers(), closed_form.erase(draw(2 * D, D, seed=1), draw(2 * D, D, seed=2)))
    assert all(isinstance(d, Dense) for d in many.values())
    between = closed_form.edit_layers(layers(), closed_form.erase(draw(12, D, seed=1), draw(12, D, seed=2)))
    assert isinstance(between["layer1"], LowRank)  # 12 (40 + 24) < 40 * 24
    assert isinstance(between["layer2"], Dense)  # 12 (7 + 24) > 7 * 24


def test_states_that_stay_as_they_are_add_no_rank() -> None:
    e, v = draw(4, D, seed=1), draw(4, D, seed=2)
    v[1:] = e[1:]
    edit = closed_form.erase(e, v)
    assert edit.rank == 1
    w = layers()["layer0"]
    change = naive(w, e, v, e[:0], 1.0, 1.0, 0.5) - w.double()
    assert torch.allclose(w.double() @ edit.dense(), change, atol=1e-10)
    assert closed_form.edit_layers(layers(), closed_form.erase(e, e)) == {}


@pytest.mark.parametrize(("first", "second"), [(2, 3), (20, 10), (40, 2), (1, 40)])
def test_chained_edits_equal_edits_in_turn(first: int, second: int) -> None:
    w = layers()["layer1"].double()
    a = closed_form.erase(draw(first, D, seed=1), draw(first, D, seed=2))
    b = closed_form.erase(draw(second, D, seed=3), draw(second, D, seed=4))
    eye = torch.eye(D, dtype=torch.float64)
    assert torch.allclose(w @ (eye + a.then(b).dense()), (w @ (eye + a.dense())) @ (eye + b.dense()), atol=1e-10)
    states = draw(5, D, seed=5)
    assert torch.allclose(w @ a.map(states).T, w @ (eye + a.dense()) @ states.double().T, atol=1e-10)


def test_the_gram_of_layers_is_the_sum_over_layers() -> None:
    expected = sum(w.double().T @ w.double() for w in layers().values())
    assert torch.allclose(closed_form.layers_gram(layers().values()), torch.as_tensor(expected), atol=1e-12)


def test_no_state_mimics_better_than_the_derived_one() -> None:
    c, ridge = draw(3, D, seed=8), 1e-2
    edit = closed_form.erase(c, draw(3, D, seed=9))
    derived = closed_form.mimic(c, closed_form.layers_gram(layers().values()), edit, ridge=ridge)
    new = {n: w.double() @ (torch.eye(D, dtype=torch.float64) + edit.dense()) for n, w in layers().items()}

    def objective(states: Tensor) -> Tensor:
        gaps = [(states @ new[n].T - c.double() @ w.double().T) ** 2 for n, w in layers().items()]
        return torch.stack([g.sum() for g in gaps]).sum() + ridge * states.square().sum()

    derived.requires_grad_(True)
    objective(derived).backward()
    assert derived.grad is not None
    assert derived.grad.abs().max() < 1e-9
    with torch.no_grad():
        assert objective(derived) < objective(c.double())
        assert all(objective(derived) < objective(derived + 0.01 * draw(3, D, seed=s).double()) for s in range(20))


def test_half_precision_weights_get_float32_changes() -> None:
    halves = {n: w.bfloat16() for n, w in layers().items()}
    deltas = closed_form.edit_layers(halves, closed_form.erase(draw(2, D, seed=1), draw(2, D, seed=2)))
    assert {t.dtype for d in deltas.values() for t in d.tensors().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("states", "into", "ridge", "words"),
    [
        (draw(2, D), draw(3, D), 0.5, "must be"),
        (draw(0, D), draw(0, D), 0.5, "n >= 1"),
        (draw(2, D), draw(2, D, seed=1), 0.0, "above 0"),
        (draw(2, D) / 0, draw(2, D), 0.5, "finite"),
    ],
)
def test_bad_input_is_refused(states: Tensor, into: Tensor, ridge: float, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        closed_form.erase(states, into, ridge=ridge)
