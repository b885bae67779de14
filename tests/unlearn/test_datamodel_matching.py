"""Datamodel matching: predict what a model without the forget set would say, then fine-tune to say it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from digits_fixture import REQUEST, class_split, classifier
from palimpsest.unlearn.datamodel_matching import DatamodelMatching, proxy
from unlearn.steps import features


def test_datamodel_matching_predicts_and_matches() -> None:
    split, host = class_split(), classifier()
    kept, labels = features(split["retain"]), split["retain"].labels
    w, b = proxy(kept, labels, 10, 1e-3)
    spread = kept.std(0).mean()
    w, b = (w * spread).requires_grad_(True), b.clone().requires_grad_(True)
    loss = F.cross_entropy(kept / spread @ w + b, labels) + 1e-3 * (w.square().sum() + b.square().sum())
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, [w, b])) < 1e-3, "the proxy is no optimum"
    method = DatamodelMatching(steps=80, lr=1e-3)
    goal = method.ready(host, split, 0)
    assert float((goal.forget.argmax(1) == 3).float().mean()) < 0.05
    assert float((goal.retain.argmax(1) == goal.kept.labels).float().mean()) > 0.98
    with method(host, REQUEST, data=split).applied(host), torch.no_grad():
        after = host.logits(split["forget"].pixels())
    assert float((after - goal.forget).square().mean()) < 0.3 * float(
        (host.logits(split["forget"].pixels()) - goal.forget).square().mean()
    )
