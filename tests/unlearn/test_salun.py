"""SalUn: random labels, written only into the weights that the data to forget pulls at most."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.salun import SalUn
from unlearn.steps import ONE, assert_step, drawn_labels, slopes, small


def test_salun_moves_the_salient_half_only() -> None:
    split = small(90)
    f, r, wrong = split["forget"], split["retain"], drawn_labels(split)
    saliency = slopes(lambda net: F.cross_entropy(net(f.pixels()), f.labels))
    sizes = torch.cat([g.abs().reshape(-1) for g in saliency.values()])
    median = sizes.sort(descending=True).values[round(0.5 * len(sizes)) - 1]

    def loss(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(f.pixels()), wrong) + 2 * F.cross_entropy(net(r.pixels()), r.labels)

    expect = {n: g * (saliency[n].abs() >= median) for n, g in slopes(loss).items()}
    patch = SalUn(**ONE, alpha=2.0)(classifier(), REQUEST, data=split)
    assert_step(patch, expect)
    moved = sum(int((d.dense(expect[n].shape) != 0).sum()) for n, d in patch.deltas.items())
    assert moved <= 0.51 * len(sizes)
    assert "rank" not in SalUn().parameters()  # a low-rank change moves all weights
