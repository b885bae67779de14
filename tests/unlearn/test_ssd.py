"""Selective Synaptic Dampening: weights that matter mostly to the bad data are turned down, without training."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.core.pictures import Material, Pictures
from palimpsest.unlearn.ssd import SSD
from unlearn.steps import small


def test_selective_synaptic_dampening() -> None:
    split = small(300)

    def importance(samples: Pictures) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i in range(len(samples)):
            net = copy.deepcopy(classifier().root).requires_grad_(True)
            F.cross_entropy(net(samples.pixels([i])), samples.labels[[i]]).backward()
            for n, p in net.named_parameters():
                assert p.grad is not None
                found[n] = found.get(n, torch.zeros_like(p)) + p.grad.square() / len(samples)
        return found

    split = Material({"forget": split["forget"][:10], "retain": split["retain"][:30]})
    both = Pictures(
        images=torch.cat([split["forget"].images, split["retain"].images]),
        labels=torch.cat([split["forget"].labels, split["retain"].labels]),
        names=split["forget"].names + split["retain"].names,
    )
    f, d = importance(split["forget"]), importance(both)
    patch = SSD(select=3.0, strength=0.7, batch=1)(classifier(), REQUEST, data=split)
    assert patch.deltas
    for name, w in classifier().root.named_parameters():
        beta = (0.7 * d[name] / f[name]).nan_to_num(1.0).clamp(max=1)
        expect = torch.where(f[name] > 3 * d[name], beta * w, w) - w
        moved = patch.deltas[name].dense(w.shape) if name in patch.deltas else torch.zeros_like(w)
        torch.testing.assert_close(moved, expect.detach(), atol=1e-6, rtol=1e-3)


def test_dampening_selects_a_share_of_the_weights_that_goes_with_the_share_of_the_data() -> None:
    whole = small(300)
    split = Material({"forget": whole["forget"][:10], "retain": whole["retain"][:30]})
    patch = SSD(batch=8)(classifier(), REQUEST, data=split)
    weights = dict(classifier().root.named_parameters())
    moved = sum(int((d.dense(weights[n].shape) != 0).sum()) for n, d in patch.deltas.items())
    share = moved / sum(w.numel() for w in weights.values())
    # A quarter of the data is forgotten; zero weights and ratios below one stay.
    assert 0.5 * math.log1p(25) / 100 < share <= math.log1p(25) / 100 + 1e-3
