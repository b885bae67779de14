"""LAF: label-agnostic forgetting; features leave the distribution of what is forgotten, no label is read."""

from __future__ import annotations

from dataclasses import replace

import torch

from digits_fixture import REQUEST, accuracy, class_split, classifier
from palimpsest.core.pictures import Material
from palimpsest.unlearn.laf import LAF
from unlearn.steps import features, small


def test_laf_reads_no_label() -> None:
    split = small(300)
    blind = Material(
        {
            "forget": replace(split["forget"], labels=torch.full_like(split["forget"].labels, 9)),
            "retain": replace(split["retain"], labels=split["retain"].labels.flip(0)),
        }
    )
    method = LAF(steps=3, lr=1e-3, vae_steps=5)
    one, two = (method(classifier(), REQUEST, data=d) for d in (split, blind))
    for name, delta in one.deltas.items():
        shape = classifier().root.state_dict()[name].shape
        assert torch.equal(delta.dense(shape), two.deltas[name].dense(shape))
    assert not any(name.startswith("head") for name in one.deltas)


def test_laf_leaves_the_forgotten_features() -> None:
    split = class_split()
    with LAF(steps=60, lr=1e-3)(classifier(), REQUEST, data=split).applied(classifier()):
        assert accuracy(classifier(), split["forget"]) < 50
        assert accuracy(classifier(), split["retain"]) > 90


def test_laf_autoencoders_know_their_own_features_best() -> None:
    split = class_split()
    kept, lost = LAF(vae_steps=200).ready(classifier(), split, 0)
    z_kept, z_lost = features(split["retain"]), features(split["forget"])
    assert float(kept(z_kept)[0].mean()) < float(kept(z_lost)[0].mean())
    assert float(lost(z_lost)[0].mean()) < float(lost(z_kept)[0].mean())
