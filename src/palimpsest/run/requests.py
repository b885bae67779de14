"""Who is meant: names, lists and files of concepts as requests about a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.core.host import Denoiser
from palimpsest.data.concepts import Listed, is_list, read_concepts
from palimpsest.ops.neighbours import nearest
from palimpsest.worlds import concepts as words

NEIGHBOURS = 8  # kept by default; more than an audit looks at, so that it also looks at what was not kept


def concepts(host: Any, names: str | Path | Sequence[str | Concept], kind: Kind = "object") -> tuple[Concept, ...]:
    """Names, with commas between, as a list or in a CSV file, as concepts; a drawn world's model knows their kind.

    Raises:
        BadRequest: a name that the model's world does not have, or a file that is no list (`data.concepts`).
    """
    if isinstance(names, Path) or is_list(names):
        return tuple(_listed(host, row, kind) for row in read_concepts(str(names)))
    listed = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else list(names)
    world = words.world_of(getattr(host, "folder", None))
    return tuple(
        n if isinstance(n, Concept) else words.concept(world, n) if world is not None else Concept(name=n, kind=kind)
        for n in listed
    )


def _listed(host: Any, row: Listed, kind: Kind) -> Concept:
    """What a file says of a concept goes before what the world knows and what holds for all."""
    known = concepts(host, [row.name], kind)[0]
    return replace(
        known,
        kind=row.kind or known.kind,
        prompts=row.prompts or known.prompts,
        labels=row.labels or known.labels,
    )


def request(
    host: Any,
    target: str | Path | Sequence[str | Concept],
    *,
    keep: str | Path | Sequence[str | Concept] = (),
    toward: str | Sequence[str | Concept] = (),
    kind: Kind = "object",
) -> Request:
    """A request about a model; where nothing is kept by name, the model's nearest neighbours of the target are.

    Targets and kept concepts are names with commas between, lists, or CSV files with the columns name, kind, prompts,
    labels and toward (all but the first optional); a file's own `toward` serves where none is given here.

    Neighbours are ranked by the cosine of the model's own text states. Models of drawn worlds choose among the
    world's words of the same kind; for other models there is no such list, and nothing is kept unless named.
    """
    if not toward and (isinstance(target, Path) or is_list(target)):
        toward = [row.toward for row in read_concepts(str(target)) if row.toward]
    asked = Request(
        target=concepts(host, target, kind),
        keep=concepts(host, keep, kind),
        toward=concepts(host, toward, kind),
    )
    world = words.world_of(getattr(host, "folder", None))
    if asked.keep or world is None or not isinstance(host, Denoiser):
        return asked
    taken = {c.name for c in (*asked.target, *asked.toward)}
    found: dict[str, Concept] = {}
    for goal in asked.target:
        siblings = [words.concept(world, w) for w in words.siblings(world, goal.name) if w not in taken]
        found |= {near.name: near for near, _ in nearest(host, goal, siblings, NEIGHBOURS)}
    return asked.keeping(found.values())
