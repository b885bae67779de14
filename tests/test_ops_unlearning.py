"""Scores of unlearning, drawn surrogate pictures and isolation forests."""

from __future__ import annotations

import math

import torch
from sklearn.ensemble import IsolationForest

from palimpsest.ops.isolation_forest import isolation
from palimpsest.ops.surrogates import dead_leaves
from palimpsest.ops.unlearning_scores import adaptive_unlearning_score, normalised_unlearning_score


def test_adaptive_unlearning_score() -> None:
    assert adaptive_unlearning_score(0.0, 0.9, 0.9) == 1
    assert math.isclose(adaptive_unlearning_score(0.5, 0.8, 0.9), 0.9 / 1.5)
    assert math.isclose(adaptive_unlearning_score(0.95, 0.88, 0.9, goal=0.9), 0.98 / 1.05)


def test_normalised_unlearning_score_punishes_attacks_that_are_wrong_as_those_that_are_right() -> None:
    assert normalised_unlearning_score(1.0, 0.5) == 1
    assert math.isclose(normalised_unlearning_score(0.9, 0.6), 0.45 + 0.4)
    assert normalised_unlearning_score(0.9, 0.6) == normalised_unlearning_score(0.9, 0.4)


def test_dead_leaves_are_seeded_and_varied() -> None:
    one, two = (dead_leaves(20, (16, 24), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (20, 3, 16, 24)
    assert float(one.float().std()) > 30
    beside = (one[..., 1:].float() - one[..., :-1].float()).abs().mean()
    assert float(beside) < 0.5 * float((one[1:].float() - one[:-1].float()).abs().mean()), "neighbours are alike"


def test_isolation_scores_agree_with_scikit_learn() -> None:
    draws = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(300, 5, generator=draws), 4 + 3 * torch.randn(15, 5, generator=draws)])
    ours = isolation(points, trees=200, generator=draws)
    theirs = -torch.tensor(
        IsolationForest(n_estimators=200, random_state=0).fit(points.numpy()).score_samples(points.numpy())
    )
    assert float(torch.corrcoef(torch.stack([ours.double(), theirs]))[0, 1]) > 0.97
    assert float((ours - theirs).abs().mean()) < 0.03
    assert float(ours[300:].min()) > float(ours[:300].median())
    assert bool((isolation(torch.zeros(5, 2), trees=3, generator=draws) < 0.51).all())
