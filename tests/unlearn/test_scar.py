"""SCAR: forget towards the nearest wrong class in Mahalanobis distance, keep by distilling on foreign pictures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from digits_fixture import REQUEST, accuracy, class_split, classifier, digits, sample_split
from palimpsest.core.errors import BadRequest
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.train.loop import TrainStep
from palimpsest.train.scratch import copied
from palimpsest.train.trained import Trained
from palimpsest.unlearn.scar import SCAR, distance, nearest, statistics
from unlearn.steps import features, small


@pytest.mark.parametrize("shrinkings", [1, 2])
def test_scar_distance(shrinkings: int) -> None:
    """Mean and covariance are of the roots; the mean is of unit norm, and so is what is measured."""
    split = small(300)
    h, labels = features(split["retain"])[:, :12], split["retain"].labels
    own = (h[labels == 5].double() + 1e-4).sqrt() * (h[labels == 5] > 0)  # features after a ReLU
    s = torch.zeros(12, 12).double()
    for row in own:
        s += torch.outer(row - own.mean(0), row - own.mean(0)) / (len(own) - 1)
    for _ in range(shrinkings):
        v1 = sum(s[i, i] for i in range(12)) / 12
        others = [s[i, j] for i in range(12) for j in range(12) if i != j and s[i, j] != 0]
        v2 = sum(others) / len(others)
        s = s + torch.tensor([[3 * (v1 if i == j else v2) for j in range(12)] for i in range(12)])
    s = s / s.diagonal().sqrt()[:, None] / s.diagonal().sqrt()[None]
    away = F.normalize((h[7].double() + 1e-4).sqrt() * (h[7] > 0), dim=0) - F.normalize(own.mean(0), dim=0)
    expect = away @ torch.linalg.solve(s, away)
    found = statistics(h, labels, 5, shrinkings=shrinkings)
    assert found is not None
    torch.testing.assert_close(distance(h[7:8], found)[0].double(), expect, rtol=1e-3, atol=1e-6)
    assert statistics(h, labels, 3, shrinkings=1) is None


def test_scar_goes_to_the_nearest_class_but_its_own() -> None:
    split = small(300)
    h, labels = features(split["retain"])[:, :12], split["retain"].labels
    of = partial(statistics, h, labels, shrinkings=2)
    classes = [k for k in range(10) if k != 3]
    every = torch.stack([distance(h, s) for k in classes if (s := of(k)) is not None], 1)
    every[labels[:, None] == torch.tensor(classes)] = torch.inf
    assert torch.equal(nearest(h, labels, of, classes), torch.tensor(classes)[every.argmin(1)])
    with pytest.raises(BadRequest, match="no class"):
        nearest(h, labels, of, [3])


def test_scar_distils_without_a_temperature() -> None:
    split, method = small(300), SCAR(steps=1, batch=10_000, foreign=30, lr=1e-3, forget_weight=0.0)
    ready = method.ready(classifier(), split, 0)
    student = copied(classifier())
    with torch.no_grad():
        student.root.head.weight.mul_(0.5)  # a student that differs from its teacher
    x, n = ready.foreign.pixels(), len(ready.foreign)
    p, q = ready.answers.softmax(1), student.logits(x).softmax(1)
    expect = 5 * (p * (p / q).log()).sum() / n
    step = TrainStep(
        host=student, request=REQUEST, index=0, total=1, batch=n, seed=0, data=split, context=ready, trace=Trace(),
        trained=Trained(student.root, ["head.weight"]),
    )  # fmt: skip
    assert float(method.loss(step)) == pytest.approx(float(expect), rel=1e-4)
    assert float(expect) > 0.1


def test_scar_forgets_without_retained_pictures_and_without_the_forget_set() -> None:
    split, (_, test) = class_split(), digits()
    host, rest = classifier(), test[test.labels != 3]
    for method in (SCAR(steps=60, lr=2e-3), SCAR(steps=100, lr=2e-3, forget_set=False)):
        with method(host, REQUEST, data=split).applied(host):
            assert accuracy(host, split["forget"]) < 50
            assert accuracy(host, rest) > 90
    with pytest.raises(BadRequest, match="whole classes"):
        SCAR(forget_set=False, steps=1)(host, REQUEST, data=sample_split())


def test_scar_reads_no_forgotten_picture_without_the_forget_set() -> None:
    split = small(300)
    other = Material({**split, "forget": replace(split["forget"], images=255 - split["forget"].images)})
    one, two = (SCAR(steps=2, forget_set=False)(classifier(), REQUEST, data=d) for d in (split, other))
    assert one.deltas.keys() == two.deltas.keys()
    for name, delta in one.deltas.items():
        shape = classifier().root.state_dict()[name].shape
        assert torch.equal(delta.dense(shape), two.deltas[name].dense(shape))
