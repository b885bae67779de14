"""Custom Diffusion's merge: each newcomer's own texts are read as by its own model, and others as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.fields import Count, Positive
from palimpsest.core.pictures import Material
from palimpsest.core.stored import Stored
from palimpsest.core.trace import Trace
from palimpsest.core.words import united
from palimpsest.ops.captions import captions
from palimpsest.ops.merging import changed
from palimpsest.ops.text_states import text_layers

OPENINGS = ("", "a photo of ")


class _Read(NamedTuple):
    states: tuple[Tensor, ...]  # (k_i, d) of each change's own texts
    answer: Tensor  # (k, d) = (D C^T)^-1 D, float64


@dataclass(frozen=True, kw_only=True)
class CustomMerge(Combine):
    """Merges newcomers that live in the keys and values of text: as each was learnt, where its own words are read.

        minimise over W'  |(W' - W) R^T|^2    so that  W' c = W_i c  for every state c of change i's texts

        W' = W + E (D C^T)^-1 D,    D = C (R^T R + ridge I)^-1,    E = the changes' answers (W_i - W) C_i^T

    R holds the states of captions, C those of what each change is about, alone and after "a photo of", from its first
    word to the end of the text.

    Args:
        captions: how many stand for everything else.
        ridge: added to the Gram matrix of the captions' states, as a share of its mean diagonal.

    Cost: one text forward, one Cholesky factorisation for all layers, and a product a layer.
    Differs from the paper: captions are put together from lists of everyday words, where the authors take 200 of
        LAION; the ridge, without which captions of few states would have no solution, is ours.
    Fails when: a change reaches other tensors than keys and values (refused); two changes are about the same.
    Source: Kumari et al., "Multi-Concept Customization of Text-to-Image Diffusion", CVPR 2023, arXiv 2212.04488; read
        in the authors' public code.

    Example:
        >>> both = CustomMerge()([crown, leaf], host)    # doctest: +SKIP
    """

    captions: Count = 200
    ridge: Positive = 1e-6

    card = Card(
        name="Custom Diffusion's merge",
        title="Multi-Concept Customization of Text-to-Image Diffusion",
        year=2023,
        paper="https://arxiv.org/abs/2212.04488",
        family="closed form",
        needs="Denoiser",
        claim="Two newcomers learnt apart are drawn together, better than where their changes are summed.",
    )

    def survey(
        self, parts: Sequence[Part], base: Stored, host: Any, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> _Read:
        if host is None:
            raise BadRequest(f"{self.card.name} reads texts with the model; load it (no --stream).")
        layers = text_layers(host, self.card.name)
        if other := [name for name in changed(parts) if name not in layers]:
            raise BadRequest(
                f"{self.card.name} merges changes of the keys and values that read text; {other[0]} is changed as "
                "well. Learn with --train kv, or merge with task_arithmetic or ties."
            )
        phrases = [_phrases(part) for part in parts]
        with host.speaking(united([part.words for part in parts])):
            own = tuple(_states(host, said, OPENINGS) for said in phrases)
        others = _states(host, captions(self.captions, [name for said in phrases for name in said]))
        gram = others.T @ others
        gram += self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        c = torch.cat(own)
        d = torch.cholesky_solve(c.T, torch.linalg.cholesky(gram)).T
        return _Read(states=own, answer=torch.linalg.pinv(d @ c.T, hermitian=True) @ d)

    def block(self, name: str, start: int, deltas: Tensor, surveyed: _Read) -> Tensor:
        answers = [delta.double() @ states.T for delta, states in zip(deltas, surveyed.states, strict=True)]
        return (torch.cat(answers, dim=1) @ surveyed.answer).float()


def _phrases(part: Part) -> tuple[str, ...]:
    """What prompts say for what a change is about."""
    try:
        return tuple(target.name for target in Request.from_plain(part.provenance["request"]).target)
    except (KeyError, TypeError, Damaged, BadRequest):
        raise BadRequest(
            "A change does not say what it is about, and its texts are what this merge keeps; use patches that insert "
            "or erase made, or merge with task_arithmetic or ties."
        ) from None


@torch.no_grad()
def _states(host: Any, texts: Sequence[str], openings: Sequence[str] = ("",)) -> Tensor:
    """(k, d) float64: of every text after every opening, the states from its first word to the end token."""
    found = []
    for opening in openings:
        cond, first = host.encode([f"{opening}{text}" for text in texts]), int(host.encode([opening]).lengths[0]) - 1
        found += [cond.states[i, first : int(cond.lengths[i])] for i in range(len(texts))]
    return torch.cat(found).double().cpu()
