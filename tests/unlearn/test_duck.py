"""DUCK: in feature space, each sample to forget swims to the nearest centroid that is not its own."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier, sample_split
from palimpsest.unlearn.duck import DUCK
from unlearn.steps import features, small


def test_duck_goes_to_the_nearest_wrong_centroid() -> None:
    split = small(300)
    kept, lost = features(split["retain"]), features(split["forget"])
    goals = []
    for h in lost:
        best = (-2.0, torch.zeros(0))
        for k in set(range(10)) - {3}:
            centre = kept[split["retain"].labels == k].mean(0)
            best = max(best, (float(F.cosine_similarity(h, centre, dim=0)), centre), key=lambda pair: pair[0])
        goals.append(best[1])
    method = DUCK(steps=1, lr=1e-3, batch=10_000, augment="none", forget_weight=2.0, keep_weight=0.5, temperature=3.0)
    torch.testing.assert_close(method.ready(classifier(), split, 0), torch.stack(goals))
    net = copy.deepcopy(classifier().root).requires_grad_(True)
    away = (1 - F.cosine_similarity(net.body(split["forget"].pixels()), torch.stack(goals))).mean()
    (2 * away + 0.5 * F.cross_entropy(net(split["retain"].pixels()) / 3, split["retain"].labels)).backward()
    patch = method(classifier(), REQUEST, data=split)
    for name, p in net.named_parameters():  # Adam's first step is the sign of the slope
        assert p.grad is not None
        clear = p.grad.abs() > 1e-3 * p.grad.abs().max()
        step = patch.deltas[name].dense(p.shape)
        assert bool((step[clear].sign() == -p.grad[clear].sign()).all()), name


def test_duck_for_samples_never_goes_to_the_own_class() -> None:
    split = sample_split()
    goals = DUCK().ready(classifier(), split, 0)
    kept = features(split["retain"])
    centres = torch.stack([kept[split["retain"].labels == k].mean(0) for k in range(10)])
    chosen = torch.cdist(goals, centres).argmin(1)
    assert not bool((chosen == split["forget"].labels).any())
