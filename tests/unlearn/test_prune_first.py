"""Prune first, then unlearn: any unlearner, on the model's largest weights only."""

from __future__ import annotations

import torch

from digits_fixture import REQUEST, accuracy, class_split, classifier
from palimpsest.unlearn.finetune import FineTune
from palimpsest.unlearn.prune_first import PruneFirst


def test_prune_first_keeps_the_mask_while_it_unlearns() -> None:
    split = class_split()
    host = classifier()
    weights = {n: p for n, p in host.root.named_parameters() if p.ndim >= 2}
    cut = torch.cat([w.abs().reshape(-1) for w in weights.values()]).quantile(0.6)
    patch = PruneFirst(sparsity=0.6, unlearner=FineTune(steps=30, augment="none", lr=0.02))(host, REQUEST, data=split)
    with patch.applied(host):
        for name, w in weights.items():
            gone = float((w == 0).float().mean())
            expect = float(((w - patch.deltas[name].dense(w.shape)).abs() < cut).float().mean())
            assert abs(gone - expect) < 0.01, name
        assert accuracy(host, split["retain"]) > 95
