"""FLAT: forget data alone, with how not to answer and how to answer weighed by an f-divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from digits_fixture import REQUEST, classifier
from palimpsest.unlearn.flat import FLAT, conjugate, variational
from unlearn.steps import ONE, assert_step, slopes, small


@pytest.mark.parametrize("divergence", ["kl", "js", "pearson", "tv"])
def test_flat(divergence: str) -> None:
    split = small(90)
    x, y = split["forget"].pixels(), split["forget"].labels
    with torch.no_grad():
        runner_up = classifier().logits(x).topk(2).indices
    template = torch.where(runner_up[:, 0] == y, runner_up[:, 1], runner_up[:, 0])

    def loss(net: nn.Module) -> Tensor:
        p = net(x).softmax(1)
        bad, good = p[torch.arange(len(y)), y], p[torch.arange(len(y)), template]
        return {
            "kl": lambda: torch.exp(bad - 1) - good,
            "js": lambda: -torch.log(2 - 2 / (1 + torch.exp(-bad))) - torch.log(2 / (1 + torch.exp(-good))),
            "pearson": lambda: bad**2 / 4 + bad - good,
            "tv": lambda: torch.tanh(bad) / 2 - torch.tanh(good) / 2,
        }[divergence]().mean()

    assert_step(FLAT(**ONE, divergence=divergence)(classifier(), REQUEST, data=split), slopes(loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("divergence", ["kl", "js", "pearson", "tv"])
def test_flat_rewards_the_template_and_punishes_the_label(divergence: str) -> None:
    p = torch.linspace(0, 1, 20)
    assert bool((variational(p, divergence).diff() > 0).all())  # type: ignore[arg-type]
    assert bool((conjugate(variational(p, divergence), divergence).diff() > 0).all())  # type: ignore[arg-type]
