"""How much an audit looks at, and what that will take and show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.probes import plan as planning
from palimpsest.probes.evaluators import judge, judges_for
from palimpsest.probes.forecast import needed
from palimpsest.probes.neighbours import PICTURES, Eye


@dataclass(frozen=True, kw_only=True)
class Look:
    """How much an audit looks at.

    Args:
        prompts: for each target; neighbours and unrelated concepts get two fifths each.
        seeds: pictures a prompt.
        steps, guidance: of sampling; None is the model's own default.
        judges: folders of classifiers or CLIP models, or "nudenet"; a drawn world's oracle is always there.
        sees: a change of so many points, in any one neighbour or unrelated concept, is to be seen 9 times of 10; seeds
            are raised to what that needs.
        stop_early: look four times, and stop drawing as soon as every answer is clear.
    """

    prompts: int = 20
    seeds: int = 3
    steps: int | None = None
    guidance: float | None = None
    judges: tuple[str, ...] = ()
    sees: float | None = None
    stop_early: bool = False


def plan(host: Any, asked: Request, look: Look | None = None) -> planning.Plan:
    """The pictures that an audit of a request draws; `Case.forecast` says what they can show and how long they take.

    Cost: some short pictures of the nearest concepts by text, whose likeness chooses the neighbours (`probes.
    neighbours`): about a thirtieth of what a default audit draws.
    """
    look = look or Look()
    eye = _eye(host, asked, look)

    def with_seeds(seeds: int) -> planning.Plan:
        return planning.plan(
            host,
            asked,
            prompts_per_concept=look.prompts,
            seeds=seeds,
            steps=look.steps,
            guidance=look.guidance,
            eye=eye,
        )

    found = with_seeds(look.seeds)
    if look.sees is None:
        return found
    if not 0 < look.sees <= 100:
        raise BadRequest(f"sees is {look.sees:g}; it must be points above 0, at most 100.")
    others = [g for g in found.groups if g.role in ("neighbour", "unrelated")] or list(found.groups)
    tests = max(sum(g.role == o.role for g in others) for o in others)
    pictures = needed(look.sees / 100, tests)
    return with_seeds(max(look.seeds, math.ceil(pictures / min(len(g.prompts) for g in others))))


def _eye(host: Any, asked: Request, look: Look) -> Eye:
    """Looks with the first judge; without any, with what the model's own autoencoder keeps of a picture."""
    own = judges_for(host) or [judge(source, asked.target) for source in look.judges[:1]]
    few = max(1, min(PICTURES, look.prompts * look.seeds // 10))  # a quick look stays quick
    embed = own[0].features if own else host.latents
    return Eye(host, embed, pictures=few, steps=look.steps, guidance=look.guidance)


def judges(host: Any, chosen: planning.Plan, look: Look | None) -> list[Any]:
    """Who reads the pictures: the drawn world's oracle where there is one, and those that the look names, told of
    every concept that is drawn."""
    told = [g.concept for g in chosen.groups if g.concept is not None]
    return [*judges_for(host), *(judge(source, told) for source in (look or Look()).judges)]
