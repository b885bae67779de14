"""UPCORE: outliers are left out of the forget set before any unlearner sees it."""

from __future__ import annotations

from dataclasses import replace

import torch

from digits_fixture import REQUEST, classifier
from palimpsest.core.pictures import Material
from palimpsest.ops.isolation_forest import isolation
from palimpsest.train.classify import all_seen
from palimpsest.unlearn.finetune import FineTune
from palimpsest.unlearn.gradient_ascent import GradientAscent
from palimpsest.unlearn.upcore import UPCORE
from unlearn.steps import small


def test_upcore_gives_the_core_to_the_unlearner() -> None:
    split = small(300)
    odd = replace(split["forget"], images=torch.cat([255 - split["forget"].images[:4], split["forget"].images[4:]]))
    split = Material({**split, "forget": odd})
    scores = isolation(all_seen(classifier(), odd)[0], trees=100, generator=torch.Generator().manual_seed(0))
    core = Material({**split, "forget": odd[scores.argsort()[:36].sort().values]})
    patch = UPCORE(share=0.1, unlearner=FineTune(steps=2))(classifier(), REQUEST, data=split)
    assert patch.provenance["method"] == "unlearn/upcore"
    unlearner = GradientAscent(steps=2, lr=0.01, augment="none")
    patch = UPCORE(share=0.1, unlearner=unlearner)(classifier(), REQUEST, data=split)
    direct = unlearner(classifier(), REQUEST, data=core)
    for name, delta in direct.deltas.items():
        shape = classifier().root.state_dict()[name].shape
        assert torch.equal(delta.dense(shape), patch.deltas[name].dense(shape))
