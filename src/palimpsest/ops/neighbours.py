"""Which concepts lie close to a concept: in a model's own text embeddings, or in image embeddings of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from palimpsest.core.concept import Concept
from palimpsest.core.host import Denoiser
from palimpsest.ops.text_states import last, texts


@torch.no_grad()
def nearest(host: Denoiser, concept: Concept, candidates: Sequence[Concept], k: int) -> list[tuple[Concept, float]]:
    """The k candidates whose name's last text state has the largest cosine with the concept's, nearest first.

    Args:
        candidates: fewer than k are all returned; the concept itself should not be among them.

    Returns:
        (candidate, cosine in [-1, 1]); equal cosines keep the order of the candidates.

    Cost: one batched text forward of len(candidates) + 1 short prompts.
    """
    if not candidates:
        return []
    # Up to the name: what a prompt says after it would make all states alike.
    states = last(host.tokens([texts(c, expand=False)[0] for c in (concept, *candidates)])).float()
    cosines = torch.nn.functional.cosine_similarity(states[:1], states[1:])
    order = cosines.argsort(descending=True, stable=True)[:k].tolist()
    return [(candidates[i], float(cosines[i])) for i in order]


def alike(vectors: Mapping[str, Tensor], name: str) -> list[tuple[str, float]]:
    """The other names by how alike their pictures are to one name's, most alike first.

    Cosine of the names' mean vectors after the mean of all names is taken away: what all pictures share (a frame, a
    white ground) says nothing.

    Args:
        vectors: name -> (n, d) embeddings of its pictures, by an image encoder.

    Returns:
        (name, cosine in [-1, 1]).
    """
    means = torch.stack([v.float().mean(0) for v in vectors.values()])
    means = means - means.mean(0)
    names = list(vectors)
    cosines = torch.nn.functional.cosine_similarity(means[names.index(name)][None], means)
    found = [(n, float(c)) for n, c in zip(names, cosines, strict=True) if n != name]
    return sorted(found, key=lambda entry: -entry[1])
