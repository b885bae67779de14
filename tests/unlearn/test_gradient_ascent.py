"""Gradient ascent: the loss on the data to forget goes up."""

from __future__ import annotations

from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.gradient_ascent import GradientAscent
from unlearn.steps import ONE, assert_step, clipped, slopes, small


def test_gradient_ascent_climbs() -> None:
    split = small(90)
    x, y = split["forget"].pixels(), split["forget"].labels
    expect = clipped(slopes(lambda net: -F.cross_entropy(net(x), y)))
    assert_step(GradientAscent(**ONE)(classifier(), REQUEST, data=split), expect)
