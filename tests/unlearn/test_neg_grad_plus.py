"""NegGrad+: descent on what is kept and ascent on what is forgotten, weighed against each other."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.neg_grad_plus import NegGradPlus
from unlearn.steps import ONE, assert_step, clipped, slopes, small


def test_neg_grad_plus_weighs_both() -> None:
    split = small(90)
    f, r = split["forget"], split["retain"]

    def loss(net: nn.Module) -> Tensor:
        return 0.3 * F.cross_entropy(net(r.pixels()), r.labels) - 0.7 * F.cross_entropy(net(f.pixels()), f.labels)

    patch = NegGradPlus(**ONE, beta=0.3)(classifier(), REQUEST, data=split)
    assert_step(patch, clipped(slopes(loss)))
