"""Membership scores, attacks and distances against formulas, brute force and cases of known truth."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from palimpsest.ops import membership as m


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(50, 7, generator=draw(0)) * 3
LABELS = torch.randint(7, (50,), generator=draw(1))


def test_scores_are_their_formulas() -> None:
    p = LOGITS.double().softmax(1)
    py = p.gather(1, LABELS[:, None])[:, 0]
    assert torch.allclose(m.confidence(LOGITS, LABELS), py.log())
    assert torch.allclose(m.entropy(LOGITS), (p * p.log()).sum(1))
    assert torch.allclose(m.margin(LOGITS, LABELS), (py / (1 - py)).log())
    whole = (p * (1 - p).log()).sum(1) - py * (1 - py).log() + (1 - py) * py.log()
    assert torch.allclose(m.modified_entropy(LOGITS, LABELS), whole)


def test_modified_entropy_tells_sure_and_wrong_from_sure_and_right() -> None:
    sure = torch.tensor([[40.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    right, wrong = m.modified_entropy(sure, torch.tensor([0, 1]))
    assert right > -1e-6 > wrong
    assert torch.isfinite(m.modified_entropy(sure * 10, torch.tensor([0, 1]))).all()
    assert m.entropy(sure)[0] == m.entropy(sure)[1]


def test_modified_entropy_is_exact_however_many_classes_there_are() -> None:
    z = torch.randn(6, 300, generator=draw(2)).double() * 10
    z[0, 7] = 800.0  # p rounds to 1
    labels = torch.tensor([7, 8, 0, 299, 150, 1])
    alone = z[:, None, :].masked_fill(torch.eye(300, dtype=torch.bool)[None], -math.inf)  # (n, classes, classes)
    log_rest = alone.logsumexp(2) - z.logsumexp(1, keepdim=True)
    log_p = z.log_softmax(1)
    own = torch.nn.functional.one_hot(labels, 300).bool()
    expected = torch.where(own, log_rest.exp() * log_p, log_p.exp() * log_rest).sum(1)
    torch.testing.assert_close(m.modified_entropy(z, labels), expected, rtol=1e-12, atol=1e-12)


def test_modified_entropy_of_a_thousand_classes_needs_no_square_of_them() -> None:
    largest = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            largest = max(largest, found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Watched():
        m.modified_entropy(torch.randn(20, 1000, generator=draw(3)), torch.zeros(20, dtype=torch.int64))
    assert largest <= 20 * 1001


def test_auc_counts_pairs_and_covers_the_truth() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    pairs = sum((x > y) + 0.5 * (x == y) for x in a.tolist() for y in b.tolist()) / 12
    assert m.auc(a, b).value == pytest.approx(pairs)
    truth = float(stats.norm.cdf(0.8 / math.sqrt(2)))
    inside = 0
    for seed in range(200):
        g = draw(seed)
        low, high = m.auc(torch.randn(60, generator=g) + 0.8, torch.randn(40, generator=g))[1:]
        inside += low <= truth <= high
    assert 0.90 <= inside / 200 <= 0.995


def test_auc_at_the_ends_keeps_a_width() -> None:
    one = m.auc(torch.ones(30), torch.zeros(30))
    assert one.value == one.high == 1
    assert 0.7 < one.low < 0.99
    assert m.auc(torch.zeros(30), torch.zeros(30)).value == 0.5
    assert math.isnan(m.auc(torch.zeros(0), torch.zeros(3)).value)


def test_balanced_accuracy_is_chance_where_there_is_nothing() -> None:
    g = draw(3)
    nothing = [m.balanced_accuracy(torch.randn(40, generator=g), torch.randn(60, generator=g)).value for _ in range(80)]
    assert abs(sum(nothing) / 80 - 0.5) < 0.02  # a threshold chosen on the same samples would give 0.57
    clear = m.balanced_accuracy(torch.randn(200, generator=g) + 6, torch.randn(200, generator=g))
    assert clear.value > 0.97
    assert clear.low < clear.value <= clear.high <= 1


def test_found_at_false_alarm_rates() -> None:
    others = torch.arange(100.0)
    members = torch.tensor([98.5, 99.5, 50.0, 1000.0])
    assert m.found_at(members, others, torch.tensor([0.0, 0.01, 0.5, 1.0])).tolist() == [0.5, 0.75, 1.0, 1.0]


def test_margin_divergence_is_the_divergence_of_gaussians() -> None:
    g = draw(6)
    u, r = 1 + 2 * torch.randn(4000, 3, generator=g), torch.randn(4000, 3, generator=g)
    p, q = torch.distributions.Normal(1.0, 2.0), torch.distributions.Normal(0.0, 1.0)
    assert m.margin_divergence(u, r) == pytest.approx(float(torch.distributions.kl_divergence(p, q)), rel=0.1)
    assert m.margin_divergence(r, r).abs().max() < 1e-12
    assert torch.isfinite(m.margin_divergence(u[:1], r[:3])).all()


def test_probes_see_a_class_that_is_there_and_none_that_is_not() -> None:
    g = draw(7)
    positive = torch.rand(400, generator=g) < 0.1
    noise = torch.randn(400, 12, generator=g)
    shifted = noise + positive[:, None] * torch.tensor([3.0] + [0.0] * 11)
    for score in (m.probe_scores, m.centroid_scores):
        there, not_there = score(shifted, positive), score(noise, positive)
        assert m.auc(there[positive], there[~positive]).value > 0.93
        assert abs(m.auc(not_there[positive], not_there[~positive]).value - 0.5) < 0.17  # not fitted to its own rows
