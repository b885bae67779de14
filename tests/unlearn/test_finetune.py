"""Fine-tune: training goes on with the retained data alone."""

from __future__ import annotations

from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.finetune import FineTune
from unlearn.steps import ONE, assert_step, slopes, small


def test_fine_tune() -> None:
    split = small(90)
    x, y = split["retain"].pixels(), split["retain"].labels
    assert_step(FineTune(**ONE)(classifier(), REQUEST, data=split), slopes(lambda net: F.cross_entropy(net(x), y)))
