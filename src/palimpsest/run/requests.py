"""Who is meant: names, lists and files of concepts as requests about a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.core.host import Denoiser
from palimpsest.data.concepts import Listed, is_list, read_concepts
from palimpsest.ops.listed import list_of
from palimpsest.probes.lexicon import Lexicon, vocabulary

NEIGHBOURS = 8  # kept by default; more than an audit looks at, so that it also looks at what was not kept
NONE = "none"  # as what is kept: nothing


def concepts(host: Any, names: str | Path | Sequence[str | Concept], kind: Kind | None = None) -> tuple[Concept, ...]:
    """Names, with commas between, as a list or in a CSV file, as concepts.

    Args:
        kind: of all of them. None: as the model's vocabulary has them (`probes.lexicon.vocabulary`); drawn worlds know
            the kinds of their words whatever is said here.

    Raises:
        BadRequest: a name that the model's world does not have, or a file that is no list (`data.concepts`).
    """
    if isinstance(names, Path) or is_list(names):
        return tuple(_listed(host, row, kind) for row in read_concepts(str(names)))
    listed = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else list(names)
    words = vocabulary(host)
    return tuple(n if isinstance(n, Concept) else words.concept(n, kind) for n in listed)


def _listed(host: Any, row: Listed, kind: Kind | None) -> Concept:
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
    kind: Kind | None = None,
) -> Request:
    """A request about a model; where nothing is kept by name, the model's nearest neighbours of the target are.

    Targets and kept concepts are names with commas between, lists, or CSV files with the columns name, kind, prompts,
    labels and toward (all but the first optional); a file's own `toward` serves where none is given here.

    Neighbours are ranked by the cosine of the model's own text states, among words of the target's kind: the world's
    for models of drawn worlds, for others listed names and words of the model's tokenizers (`probes.lexicon`).

    Args:
        keep: "none" keeps nothing.
        kind: of targets, kept concepts and replacements; see `concepts`.
    """
    if not toward and (isinstance(target, Path) or is_list(target)):
        toward = [row.toward for row in read_concepts(str(target)) if row.toward]
    nothing = keeps_nothing(keep)
    asked = Request(
        target=concepts(host, target, kind),
        keep=() if nothing else concepts(host, keep, kind),
        toward=concepts(host, toward, kind),
    )
    if nothing or asked.keep or not isinstance(host, Denoiser):
        return asked
    words = vocabulary(host)
    taken = frozenset(c.name.casefold() for c in (*asked.target, *asked.toward))
    found: dict[str, Concept] = {}
    for goal in asked.target:
        found |= {near.name: near for near, _ in words.nearest(host, goal, avoid=taken)[:NEIGHBOURS]}
    return asked.keeping(found.values())


def keeps_nothing(keep: object) -> bool:
    """Whether what a user gave as kept says that nothing is."""
    return isinstance(keep, str) and keep.strip().casefold() == NONE


def told(host: Any, asked: Request, *, keep: object = "", kind: Kind | None = None) -> list[str]:
    """What a request took from the model's vocabulary, in words: kinds that were not given, and what is kept.

    Args:
        keep, kind: as the user gave them.
    """
    lines = []
    if kind is None and isinstance(vocabulary(host), Lexicon):
        known = [(c, found) for c in asked.target if (found := list_of(c.name)) and found.kind == c.kind]
        lines = [f"{c.name} is taken for {found.one} (kind {c.kind}); --kind says otherwise." for c, found in known]
    if keeps_nothing(keep):
        return [*lines, f"Nothing is kept (--keep {NONE})."]
    if keep:
        return lines
    if asked.keep:
        return [*lines, f"Keeping the model's own neighbours: {', '.join(c.name for c in asked.keep)}."]
    why = "has no tokenizer that tells its words, so nobody knows what is near the target"
    return [*lines, f"Nothing is kept: {host.name} {why}. Name what must stay with --keep."]
