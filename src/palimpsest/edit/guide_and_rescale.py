"""Guide-and-Rescale: each step is pulled towards how the picture attends, as strongly as guidance pulls elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fields import NonNegative, Share
from palimpsest.core.host import Denoiser
from palimpsest.ops.attention import captured
from palimpsest.ops.editing import DiffusionEdit, EditStep
from palimpsest.ops.guidance import classifier_free
from palimpsest.ops.inversion import denoised


@dataclass(frozen=True, kw_only=True)
class GuideAndRescale(DiffusionEdit):
    """Guides each step to keep the picture's self-attention and features, by a gradient as long as guidance allows.

        e = e_null + s (e_asked - e_null) + r g,   g = d/dx [ layout sum_l mean (A_l - A*_l)^2 + look mean |F - F*| ]
        r |g| = |g|, held between `least` and `most` times |s (e_asked - e_null)|

    A: maps of self-attention of the edit, under what is said; A*: of the inverted picture; F, F*: what leaves the last
    block of the decoder. Both norms are of one picture.

    Args:
        layout: the weight of the maps. look: the weight of the features.
        least, most: bounds of the gradient's length, in lengths of the term that guidance adds.
        share: of the steps, the first ones, in which the gradient is taken.

    Cost: a forward for each step upwards; for each step down two, one of them guided, and for `share` of them one with
        a backward; twice. Maps exist as tensors.
    Differs from the paper: norms are a picture's own, not a batch's, so that pictures do not depend on each other.
    Fails when: the change is one of layout, which the maps hold in place; guidance is 0, so that no length is allowed.
    Source: Titov et al., "Guide-and-Rescale: Self-Guidance Mechanism for Effective Tuning-Free Real Image Editing",
        ECCV 2024, arXiv 2409.01322; weights and bounds are those of its public settings that are not about style.
    """

    card = Card(
        name="Guide-and-Rescale",
        title="Guide-and-Rescale: Self-Guidance Mechanism for Effective Tuning-Free Real Image Editing",
        year=2024,
        paper="https://arxiv.org/abs/2409.01322",
        family="inversion",
        needs="Denoiser",
        claim="Balances what is edited and what is kept better than tuning-free editors, preferred by human raters.",
    )
    quick: ClassVar = {"steps": 3}

    layout: NonNegative = 3e5
    look: NonNegative = 500.0
    least: NonNegative = 0.33
    most: NonNegative = 3.0
    share: Share = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise BadRequest(f"least is {self.least} and most {self.most}; least must not be the larger one.")

    def step(self, at: EditStep) -> Tensor:
        host, scale = at.scene.host, at.scene.guidance
        if not host.guided(max(2.0, scale)):
            raise Unsupported(f"{host.name} reads its guidance as a number: there is no term to compare with.")
        null, asked = at.x0(at.null, at.asked)
        x0 = classifier_free(null, asked, scale)
        if at.index >= self.share * at.total:
            return x0
        to_noise = at.here.alpha / at.here.sigma
        length = _norm(scale * to_noise * (asked - null))
        gradient = self._gradient(at)
        own = _norm(gradient)
        bounded = torch.minimum(torch.maximum(own, self.least * length), self.most * length)
        return x0 - gradient * (bounded / own.clamp(min=1e-20)) / to_noise

    def _gradient(self, at: EditStep) -> Tensor:
        """Of each picture's energy, by x (n, c, h, w)."""
        goal = _read(at.scene.host, at, at.source)
        with torch.enable_grad():
            x = at.x.detach().clone().requires_grad_()
            maps, features = _read(at.scene.host, at, x)
            energy = self.layout * _summed([(a - b).square() for a, b in zip(maps, goal[0], strict=True)])
            energy = energy + self.look * _summed([(a - b).abs() for a, b in zip(features, goal[1], strict=True)])
            return torch.autograd.grad(energy, x)[0]


def _read(host: Denoiser, at: EditStep, x: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Maps of every self-attention layer, and what leaves the last block of the decoder; one forward under said."""
    features: list[Tensor] = []
    blocks: Mapping[str, torch.nn.Module] = host.parts("decoder_block")
    with captured(host, role="self_attention") as maps:
        hooks = [
            b.register_forward_hook(lambda m, a, out: features.append(cast("Tensor", out)))
            for b in list(blocks.values())[-1:]
        ]
        try:
            denoised(host, x, at.here, at.said)
        finally:
            for hook in hooks:
                hook.remove()
    return [kept[0] for kept in maps.values()], features


def _summed(parts: Sequence[Tensor]) -> Tensor:
    """The sum over layers and pictures of means; a picture's gradient is that of its own part."""
    return torch.stack([part.float().flatten(1).mean(1).sum() for part in parts]).sum()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None]
