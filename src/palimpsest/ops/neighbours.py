"""Which concepts lie close to a concept in a model's own text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from palimpsest.core.concept import Concept
from palimpsest.core.host import Denoiser
from palimpsest.ops.prompts import asking
from palimpsest.ops.text_states import last


@torch.no_grad()
def nearest(host: Denoiser, concept: Concept, candidates: Sequence[Concept], k: int) -> list[tuple[Concept, float]]:
    """The k candidates whose last word's text state has the largest cosine with the concept's, nearest first.

    Args:
        candidates: fewer than k are all returned; the concept itself should not be among them.

    Returns:
        (candidate, cosine in [-1, 1]); equal cosines keep the order of the candidates.

    Cost: one batched text forward of len(candidates) + 1 short prompts.
    """
    if not candidates:
        return []
    states = last(host.tokens([asking(c)[0] for c in (concept, *candidates)])).float()
    cosines = torch.nn.functional.cosine_similarity(states[:1], states[1:])
    order = cosines.argsort(descending=True, stable=True)[:k].tolist()
    return [(candidates[i], float(cosines[i])) for i in order]
