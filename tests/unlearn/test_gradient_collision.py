"""Gradient Collision: the source task's mini-batches are made to pull the weights in different directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_fixture import REQUEST, classifier
from palimpsest.core.pictures import Material
from palimpsest.unlearn.gradient_collision import GradientCollision
from unlearn.steps import ONE, slopes, small


def test_gradient_collision_sums_cosines_of_pairs() -> None:
    split = small(90)
    f, r = split["forget"][:4], split["retain"]
    split = Material({"forget": f, "retain": r})

    def loss(net: nn.Module) -> Tensor:
        pulls = []
        for i in range(4):  # four mini-batches of one sample: their order does not matter
            out = F.cross_entropy(net(f.pixels([i])), f.labels[[i]])
            pulls.append(
                torch.cat([g.reshape(-1) for g in torch.autograd.grad(out, list(net.parameters()), create_graph=True)])
            )
        pairs = [F.cosine_similarity(pulls[i], pulls[j], dim=0) for i in range(4) for j in range(i)]
        return F.cross_entropy(net(r.pixels()), r.labels) + 3 * torch.stack(pairs).mean()

    gradients = slopes(loss)
    patch = GradientCollision(**ONE, weight=3.0, parts=4)(classifier(), REQUEST, data=split)
    for name, g in gradients.items():  # Adam's first step: the sign, where the slope is not tiny
        clear = g.abs() > 1e-3 * g.abs().max()
        step = patch.deltas[name].dense(g.shape)
        assert bool((step[clear].sign() == -g[clear].sign()).all()), name
