"""Whether a model's answers betray what it learned from: membership attacks and distances to models that never saw it.

All scores are "higher: more like a training sample". Rows are samples; logits are (n, classes), labels (n,) int64.
"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from palimpsest.ops.statistics import LEVEL, Interval, wilson

_SPREAD = 1e-3  # smallest standard deviation of a Gaussian of margins, in logits


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) log p(label), nats, at most 0."""
    return functional.log_softmax(logits.double(), 1).gather(1, labels[:, None])[:, 0]


def entropy(logits: Tensor) -> Tensor:
    """(n,) sum_i p_i log p_i: minus the entropy, nats, in [-log classes, 0]. It does not read the label."""
    log_p = functional.log_softmax(logits.double(), 1)
    return (log_p.exp() * log_p).sum(1)


def modified_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) minus the entropy that knows the label: a sure and wrong answer scores low, not high.

        (1 - p_y) log p_y + sum_{i != y} p_i log(1 - p_i)

    Source: Song and Mittal, USENIX Security 2021, arXiv 2003.10595. log(1 - p_i) comes from the other logits, so that
    it stays exact where p_i rounds to 1.
    """
    z = logits.double()
    log_p = functional.log_softmax(z, 1)
    own = functional.one_hot(labels, z.shape[1]).bool()
    log_rest = _log_rest(z)
    parts = torch.where(own, log_rest.exp() * log_p, log_p.exp() * log_rest)
    return parts.sum(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) log(p_y / (1 - p_y)) = z_y - logsumexp of the other logits: near to normal over trainings."""
    z = logits.double()
    others = z.scatter(1, labels[:, None], -math.inf)
    return z.gather(1, labels[:, None])[:, 0] - others.logsumexp(1)


def auc(members: Tensor, others: Tensor, level: float = LEVEL) -> Interval:
    """The chance that a member scores above another sample, ties half; 0.5 is no attack. With its score interval.

    Limits: all t with `|auc - t| <= z sqrt(V(t))`, V Hanley and McNeil's variance with both group sizes at their mean
    (Newcombe 2006, method 5). It keeps a width at 0 and at 1. No samples on one side give (nan, 0, 1).
    """
    m, n = len(members), len(others)
    if not (m and n):
        return Interval(math.nan, 0.0, 1.0)
    ranks = torch.from_numpy(stats.rankdata(torch.cat([members, others]).double().numpy()))
    value = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    z, size = float(stats.norm.ppf((1 + level) / 2)), (m + n) / 2 - 1

    def inside(t: float) -> bool:
        variance = t * (1 - t) / (m * n) * (1 + size * ((1 - t) / (2 - t) + t / (1 + t)))
        return (value - t) ** 2 <= z * z * variance

    def limit(end: float) -> float:
        near, far = value, end
        for _ in range(50):
            middle = (near + far) / 2
            near, far = (middle, far) if inside(middle) else (near, middle)
        return near

    return Interval(value, limit(0.0), limit(1.0))


def balanced_accuracy(members: Tensor, others: Tensor, level: float = LEVEL) -> Interval:
    """Mean of the two rates of an attack with a threshold; 0.5 is no attack.

    The threshold that serves best on one half of each side is used on the other half, both ways, so that chance
    stays at 0.5. The interval combines Wilson's limits of the two rates (Newcombe's hybrid).
    """
    if min(len(members), len(others)) < 2:
        return Interval(math.nan, 0.0, 1.0)
    hits = [0, 0]
    for half in (0, 1):
        cut = _best_cut(members[half::2], others[half::2])
        hits[0] += int((members[1 - half :: 2] >= cut).sum())
        hits[1] += int((others[1 - half :: 2] < cut).sum())
    caught, spared = wilson(hits[0], len(members), level), wilson(hits[1], len(others), level)
    down = math.hypot(caught.value - caught.low, spared.value - spared.low) / 2
    up = math.hypot(caught.high - caught.value, spared.high - spared.value) / 2
    value = (caught.value + spared.value) / 2
    return Interval(value, max(0.0, value - down), min(1.0, value + up))


def found_at(members: Tensor, others: Tensor, alarms: Tensor) -> Tensor:
    """(k,) share of members above the threshold that lets a share `alarms` (k,) in [0, 1] of the others through.

    Args:
        alarms: false-positive rates; between two others' scores the threshold is the higher one.
    """
    ordered = others.double().sort(descending=True).values
    allowed = (alarms.double() * len(ordered) + 1e-4).floor().long()
    cuts = torch.cat([ordered, torch.tensor([-math.inf], dtype=torch.float64)])[allowed]
    return (members.double()[None, :] > cuts[:, None]).double().mean(1)


