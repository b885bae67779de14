"""Boundary Expanding: the data to forget moves into a class that is taken away afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.boundary_expanding import BoundaryExpanding
from unlearn.steps import ONE, assert_step, slopes, small


def test_boundary_expanding_trains_a_shadow_class_and_drops_it() -> None:
    split = small(90)
    method = BoundaryExpanding(**ONE)
    shadow = method.free(512, 0)
    assert float(shadow["shadow.weight"].abs().max()) <= 512**-0.5
    x = split["forget"].pixels()

    def loss(net: nn.Module) -> Tensor:
        h = net.body(x)
        wide = torch.cat([net.head(h), (h @ shadow["shadow.weight"] + shadow["shadow.bias"])[:, None]], 1)
        return -wide.log_softmax(1)[:, 10].mean()

    patch = method(classifier(), REQUEST, data=split)
    assert_step(patch, slopes(loss))
    assert set(patch.deltas) <= {n for n, _ in classifier().root.named_parameters()}
