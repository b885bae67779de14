"""Random label: the data to forget is taught anew with labels drawn at random."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.random_label import RandomLabel
from unlearn.steps import ONE, assert_step, drawn_labels, slopes, small


def test_random_label() -> None:
    split = small(90)
    f, r, wrong = split["forget"], split["retain"], drawn_labels(split)

    def loss(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(f.pixels()), wrong) + 0.5 * F.cross_entropy(net(r.pixels()), r.labels)

    assert_step(RandomLabel(**ONE, keep_weight=0.5)(classifier(), REQUEST, data=split), slopes(loss))
