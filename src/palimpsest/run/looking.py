"""How much an audit looks at, and what that will take and show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.printable import printable
from palimpsest.data.photos import Photos
from palimpsest.data.prompts import PromptFile, read_prompts
from palimpsest.probes import plan as planning
from palimpsest.probes.distance import FEWEST
from palimpsest.probes.evaluators import NOBODY, OWN, Judge, classes_of, itself, judge, judges_for
from palimpsest.probes.extractors import FEATURES
from palimpsest.probes.forecast import needed
from palimpsest.probes.groups import LISTED, Group, Taught
from palimpsest.probes.neighbours import PICTURES, Eye


@dataclass(frozen=True, kw_only=True)
class Look:
    """How much an audit looks at.

    Args:
        prompts: for each target; neighbours and unrelated concepts get two fifths each.
        seeds: pictures a prompt.
        steps, guidance: of sampling; None is the model's own default.
        batch: pictures that are drawn at once; as many as fill the device where not given.
        judges: folders of classifiers or CLIP models, or "nudenet", or the model itself ("own", or "own:100" for at
            most 100 forwards a picture). A drawn world's oracle comes first all the same; where there is none, and
            nobody is named, the model itself judges. "none" leaves both out.
        features: folders of networks that judge nothing and in whose features distances are measured.
        reference: a folder of pictures that those of the audit are compared with.
        sees: a change of so many points, in any one neighbour or unrelated concept, is to be seen 9 times of 10; seeds
            are raised to what that needs.
        stop_early: look four times, and stop drawing as soon as every answer is clear.
        prompts_files: of prompts of one's own (`data.prompts.read_prompts`), drawn besides. Rows that bring a seed are
            drawn once with it, the others with `seeds` seeds; a row's own guidance goes before `guidance`.
    """

    prompts: int = 20
    seeds: int = 3
    steps: int | None = None
    guidance: float | None = None
    batch: int | None = None
    judges: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    reference: str | Path | None = None
    sees: float | None = None
    stop_early: bool = False
    prompts_files: tuple[str | Path | PromptFile, ...] = ()


def plan(host: Any, asked: Request, look: Look | None = None, *, newcomers: Sequence[Taught] = ()) -> planning.Plan:
    """The pictures that an audit of a request draws; `Case.forecast` says what they can show and how long they take.

    Args:
        newcomers: targets that are to be taught.

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
            newcomers=newcomers,
        )

    found = with_seeds(look.seeds)
    if look.sees is not None:
        found = with_seeds(_enough(found, look))
    return replace(found, groups=(*found.groups, *_listed(look)))


def _enough(found: planning.Plan, look: Look) -> int:
    """Seeds a prompt with which the plan's other concepts show the change that is to be seen."""
    assert look.sees is not None
    if not 0 < look.sees <= 100:
        raise BadRequest(f"sees is {look.sees:g}; it must be points above 0, at most 100.")
    others = [g for g in found.groups if g.role in ("neighbour", "unrelated")] or list(found.groups)
    tests = max(sum(g.role == o.role for g in others) for o in others)
    pictures = needed(look.sees / 100, tests)
    return max(look.seeds, math.ceil(pictures / min(len(g.prompts) for g in others)))


def _listed(look: Look) -> list[Group]:
    """One group for each file of prompts.

    Raises:
        BadRequest: a file that cannot be read, or two of one name: the receipt calls them by it.
    """
    files = [f if isinstance(f, PromptFile) else read_prompts(f) for f in look.prompts_files]
    names = [file.path.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadRequest(f"Two files of prompts are called {printable(twice)}; give each a name of its own.")
    return [_group(file, look.seeds) for file in files]


def _group(file: PromptFile, seeds: int) -> Group:
    columns = {what: tuple(getattr(row, what) for row in file.rows) for what in ("seed", "guidance")}
    given = {what: values if any(v is not None for v in values) else () for what, values in columns.items()}
    left = f"; left out: {'; '.join(file.omitted())}" if file.left_out else ""
    return Group(
        role=LISTED,
        concept=None,
        prompts=tuple(row.prompt for row in file.rows),
        seeds=seeds,
        reason=f"prompts that the user brought, {len(file.rows):,} rows of a file with sha256 {file.sha256}{left}",
        file=printable(file.path.name),
        row_seeds=given["seed"],
        row_guidance=given["guidance"],
    )


def _eye(host: Any, asked: Request, look: Look) -> Eye:
    """Looks with the first judge; without any, with what the model's own autoencoder keeps of a picture."""
    own = judges_for(host) or [judge(source, (*asked.target, *asked.keep)) for source in _outside(look)[:1]]
    few = max(1, min(PICTURES, look.prompts * look.seeds // 10))  # a quick look stays quick
    embed = own[0].features if own else host.latents
    return Eye(host, embed, pictures=few, steps=look.steps, guidance=look.guidance)


def judges(host: Any, chosen: planning.Plan, look: Look | None) -> list[Judge]:
    """Who reads the pictures, told of every concept that is drawn; the first one decides what the receipt says.

    First the drawn world's oracle where there is one, then those that the look names, whoever comes from outside before
    the model itself, which judges without being named where nobody else does. Behind them stand networks that judge
    nothing but have features.

    Raises:
        BadRequest: a judge is named twice, or a reference without anybody who has features.
    """
    look = look or Look()
    nobody, told = NOBODY in look.judges, chosen.concepts
    oracle = [] if nobody else judges_for(host)
    outside = [judge(source, told, host) for source in _outside(look)]
    named = [source for source in look.judges if source.partition(":")[0] == OWN]
    mine = [itself(host, chosen) if source == OWN else judge(source, told, host) for source in named]
    if not (oracle or outside or mine or nobody):
        mine = judges_for(host, chosen)
    found = [*oracle, *outside, *mine, *(judge(f"{FEATURES}:{folder}") for folder in look.features)]
    if look.reference is not None and not found:
        raise BadRequest("A reference is compared in features of a network, and there is none: name one (--features).")
    names = [j.evaluator.name for j in found]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise BadRequest(f"The judge {twice[0]!r} is named twice; each reads the pictures once.")
    return found


def knowing(found: list[Judge], chosen: planning.Plan) -> list[str]:
    """What is to be said of targets that no judge knows, a line."""
    lost = [c.name for c in chosen.request.target if not any(classes_of(j.evaluator, c) for j in found)]
    way = "The model itself would judge: --judge own beside the others."
    if chosen.newcomers:
        way = "Likeness is, where a judge has features: name a classifier or a CLIP model with --judge FOLDER."
    return [f"No judge knows {', '.join(lost)}: presence will not be measured. {way}"] if lost else []


def reference(host: Any, chosen: planning.Plan, look: Look) -> Photos | None:
    """The pictures that a look compares with, as large as those that a plan draws.

    Raises:
        BadRequest: no folder of pictures, or too few.
    """
    if look.reference is None:
        return None
    size = chosen.sampling.over(host.defaults).size or getattr(host, "default_size", None)
    if size is None:
        raise BadRequest(f"{host.name} does not say how large its pictures are, so none can be compared with others.")
    return Photos(look.reference, size=size, least=FEWEST)


def _outside(look: Look) -> list[str]:
    """Judges that are named and are not the model itself."""
    return [s for s in look.judges if s != NOBODY and s.partition(":")[0] != OWN]
