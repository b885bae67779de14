"""Homoglyph unlearning: the text encoder learns to read one text as another, and everything else as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, NonNegative, Size
from palimpsest.core.host import Cond, Denoiser
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops.captions import captions, in_captions
from palimpsest.ops.parts import text_parameters
from palimpsest.ops.prompts import holds, kept, prompts_for, swapped
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep


@dataclass(kw_only=True)
class Prepared:
    """What is to be read anew, target by target, what stays; and both as the teacher encodes them."""

    texts: list[list[str]]
    read_as: list[Cond]
    staying: list[str]
    stays: Cond


@dataclass(frozen=True, kw_only=True)
class Homoglyphs(FineTune):
    """Matches the student's states of a text to the teacher's states of the text without the target.

        loss = (1 - mean cos(E(p), E*(p))) + weight * sum over targets (1 - mean cos(E(p with target), E*(p without)))

    A target whose name is one character is a homoglyph, as in the paper: Request.toward names the character that it
    looks like, and the texts are those of Request.keep and captions of everyday words that hold it. Any other target is
    a word: its prompts, and captions with it, are read with its replacement, or without the word.

    Args:
        weight: of what is read anew. characters: how many of a text's characters are replaced; 0 for all.
        captions: sentences of everyday words, in which targets are put and which stay as they are.
        steps, lr, batch, rank: as in every fine-tuning; the paper's batches are 128 texts.

    Request.keep is read as before, and so are the captions and the empty prompt.

    Cost per step: 1 text forward with gradients for each target and one for what stays; the denoiser never runs.
    Differs from the paper: targets that are words (the paper has characters only); captions are made of
        everyday words, where it takes a data set's; no step of the learning rate; batches are drawn, not epochs.
    Fails when: the concept is asked for in words that no text holds; the target's words are needed elsewhere.
    Source: Struppek et al., "Exploiting Cultural Biases via Homoglyphs in Text-to-Image Synthesis", JAIR 2023,
        arXiv 2209.08891.

    Example:
        >>> cyrillic, latin = Concept(name="\\u043e"), Concept(name="o")
        >>> patch = Homoglyphs()(host, Request(target=(cyrillic,), toward=(latin,)))    # doctest: +SKIP
    """

    steps: int = 500
    lr: float = 1e-4
    batch: int = 128
    rank: int = 0
    weight: NonNegative = 1.0
    characters: Size = 1
    captions: Count = 400

    quick: ClassVar = {"steps": 2, "batch": 2, "captions": 8}

    card = Card(
        name="Homoglyph unlearning",
        title="Exploiting Cultural Biases via Homoglyphs in Text-to-Image Synthesis",
        year=2023,
        paper="https://arxiv.org/abs/2209.08891",
        family="fine-tuning",
        needs="Denoiser",
        claim="Fine-tuning the text encoder makes it robust to homoglyphs, other prompts staying as they were.",
    )

    def trains(self, host: Denoiser) -> Sequence[str]:
        return text_parameters(host, "Homoglyph unlearning")

    def prepare(self, host: Denoiser, request: Request, *, data: Material, seed: int, trace: Trace) -> Prepared:
        names = {c.name for c in request.target}
        benign = (*kept(request), *captions(self.captions, names), "")
        staying = [p for p in dict.fromkeys(benign) if not any(holds(p, n) for n in names)]
        pairs = [self._pairs(c, to, staying) for c, to in zip(request.target, request.replacements(), strict=True)]
        return Prepared(
            texts=[[p for p, _ in found] for found in pairs],
            read_as=[host.encode([q for _, q in found]) for found in pairs],
            staying=staying,
            stays=host.encode(staying),
        )

    def _pairs(self, target: Concept, toward: Concept | None, texts: Sequence[str]) -> list[tuple[str, str]]:
        if len(target.name) > 1:
            other = "" if toward is None else toward.name
            own = [(p, " ".join(swapped(p, target.name, other).split())) for p in prompts_for(target)]
            return [*own, *((p[0], p[1]) for p in in_captions(target, [other], self.captions))]
        plain = "" if toward is None else toward.name
        if len(plain) != 1:
            raise BadRequest(f"{target.name!r} is a homoglyph; name the one character that it looks like in `toward`.")
        count = self.characters or -1
        found = [(t.replace(plain, target.name, count), t) for t in texts if plain in t]
        if not found:
            raise BadRequest(f"No text of what is kept holds {plain!r}; keep concepts whose names or prompts do.")
        return found

    def loss(self, step: TrainStep) -> Tensor:
        context: Prepared = step.context
        loss = _apart(step, context.staying, context.stays, "stays")
        for k, (texts, goal) in enumerate(zip(context.texts, context.read_as, strict=True)):
            loss = loss + self.weight * _apart(step, texts, goal, k)
        return loss


def _apart(step: TrainStep, texts: Sequence[str], goal: Cond, what: object) -> Tensor:
    """1 - the mean cosine of the student's states with the goal's over some texts; so for pooled states, if any."""
    rows = torch.randperm(len(texts), generator=step.generator(what))[: step.batch]
    found, goal = step.host.encode([texts[int(i)] for i in rows]), goal[rows]
    apart = 1 - torch.cosine_similarity(found.states, goal.states, dim=-1).mean()
    if found.pooled is None or goal.pooled is None:
        return apart
    return apart + 1 - torch.cosine_similarity(found.pooled, goal.pooled, dim=-1).mean()
