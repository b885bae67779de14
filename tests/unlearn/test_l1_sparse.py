"""l1-sparse: fine-tuning on what is kept, under a pull towards few weights that fades out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.l1_sparse import L1Sparse
from unlearn.steps import ONE, assert_step, slopes, small


def test_l1_sparse_fades_out() -> None:
    split = small(90)
    x, y = split["retain"].pixels(), split["retain"].labels

    def loss(gamma: float) -> Callable[[nn.Module], Tensor]:
        return lambda net: F.cross_entropy(net(x), y) + gamma * sum(p.abs().sum() for p in net.parameters())  # type: ignore[return-value]

    patch = L1Sparse(**ONE, gamma=0.02)(classifier(), REQUEST, data=split)
    assert_step(patch, slopes(loss(0.02)))
    pulls = {k: L1Sparse(**{**ONE, "steps": k}, gamma=0.02)(classifier(), REQUEST, data=split) for k in (1, 2)}
    weight = dict(classifier().root.named_parameters())["body.0.weight"]
    shrunk = {k: float((weight + p.deltas["body.0.weight"].dense(weight.shape)).abs().sum()) for k, p in pulls.items()}
    first = float(weight.abs().sum()) - shrunk[1]
    assert 0 < shrunk[1] - shrunk[2] < 2.9 * first, "the second pull is half of the first, plus momentum"
