"""One step of a training by hand, for tests of what a loss says."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from digits_fixture import class_split, classifier
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.train.classify import wrong_labels
from palimpsest.train.randomness import generator

ONE = {"steps": 1, "lr": 0.1, "batch": 10_000, "augment": "none"}


def small(retain: int) -> Material:
    """Class 3, 40 samples of it, against some of the others."""
    split = class_split()
    return Material({"forget": split["forget"][:40], "retain": split["retain"][:retain]})


def features(samples: Pictures) -> Tensor:
    with torch.no_grad():
        return classifier().root.body(samples.pixels())


def slopes(loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Gradients of a loss at the untouched network."""
    net = copy.deepcopy(classifier().root).requires_grad_(True)
    loss(net).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}


def assert_step(patch: Patch, gradients: dict[str, Tensor], lr: float = 0.1) -> None:
    """The patch is one step of plain descent."""
    assert any(bool(g.any()) for g in gradients.values())
    for name, g in gradients.items():
        moved = patch.deltas[name].dense(g.shape) if name in patch.deltas else torch.zeros_like(g)
        torch.testing.assert_close(moved, -lr * g, atol=2e-6, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def clipped(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    norm = float(torch.cat([g.reshape(-1) for g in gradients.values()]).norm())
    return {n: g * min(1.0, 1 / norm) for n, g in gradients.items()}


def drawn_labels(split: Material) -> Tensor:
    """The random labels that seed 0 draws."""
    return wrong_labels(split, 10, generator(0, "labels"))
