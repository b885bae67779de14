"""Which concepts lie close to a target in a model's own eyes: by its text embeddings, then by its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.concept import Concept
from palimpsest.core.sampling import Sampling
from palimpsest.ops.neighbours import alike
from palimpsest.ops.prompts import asking

DRAWN = 12  # candidates, by text, whose pictures are looked at
PICTURES = 4  # of each
STEPS = 10  # of sampling; enough to see what a picture shows
_SEED = 30_000_000


@dataclass(frozen=True, kw_only=True)
class Near:
    """A concept close to a target.

    Args:
        text: cosine of the names' text states; rank: among `of` candidates.
        seen: cosine of the mean embeddings of pictures, less the mean of all drawn concepts; None where nothing was
            drawn. place: among the `drawn` candidates.
    """

    concept: Concept
    target: str
    text: float
    rank: int
    of: int
    seen: float | None = None
    place: int = 0
    drawn: int = 0

    @property
    def closeness(self) -> float:
        return self.text if self.seen is None else self.seen

    def reason(self, *, kept: bool) -> str:
        """For the reader, with every number that decided."""
        also = ", kept by the request" if kept else ""
        text = f"text embeddings (cosine {self.text:.2f}, rank {self.rank} of {self.of}"
        if self.seen is None:
            return f"close to {self.target} in the model's {text}{also})"
        seen = f"pictures (cosine {self.seen:.2f}, rank {self.place} of {self.drawn} drawn)"
        return f"close to {self.target} in the model's {seen} and {text}{also})"


class Eye:
    """Draws few pictures of concepts with the untouched model and embeds them; every concept once.

    All concepts are drawn with the same seeds, so that they differ by what is asked for.

    Args:
        host: anything with `sample`.
        embed: (n, 3, H, W) in [0, 1] -> (n, d).
        pictures: of each concept. steps, guidance: of sampling; None is the model's own default, `STEPS` at most.

    Cost: `pictures` short pictures a concept.
    """

    def __init__(
        self,
        host: Any,
        embed: Callable[[Tensor], Tensor],
        *,
        pictures: int = PICTURES,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        own = steps if steps is not None else host.defaults.steps
        self.host, self.embed, self.pictures, self.guidance = host, embed, pictures, guidance
        self.steps = min(STEPS, own or STEPS)
        self._seen: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, concepts: Sequence[Concept]) -> dict[str, Tensor]:
        """Name -> (pictures, d)."""
        new = [c for c in concepts if c.name not in self._seen]
        if new:
            prompts = [asking(c)[0] for c in new for _ in range(self.pictures)]
            seeds = [_SEED + i for _ in new for i in range(self.pictures)]
            how = Sampling(steps=self.steps, guidance=self.guidance)
            images = self.host.sample(prompts, seeds, how).clamp(0, 1).cpu()
            rows = self.embed(images).float().flatten(1).split(self.pictures)
            self._seen.update({c.name: row for c, row in zip(new, rows, strict=True)})
        return {c.name: self._seen[c.name] for c in concepts}


def neighbours(target: Concept, ranked: Sequence[tuple[Concept, float]], k: int, eye: Eye | None = None) -> list[Near]:
    """The k of a target's candidates that are closest to it, closest first.

    Without an eye by text alone. With one the `DRAWN` closest by text are drawn, and their pictures decide: names can
    be near in text that look nothing alike, and an edit leaks along both.

    Args:
        ranked: all candidates with their cosine, nearest first (`core.vocabulary.Vocabulary.nearest`).

    Cost: with an eye its pictures of `DRAWN` + 1 concepts.
    """
    found = [
        Near(concept=c, target=target.name, text=cosine, rank=rank, of=len(ranked))
        for rank, (c, cosine) in enumerate(ranked[: k if eye is None else max(k, DRAWN)], start=1)
    ]
    if eye is None or len(found) < 2:  # of two centred means one is minus the other
        return found[:k]
    vectors = eye([target, *(n.concept for n in found)])
    if not next(iter(vectors.values())).shape[1]:  # a judge without features
        return found[:k]
    by_name = {n.concept.name: n for n in found}
    return [
        Near(
            concept=by_name[name].concept,
            target=target.name,
            text=by_name[name].text,
            rank=by_name[name].rank,
            of=len(ranked),
            seen=cosine,
            place=place,
            drawn=len(found),
        )
        for place, (name, cosine) in enumerate(alike(vectors, target.name)[:k], start=1)
    ]
