"""Boundary Shrink: each sample to forget goes over the nearest border of its class."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from digits_fixture import REQUEST, accuracy, class_split, classifier, digits
from palimpsest.unlearn.boundary_shrink import BoundaryShrink
from palimpsest.unlearn.salun import SalUn
from unlearn.steps import ONE, assert_step, slopes, small


def test_boundary_shrink_goes_to_the_nearest_other_class() -> None:
    split = small(90)
    x, y = split["forget"].pixels().requires_grad_(True), split["forget"].labels
    net = copy.deepcopy(classifier().root)
    F.cross_entropy(net(x), y).backward()
    assert x.grad is not None
    moved = (x.detach() + 0.2 * x.grad.sign()).clamp(0, 1)
    goals = [
        max((float(v), k) for k, v in enumerate(row) if k != int(c))[1] for row, c in zip(net(moved), y, strict=True)
    ]
    assert len(set(goals)) > 1
    expect = slopes(lambda net: F.cross_entropy(net(x.detach()), torch.tensor(goals)))
    assert_step(BoundaryShrink(**ONE, epsilon=0.2)(classifier(), REQUEST, data=split), expect)


def test_a_class_goes_and_the_others_stay() -> None:
    split, (_, test) = class_split(), digits()
    rest = test[test.labels != 3]
    for method in (SalUn(steps=40, lr=3e-3, augment="none"), BoundaryShrink(steps=50, lr=1e-3, augment="none")):
        with method(classifier(), REQUEST, data=split).applied(classifier()):
            assert accuracy(classifier(), split["forget"]) < 10
            assert accuracy(classifier(), rest) > 85
