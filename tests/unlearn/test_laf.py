"""LAF: label-agnostic forgetting; features leave the distribution of what is forgotten, no label is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from digits_fixture import REQUEST, accuracy, class_split, classifier
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.train.loop import TrainStep
from palimpsest.train.trained import Trained
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


def test_laf_terms_of_a_student_that_differs_from_its_teacher() -> None:
    split, host = small(90), classifier()
    f, r = split["forget"].pixels(), split["retain"].pixels()
    method = LAF(steps=1, batch=10_000, vae_steps=5, align_weight=3.0, temperature=0.5, repair=0.7)
    kept, lost = ready = method.ready(host, split, 0)
    trained = Trained(host.root, ["body.4.weight"])
    with torch.no_grad():
        trained.leaves["body.4.weight"].mul_(1.3).add_(0.02)
    step = TrainStep(
        host=host, request=REQUEST, index=0, total=1, batch=10_000, seed=0, data=split, context=ready, trace=Trace(),
        trained=trained,
    )  # fmt: skip
    with torch.no_grad(), trained.student():
        found = float(method.loss(step))
        new_f, new_r, said = host.root.body(f), host.root.body(r), host.root.head(host.root.body(r))
    old_f, old_r, m = features(split["forget"]), features(split["retain"]), kept.centre
    q_kept, q_lost = kept(new_r)[0], lost(new_f)[0]
    away = (q_kept / (q_kept + 1)).mean() - (q_lost / (q_lost + 1)).mean()
    cos_f, cos_r = (F.cosine_similarity(a - m, b - m) / 0.5 for a, b in ((new_f, old_f), (new_r, old_r)))
    align = cos_f.exp().sum().log() - cos_r.mean()
    assert float(cos_r.mean()) < 1.99, "the student does not differ"
    expect = away + 3 * align + 0.7 * F.cross_entropy(said, split["retain"].labels)
    assert found == pytest.approx(float(expect), rel=1e-4)
