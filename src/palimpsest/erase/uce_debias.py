"""UCE's debiasing: closed-form edits, repeated until the model draws a concept's attributes in the wanted ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count
from palimpsest.core.host import Denoiser
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops import closed_form
from palimpsest.ops.drawn import Drawn, draw, noise_errors
from palimpsest.ops.names import only
from palimpsest.ops.text_states import Positions, Tokens, kept_texts, states_of, text_readers, texts

TIMES = (0.3, 0.5, 0.7)  # quantiles of the training times at which the model itself tells attributes apart


@dataclass(frozen=True, kw_only=True)
class UCEDebias(ModelEdit):
    """Adds to each concept's answer just so much of each attribute that the attributes come in the wanted ratios.

    With c a target's token states, a those of the attributes and shares found in pictures of the model as it is now:

        scale_a <- scale_a + gain (wanted_a - found_a),  where any attribute is off by more than the tolerance
        UCE's solve from the untouched weights, with c answered as  W (c + sum over a of scale_a a)

    until all are within the tolerance or the rounds are over.

    Args:
        attributes: what is balanced, in words. ratios: what share each should have; () for equal shares.
        rounds, tolerance: of the loop (30 and 0.05 in the authors' code). gain: as above; 1 in the code.
        per_round: pictures of each target in each round (10 in the code). guidance, walk_steps: of drawing them.
        edit_weight, keep_weight, ridge, tokens: as in UCE; the code edits the last token only.

    Request.keep is kept in the solve; Request.toward is not used. A "judge" beside the model is a classifier with a
    label for each attribute. Without one the untouched model judges: the attribute under whose name the picture's noise
    is predicted best.

    Cost: a round draws per_round x walk_steps x 2 rows for each target; the model as judge reads each picture 3 times
        for each attribute. One solve a round; the patch is of low rank.
    Differs from the paper: no CLIP is asked; a judge is a classifier. As in the code, scales add up over the
        rounds. Moderation, the paper's third use, is UCE without a replacement.
    Fails when: the judge cannot tell the attributes apart; few pictures a round make the shares noisy; the attribute is
        drawn from other words than the concept's.
    Source: Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761; judging by
        denoising: Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023, arXiv 2303.16203.

    Example:
        >>> patch = UCEDebias()(host, Request(target=(Concept(name="doctor"),)))    # doctest: +SKIP
    """

    attributes: tuple[str, ...] = ("man", "woman")
    ratios: tuple[float, ...] = ()
    rounds: Count = 30
    tolerance: float = 0.05
    gain: float = 1.0
    per_round: Count = 16
    guidance: float = 7.5
    walk_steps: Count = 20
    edit_weight: float = 1.0
    keep_weight: float = 1.0
    ridge: float = 0.5
    tokens: Tokens = "last"

    quick: ClassVar = {"rounds": 2, "walk_steps": 3}

    card = Card(
        name="UCE (debiasing)",
        title="Unified Concept Editing in Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2308.14761",
        family="closed form",
        needs="Denoiser",
        claim="Draws professions in balanced ratios of gender and race, closer to them than earlier debiasing.",
        beside={"judge?": "Classifier"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.attributes) < 2 or len(self.ratios) not in (0, len(self.attributes)):
            raise BadRequest(
                f"{len(self.attributes)} attributes and {len(self.ratios)} ratios; give 2 or more of each."
            )
        if self.ratios and abs(sum(self.ratios) - 1) > 1e-3:
            raise BadRequest(f"The ratios sum to {sum(self.ratios)}; they are shares of all pictures and sum to 1.")

    @torch.no_grad()
    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        readers = text_readers(host, "UCE", self.tokens)
        wanted = torch.tensor(self.ratios or [1 / len(self.attributes)] * len(self.attributes))
        kept = kept_texts(request, expand=False)
        grams = [closed_form.gram(torch.cat(states_of(host, kept, at))) if kept else None for _, at in readers]
        scales = torch.zeros(len(request.target), len(self.attributes))
        patch = Patch(base=host.fingerprint())
        for k in range(self.rounds):
            shares = [self._shares(host, patch, concept, data.models.get("judge"), rng) for concept in request.target]
            off = wanted - torch.stack(shares)
            trace.log.append((k, "largest gap", float(off.abs().max())))
            trace.tell("debiasing", k + 1, self.rounds)
            off[off.abs().amax(1) < self.tolerance] = 0
            if not bool(off.any()):
                break
            scales += self.gain * off
            deltas: dict[str, Any] = {}
            for (layers, positions), keep in zip(readers, grams, strict=True):
                deltas |= closed_form.edit_layers(layers, self.solve(host, request, scales, positions, keep))
            patch = Patch(base=patch.base, deltas=deltas)
        return patch

    def solve(
        self, host: Denoiser, request: Request, scales: Tensor, positions: Positions, keep: Tensor | None
    ) -> closed_form.StateEdit:
        """UCE's edit with each target answered as itself plus the scaled attributes; scales (targets, attributes)."""
        rows, answers = [], []
        of_attributes = states_of(host, self.attributes, positions)
        for concept, scale in zip(request.target, scales.tolist(), strict=True):
            for own in states_of(host, texts(concept, expand=False), positions):
                cut = min(len(s) for s in (own, *of_attributes))
                rows.append(own[:cut])
                answers.append(own[:cut] + sum(x * a[:cut] for x, a in zip(scale, of_attributes, strict=True)))
        return closed_form.erase(
            torch.cat(rows),
            torch.cat(answers),
            keep=keep,
            erase_weight=self.edit_weight,
            keep_weight=self.keep_weight,
            ridge=self.ridge,
        )

    def _shares(self, host: Denoiser, patch: Patch, concept: Concept, judge: Any, rng: torch.Generator) -> Tensor:
        """(attributes,) shares among pictures of one concept, drawn by the model as it is now."""
        with patch.applied(host):
            drawn = draw(
                host, texts(concept, expand=False), self.per_round, rng, steps=self.walk_steps, guidance=self.guidance
            )
        if judge is None:
            shown = self.told_apart(host, drawn, concept, rng)
        else:
            classes = [only(attribute, judge.labels, "label", judge.name) for attribute in self.attributes]
            shown = judge.logits(host.pixels(drawn.x0))[:, classes].argmax(1)
        return torch.bincount(shown.cpu(), minlength=len(self.attributes)).float() / len(drawn)

    def told_apart(self, host: Denoiser, drawn: Drawn, concept: Concept, rng: torch.Generator) -> Tensor:
        """(n,) the attribute under whose name the model predicts each picture's noise best."""
        cond = host.encode([f"{attribute} {concept.name}" for attribute in self.attributes])
        each = torch.arange(len(cond)).expand(len(drawn), -1)
        return noise_errors(host, drawn.x0, cond, each, TIMES, rng).argmin(1)
