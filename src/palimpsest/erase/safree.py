"""SAFREE: filters the concept out of each prompt's states while sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import NonNegative, Share
from palimpsest.core.host import Cond, Denoiser, Guide, Step
from palimpsest.core.method import SamplingEdit
from palimpsest.ops.guidance import classifier_free
from palimpsest.ops.subspace import away, basis, onto
from palimpsest.ops.text_states import texts

MASK = "!"  # stands for a masked word: token 0 of CLIP's vocabulary, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class SAFREE(SamplingEdit):
    """Projects the words that carry the concept away from it, for as many steps as the prompt needs.

    With C the span of the end-token states of the concept's texts, P the prompt's token states, e_j the end-token
    state of the prompt with word j masked, and I the span of all e_j:

        trigger    word j where |e_j away from C| >= (1 + alpha) mean over k != j of |e_k away from C|
        filtered   (P onto I) away from C, at the tokens of the trigger words; P elsewhere
        steps      0 .. round(until * total * sigmoid(2 slope (10 beta - middle))) use the filtered states, with
                   beta = 1 - mean cosine of P and (P onto I) away from C over the prompt's tokens
        features   in those steps, the lowest frequencies of the decoder's skips are scaled where they are stronger
                   under the filtered than under the original prompt

    Args:
        alpha: how far above the others a word must stand.
        until: share of all steps that may be filtered beside the first (10 of 50 in the authors' code).
        slope, middle: of the self-validating filter.
        scales: of the features in the widest and in the next stage of the decoder; (1, 1) leaves them.
        padding: also filter the states behind the prompt, which have read all of it. The authors leave them; a model
            that draws from them (the small ones do) does not notice the filter otherwise.
        expand: also span the concept by sentences of its kind.

    Several targets span one subspace. Request.toward and Request.keep are not used.

    Cost: no training; 2 text rows a word of each prompt; filtered steps have 3 rows a picture in place of 2.
    Differs from the paper: masks words, not sub-word tokens; the order of the two projections is the code's; scaling
        keeps the phase of complex coefficients, where the code compares real parts only; `until` is a share. Pooled
        states and those of a second text model are left as they are.
    Fails when: a prompt means the concept without a word that stands out; two words name it, so that masking one
        leaves the other; the picture is decided by the states behind the trigger words, which no projection reaches.
    Source: Yoon et al., "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation",
        ICLR 2025, arXiv 2410.12761.

    Example:
        >>> patch = SAFREE()(host, Request(target=(Concept(name="star"),)))    # doctest: +SKIP
    """

    alpha: NonNegative = 0.01
    until: Share = 0.2
    slope: float = 2.5
    middle: float = 5.333
    scales: tuple[float, float] = (0.9, 0.2)
    padding: bool = False
    expand: bool = False

    card = Card(
        name="SAFREE",
        title="SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation",
        year=2025,
        paper="https://arxiv.org/abs/2410.12761",
        family="sampling",
        needs="Denoiser",
        claim="Suppresses unsafe content best of all training-free systems, on par with training-based ones.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.scales) != 2:
            raise BadRequest(f"scales is {self.scales}; give two factors.")

    def guide(self, host: Denoiser, request: Request, learned: Mapping[str, Tensor]) -> Guide:
        with torch.no_grad():
            asked = [t for c in request.target for t in texts(c, expand=self.expand)]
            concept = basis(_ends(host.tokens(asked)))
        plan: list[Tensor] = []

        def rule(step: Step) -> Tensor:
            if not plan:
                plan.extend(self.filtered(step, concept))
            states, until = plan
            now = (until >= self._reached(step)).to(step.x.device)
            if not bool(now.any()):
                null, cond = step.x0(step.null, step.cond)
                return classifier_free(null, cond, step.guidance)
            cond = replace(step.cond, states=torch.where(now.view(-1, 1, 1), states, step.cond.states))
            damping = step.host.skipping(self._damping(len(step.x))) if self.scales != (1, 1) else nullcontext()
            with damping:
                null, safe, _ = step.x0(step.null, cond, step.cond)
            return classifier_free(null, safe, step.guidance)

        return rule

    def _reached(self, step: Step) -> float:
        """This step's number, as a share of the steps that may be filtered."""
        return step.index / max(self.until * step.total, 1e-9)

    @torch.no_grad()
    def filtered(self, step: Step, concept: Tensor) -> tuple[Tensor, Tensor]:
        """The filtered states (n, L, d) of the step's prompts, and until when each is used (n,), as `_reached`."""
        made = {p: self._filter(step.host, p, step.cond[[i]], concept) for i, p in enumerate(step.prompts)}
        states = torch.stack([made[p][0] for p in step.prompts])
        total = max(self.until * step.total, 1e-9)
        # Whole steps, as in the code: step k is filtered where k <= round(...).
        return states, torch.tensor([round(made[p][1] * self.until * step.total) / total for p in step.prompts])

    def _filter(self, host: Denoiser, prompt: str, cond: Cond, concept: Tensor) -> tuple[Tensor, float]:
        words, states = prompt.split(), cond.states[0]
        if not words:
            return states, 0.0
        masked = [" ".join([*words[:j], MASK, *words[j + 1 :]]) for j in range(len(words))]
        starts = [" ".join(words[:j]) for j in range(len(words) + 1)]
        read = host.tokens([*masked, *starts])
        ends, cuts = _ends(read)[: len(words)], (read.lengths[len(words) :] - 1).tolist()
        far = away(ends, concept).norm(dim=1)
        others = (far.sum() - far) / max(len(words) - 1, 1)
        trigger = far >= (1 + self.alpha) * others if len(words) > 1 else torch.ones(1, dtype=torch.bool)
        safe = away(onto(states, basis(ends)), concept)
        hit = torch.zeros(len(states), 1, dtype=torch.bool, device=states.device)
        for j in trigger.nonzero().flatten().tolist():
            hit[cuts[j] : cuts[j + 1]] = True
        hit[cuts[-1] :] = self.padding and bool(trigger.any())
        real = slice(0, int(cond.lengths[0]))
        beta = 1 - float(torch.cosine_similarity(safe[real], states[real], dim=-1).mean())
        share = float(torch.sigmoid(torch.tensor(2 * self.slope * (10 * beta - self.middle))))
        return torch.where(hit, safe, states), share

    def _damping(self, n: int) -> Callable[[Tensor], Tensor]:
        """What skips of 3n rows become: rows n .. 2n scaled by their strength against rows 2n .. 3n."""
        widths: list[int] = []  # stages from the widest on, as the decoder meets them

        def rule(skip: Tensor) -> Tensor:
            if skip.shape[1] not in widths:
                widths.append(skip.shape[1])
            stage = widths.index(skip.shape[1])
            return damped(skip, n, self.scales[stage]) if stage < 2 else skip

        return rule


def damped(features: Tensor, n: int, scale: float) -> Tensor:
    """Features (3n, c, h, w) with the lowest frequencies of rows n .. 2n scaled where rows 2n .. 3n have less.

    The lowest frequencies are 0 and -1 of each axis (a square of two around the centre of the shifted spectrum).
    """
    safe, own = torch.fft.fft2(features[n : 2 * n].float()), torch.fft.fft2(features[2 * n :].float())
    low = torch.zeros(features.shape[-2:], dtype=torch.bool, device=features.device)
    low[[[0], [-1]], [0, -1]] = True
    found = torch.fft.ifft2(torch.where(low & (safe.abs() > own.abs()), scale * safe, safe)).real
    return torch.cat([features[:n], found.to(features.dtype), features[2 * n :]])


def _ends(cond: Cond) -> Tensor:
    """(n, d): the end token's state of each text."""
    return cond.states[torch.arange(len(cond)), cond.lengths - 1]
