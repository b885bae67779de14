"""Retrain: a fresh model of what is kept. The gold standard, and what all others save."""

from __future__ import annotations

from dataclasses import replace

import torch

from digits_fixture import REQUEST, accuracy, class_split, classifier
from palimpsest.core.pictures import Material
from palimpsest.unlearn.retrain import Retrain


def test_retrain_starts_afresh_and_never_sees_the_forget_set() -> None:
    split = class_split()
    method = Retrain(epochs=4, lr=0.05, augment="none")
    other = Material({**split, "forget": replace(split["forget"], images=255 - split["forget"].images)})
    one, two = (method(classifier(), REQUEST, data=d) for d in (split, other))
    host = classifier()
    state = host.root.state_dict()
    assert all(torch.equal(one.deltas[n].dense(t.shape), two.deltas[n].dense(t.shape)) for n, t in state.items())
    with one.applied(host):
        assert accuracy(host, split["forget"]) == 0
        assert accuracy(host, split["retain"]) > 95