def margin_divergence(margins: Tensor, references: Tensor) -> Tensor:
    """(n,) KLoM with Gaussians: KL(unlearned || retrained) of each sample's margin over seeds, nats.

        log(s_r / s_u) + (s_u^2 + (mu_u - mu_r)^2) / (2 s_r^2) - 1/2

    Args:
        margins: (k, n) of unlearned models. references: (k', n) of retrained ones.

    Differs from the paper: its histograms need a hundred models a side; here each side is a Gaussian whose spread is
    pooled over the samples, with a single seed on a side that of the other.
    Source: Georgiev et al., "Attribute-to-Delete", arXiv 2410.23232.
    """
    u, r = margins.double(), references.double()
    spreads = [float(x.var(0).mean().sqrt()) if len(x) > 1 else math.nan for x in (u, r)]
    known = [s for s in spreads if not math.isnan(s)]
    su, sr = (max(_SPREAD, s if not math.isnan(s) else known[0] if known else 1.0) for s in spreads)
    return math.log(sr / su) + (su**2 + (u.mean(0) - r.mean(0)) ** 2) / (2 * sr**2) - 0.5


def probe_scores(features: Tensor, positive: Tensor, ridge: float = 1.0) -> Tensor:
    """(n,) scores of a linear probe for "positive", each row scored by a probe of the other half of the rows.

        w = argmin |X w - y|^2 / n + ridge mean(eigenvalue) |w|^2 / d     on centred X, y = +-1 with both sides equal

    Args:
        features: (n, d). positive: (n,) bool.
    Cost: two solves of d x d.
    """
    x, y = features.double(), positive
    scores = torch.zeros(len(x), dtype=torch.float64)
    for half in _halves(y):
        fit, weight = ~half, torch.where(y, 0.5 / max(1, int(y[~half].sum())), 0.5 / max(1, int((~y)[~half].sum())))
        share = weight[fit, None].double()
        centre = (share * x[fit]).sum(0)
        centred = x[fit] - centre
        gram = centred.T @ (share * centred)
        gram.diagonal().add_(1e-9 + ridge * 0.01 * gram.diagonal().mean())
        w = torch.linalg.solve(gram, (share * centred * (2.0 * y[fit, None] - 1)).sum(0))
        scores[half] = (x[half] - centre) @ w
    return scores


def centroid_scores(features: Tensor, positive: Tensor) -> Tensor:
    """(n,) how much nearer each row lies to the centroid of the positive rows than to that of the others.

    Centroids are of the other half of the rows. Features (n, d); scores in squared distances.
    """
    x = features.double()
    scores = torch.zeros(len(x), dtype=torch.float64)
    for half in _halves(positive):
        centres = [
            x[~half & side].mean(0) if bool((~half & side).any()) else x.mean(0) for side in (positive, ~positive)
        ]
        scores[half] = (x[half] - centres[1]).square().sum(1) - (x[half] - centres[0]).square().sum(1)
    return scores


def _halves(positive: Tensor) -> tuple[Tensor, Tensor]:
    """Every second row of each side, and the rest, as masks."""
    turn = torch.where(positive, positive.cumsum(0), (~positive).cumsum(0)) % 2 == 0
    return turn, ~turn


def _log_rest(z: Tensor) -> Tensor:
    """(n, classes) log(1 - p_i), from the other logits: those before i and those after, in O(n classes)."""
    edge = torch.full_like(z[:, :1], -math.inf)
    before = torch.cat([edge, z.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([z.flip(1).logcumsumexp(1).flip(1)[:, 1:], edge], 1)
    return torch.logaddexp(before, after) - z.logsumexp(1, keepdim=True)


def _best_cut(members: Tensor, others: Tensor) -> float:
    scores, order = torch.cat([members, others]).double().sort(descending=True)
    member = (order < len(members)).double()
    gain = (member / max(1, len(members)) - (1 - member) / max(1, len(others))).cumsum(0)
    last = torch.cat([scores[1:] < scores[:-1], torch.tensor([True])])  # equal scores fall on one side
    return float(scores[torch.where(last, gain, torch.full_like(gain, -math.inf)).argmax()])
