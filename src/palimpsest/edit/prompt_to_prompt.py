"""Prompt-to-Prompt: an edit that looks where the picture's own attention looks, on latents taken from its inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.fields import Share
from palimpsest.core.host import Cond, Denoiser
from palimpsest.ops.editing import DiffusionEdit, EditStep
from palimpsest.ops.guidance import classifier_free
from palimpsest.ops.inversion import denoised


@dataclass(frozen=True, kw_only=True)
class PromptToPrompt(DiffusionEdit):
    """Puts the attention maps of the picture, under what is said, in place of those of the edit.

        M_asked[:, j] <- M_said[:, a(j)]   for `cross` of the steps,   S_asked <- S_said   for `self_share` of them

    M: maps of cross-attention, S: of self-attention, a(j): the token of what is said that stands where token j of what
    is asked does; tokens that are new keep their own. The maps of the picture are read in the latents of its inversion,
    set anew at each step (direct inversion), so that they are its own whatever guidance does.

    Args:
        cross: the share of the steps in which maps of words are taken over.
        self_share: the share of the steps in which maps of pixels are.

    Cost: a forward for each step upwards; one of three rows for each step down, twice. Maps exist as tensors.
    Differs from the paper: pictures are real, so the source's branch is that of direct inversion; words are aligned by
        the longest runs that both sentences share; maps of every size are taken over; no map is weighed or blended.
    Fails when: the change is one of shape or place, which the maps hold in place.
    Source: Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", ICLR 2023, arXiv 2208.01626;
        for the source's branch Ju et al., "PnP Inversion", ICLR 2024, arXiv 2310.01506.
    """

    card = Card(
        name="Prompt-to-Prompt",
        title="Prompt-to-Prompt Image Editing with Cross Attention Control",
        year=2023,
        paper="https://arxiv.org/abs/2208.01626",
        family="inversion",
        needs="Denoiser",
        claim="Replacing attention maps by the source's keeps its layout while words of the prompt change.",
    )
    quick: ClassVar = {"steps": 3}

    cross: Share = 0.8
    self_share: Share = 0.4

    def step(self, at: EditStep) -> Tensor:
        host, n, scale = at.scene.host, len(at.x), at.scene.guidance
        whole = host.guided(scale)
        prompts = at.scene.prompts
        asked = [said if at.asked is at.said else wanted for said, wanted in prompts]
        length = at.asked.states.shape[1]
        places = aligned(host, [said for said, _ in prompts], asked, length).to(at.x.device)
        share = at.index / at.total

        def words(name: str, maps: Tensor) -> Tensor:
            source, edit = maps[:n], maps[-n:]
            at_source = places.clamp(min=0)[:, None, None].expand_as(edit)
            taken = torch.where((places >= 0)[:, None, None], source.gather(-1, at_source), edit)
            return torch.cat([maps[:-n], taken]) if share < self.cross else maps

        def pixels(name: str, maps: Tensor) -> Tensor:
            return torch.cat([maps[:-n], maps[:n]]) if share < self.self_share else maps

        conds = [at.said, at.null, at.asked] if whole else [at.said, at.asked]
        x = torch.cat([at.source, *[at.x] * (len(conds) - 1)])
        with host.attending(words, "cross_attention"), host.attending(pixels, "self_attention"):
            found = denoised(host, x, at.here, Cond.cat(conds)).chunk(len(conds))
        return classifier_free(found[1], found[2], scale) if whole else found[1]


def aligned(host: Denoiser, said: Sequence[str], asked: Sequence[str], length: int) -> Tensor:
    """(n, length): for each token of what is asked the token of what is said in its place; -1 where there is none.

    Words that both have are paired, and so are runs of as many words that take each other's place. Behind the last word
    the end tokens are paired in order.
    """
    rows = torch.full((len(said), length), -1)
    for row, (old, new) in zip(rows, zip(said, asked, strict=True), strict=True):
        before, after = old.split(), new.split()
        starts, ends = _edges(host, before), _edges(host, after)
        row[0] = 0
        for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if kind == "equal" or (kind == "replace" and b - a == d - c):
                for i, j in zip(range(a, b), range(c, d), strict=True):
                    for place in range(ends[j], min(ends[j + 1], length)):
                        row[place] = min(starts[i] + place - ends[j], starts[i + 1] - 1)
        behind = torch.arange(ends[-1], length)
        row[behind] = (behind - ends[-1] + starts[-1]).clamp(max=length - 1)
    return rows


def _edges(host: Denoiser, words: Sequence[str]) -> list[int]:
    """The first token of each word, and one past the last of all."""
    with torch.no_grad():
        lengths = host.tokens([" ".join(words[:i]) for i in range(len(words) + 1)]).lengths
    return [int(n) - 1 for n in lengths]  # the end token stands where the next word would
