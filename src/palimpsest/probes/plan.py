"""The plan of an audit: which pictures are drawn, for which concept, with which seed. Nothing is drawn here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Annotated, Any, Literal

import torch

from palimpsest.core import declared
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Denoiser, Vocabulary
from palimpsest.core.sampling import Sampling
from palimpsest.ops import statistics
from palimpsest.ops.listed import same
from palimpsest.ops.prompts import asking
from palimpsest.probes.attempt import Budget
from palimpsest.probes.groups import LISTED, ROLES, Group, Merged, Role, Scope, Shot, Taught
from palimpsest.probes.lexicon import vocabulary
from palimpsest.probes.neighbours import Eye, Near
from palimpsest.probes.neighbours import neighbours as neighbours_of


@dataclass(frozen=True, kw_only=True)
class Others:
    """A folder of pictures that others made, which those of an audit are compared with.

    Args:
        name: of the folder. pictures: how many are read, of `found`. size: side to which they are resized.
        sha256: over their files.
    """

    name: str
    pictures: Annotated[int, declared.Within(least=1)]
    found: Annotated[int, declared.Within(least=1)]
    size: Annotated[int, declared.Within(least=1)]
    sha256: declared.Sha256


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All pictures of one audit. Every picture has a seed of its own, so that pictures are independent; only rows of a
    user's file of prompts may bring seeds that others have as well.

    Args:
        request: what the edit was asked to do.
        groups: who is asked for.
        first_seed: pictures count their seeds up from here.
        steps, guidance, size, negative: how they are sampled; None is the model's own default.
        looks: how often an audit that stops early may look at its readings; 1: only at the end.
        look: which of them this is. Look k of K has k/K of every group's pictures, seed by seed over all prompts, each
            with the prompt and seed that it has at the last look.
        aim: where presence of the target was meant to go: "away" (erased) or "in" (taught).
        newcomers: targets that only the edited model was taught; others are asked for something else in their place.
        resurfacing: the budget at which the targets are also to be brought back; None: not asked for.
        reference: pictures that its own are compared with; None: none.
        merged: the changes that the edited model was merged of; () where it was not.
    """

    request: Request
    groups: tuple[Group, ...]
    first_seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    negative: str = ""
    look: int = field(default=1, repr=False)
    looks: int = field(default=1, repr=False)
    aim: Literal["away", "in"] = "away"
    newcomers: tuple[Taught, ...] = ()
    resurfacing: Budget | None = None
    reference: Others | None = None
    merged: tuple[Merged, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.look <= self.looks:
            raise BadRequest(f"look {self.look} of {self.looks} does not exist; looks count from 1.")
        if not self.shots:
            raise BadRequest("The plan has no picture to draw; give at least one prompt and one seed.")

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """Those that are drawn and that the untouched model knows, in order: what a judge may be told of."""
        new = {n.name for n in self.newcomers}
        return tuple(g.concept for g in self.groups if g.concept is not None and g.concept.name not in new)

    @property
    def sampling(self) -> Sampling:
        """How its pictures are sampled."""
        return Sampling(steps=self.steps, guidance=self.guidance, size=self.size, negative=self.negative)

    @cached_property
    def _all(self) -> tuple[tuple[Shot, bool], ...]:
        """Every picture of the last look, and whether this look has it."""
        rows = []
        for g, group in enumerate(self.groups):
            now = math.ceil(len(group.pictures) * self.look / self.looks)
            rows += [(g, *picture, turn < now) for *picture, turn in group.pictures]
        return tuple(
            (Shot(group=g, prompt=p, seed=self.first_seed + i if seed is None else seed, guidance=scale), drawn)
            for i, (g, p, seed, scale, drawn) in enumerate(rows)
        )

    @cached_property
    def shots(self) -> tuple[Shot, ...]:
        """Drawn by both the untouched and the edited model."""
        return tuple(shot for shot, drawn in self._all if drawn)

    @cached_property
    def _twins(self) -> tuple[tuple[int, Shot], ...]:
        """(row of `shots`, the shot under another seed): the first picture of each prompt of a concept, every second
        one of other groups, where many pictures are of one prompt or every one is of another; half tell the noise."""
        start: dict[int, int] = {}
        firsts = []
        for i, (shot, _) in enumerate(self._all):
            group = self.groups[shot.group]
            if (i - start.setdefault(shot.group, i)) % (2 if group.concept is None else group.seeds) == 0:
                firsts.append(i)
        row_of = dict(zip((i for i, (_, drawn) in enumerate(self._all) if drawn), range(len(self._all)), strict=False))
        taken = {seed for group in self.groups for seed in group.row_seeds}
        free = (seed for seed in count(self.first_seed + len(self._all)) if seed not in taken)
        return tuple(
            (row_of[i], replace(self._all[i][0], seed=seed))
            for i, seed in zip(firsts, free, strict=False)
            if i in row_of
        )

    @cached_property
    def twins(self) -> tuple[int, ...]:
        """Rows of `shots` that the untouched model draws once more under another seed."""
        return tuple(row for row, _ in self._twins)

    @cached_property
    def twin_shots(self) -> tuple[Shot, ...]:
        return tuple(shot for _, shot in self._twins)

    def asked(self, which: str) -> tuple[Shot, ...]:
        """The shots of a set (before, after, other, oracle) with the prompts that its model is asked."""
        shots = self.twin_shots if which == "other" else self.shots
        for newcomer in self.newcomers:
            shots = tuple(replace(shot, prompt=newcomer.said(shot.prompt, which)) for shot in shots)
        return shots

    def rows(self, *, role: str | None = None, group: int | None = None) -> torch.Tensor:
        """(k,) int64 rows of `shots` of a role or of a group."""
        chosen = [
            i
            for i, s in enumerate(self.shots)
            if (group is None or s.group == group) and (role is None or self.groups[s.group].role == role)
        ]
        return torch.tensor(chosen, dtype=torch.long)

    def scopes(self) -> list[Scope]:
        """Every role that has pictures, then every file of prompts."""
        found = [Scope(role, "", self.rows(role=role), self.twin_rows(role=role)) for role in ROLES]
        files = [g for g, group in enumerate(self.groups) if group.role == LISTED]
        found += [Scope(LISTED, self.groups[g].name, self.rows(group=g), self.twin_rows(group=g)) for g in files]
        return [scope for scope in found if len(scope.rows)]

    def taught(self) -> list[tuple[Taught, int, range]]:
        """Each newcomer, the group that asks for it, and its rows among the references."""
        groups = {g.name: i for i, g in enumerate(self.groups) if g.role == "target"}
        starts = [sum(n.references for n in self.newcomers[:i]) for i in range(len(self.newcomers))]
        return [
            (n, groups[n.name], range(start, start + n.references))
            for n, start in zip(self.newcomers, starts, strict=True)
        ]

    def alone(self) -> list[tuple[Merged, list[int]]]:
        """Each of the merged changes, and the groups that ask for what it is about."""
        groups = {g.name: i for i, g in enumerate(self.groups) if g.role == "target"}
        return [(part, [groups[name] for name in part.about if name in groups]) for part in self.merged]

    def twin_rows(self, *, role: str | None = None, group: int | None = None) -> torch.Tensor:
        """(k,) int64 rows of `twins` whose picture belongs to a role or to a group."""
        chosen = set(self.rows(role=role, group=group).tolist())
        return torch.tensor([i for i, row in enumerate(self.twins) if row in chosen], dtype=torch.long)

    def how(self, shot: Shot) -> Sampling:
        """How one of its pictures is sampled."""
        return self.sampling if shot.guidance is None else replace(self.sampling, guidance=shot.guidance)

    def pictures(self, sets: int = 2) -> int:
        """How many pictures are drawn in all."""
        return sets * len(self.shots) + len(self.twins)

    def describe(self) -> str:
        """What will be drawn, and what it can show, in plain words."""
        n, floor = len(self.shots), len(self.twins)
        lines = [f"{self.pictures()} pictures: {n} before, {n} after, {floor} for the noise floor"]
        for group in self.groups:
            tests = sum(g.role == group.role for g in self.groups)
            n = len(group.pictures)
            sees = f"shows a change of {100 * statistics.detectable(n, tests=tests):.0f} points" if group.name else ""
            lines.append(f"  {group.role:10} {group.name or '(no prompt)':20} {n:4} pictures  {sees}".rstrip())
            lines[-1] += f"; {group.reason}" if group.name else f"  {group.reason}"
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `from_plain` is the inverse."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Plan:
        """Raises Damaged where a field is missing, unknown or of another type."""
        return declared.fitted(dict(plain), Plan, "the plan")


def batches(shots: Sequence[Shot], size: int) -> list[list[Shot]]:
    """Shots that are drawn together: at most `size`, all with the same guidance."""
    apart: dict[float | None, list[Shot]] = {}
    for shot in shots:
        apart.setdefault(shot.guidance, []).append(shot)
    return [alike[i : i + size] for alike in apart.values() for i in range(0, len(alike), size)]


def plan(
    host: Denoiser,
    request: Request,
    *,
    prompts_per_concept: int = 20,
    seeds: int = 3,
    neighbours: int = 4,
    unrelated: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    first_seed: int = 0,
    eye: Eye | None = None,
    newcomers: Sequence[Taught] = (),
) -> Plan:
    """Chooses concepts and prompts for an audit of a request.

    Targets get all prompts, other concepts two fifths of them, and the empty prompt as many pictures as half a
    neighbour. Neighbours are those of the model's own text embeddings and, with an eye, of its pictures, whether the
    request keeps them or not (a method that was told to keep its test set proves little); half as many further kept
    concepts are added.

    Args:
        host: its text encoder finds the neighbours; nothing is drawn but by the eye. Prompts are of the words that it
            knows; of others templates ask for them.
        prompts_per_concept: for each target.
        seeds: pictures a prompt.
        neighbours, unrelated: how many concepts.
        steps, guidance, size: of sampling; None is the model's own default.
        eye: looks at pictures of the candidates; None: text alone decides.
        newcomers: targets that are to be taught. Neighbours are those of what a model that knew them calls them, else
            of their class, whose own pictures are drawn as well, from the same prompts.

    Raises:
        BadRequest: nothing to draw, or a world does not have enough contexts.
    """
    if prompts_per_concept < 1 or seeds < 1:
        raise BadRequest(f"{prompts_per_concept} prompts and {seeds} seeds draw nothing; give at least 1 of each.")
    words, known = vocabulary(host), _known(request, newcomers)
    near = _neighbours(host, known, words, neighbours, eye)
    far = _unrelated(known, words, unrelated, {c.name.casefold() for c, _ in near})
    avoid = frozenset(c.name for c in known.target)
    found: list[tuple[Role, Concept, str, int]] = [
        *(("target", c, "asked for", prompts_per_concept) for c in request.target),
        *(("neighbour", c, why, max(2, prompts_per_concept * 2 // 5)) for c, why in near),
        *(("unrelated", c, why, max(2, prompts_per_concept * 2 // 5)) for c, why in far),
    ]
    groups = [
        Group(role=role, concept=c, prompts=_prompts(words, c, n, avoid, i), seeds=seeds, reason=why)
        for i, (role, c, why, n) in enumerate(found)
    ]
    groups[len(request.target) : len(request.target)] = [
        _class(n, group, prompts_per_concept) for n, group in zip(newcomers, groups, strict=False)
    ]
    empty = max(4, prompts_per_concept * 2 // 5 * seeds // 2)
    groups.append(Group(role="empty", concept=None, prompts=("",), seeds=empty, reason="what the model draws unasked"))
    own = (host.defaults.steps, host.defaults.guidance)
    return Plan(
        request=request,
        groups=tuple(groups),
        first_seed=first_seed,
        steps=steps if steps is not None else own[0],
        guidance=guidance if guidance is not None else own[1],
        size=size,
        aim="in" if newcomers else "away",
        newcomers=tuple(newcomers),
    )


def _known(request: Request, newcomers: Sequence[Taught]) -> Request:
    """The request with newcomers by what is known of them: their names in a model that knew them, or their class."""
    names = {n.name: n.known or n.like for n in newcomers}
    known = {names.get(c.name, c.name): c for c in request.target}
    keep = tuple(c for c in request.keep if c.name not in known)
    return Request(target=tuple(replace(c, name=name, labels=()) for name, c in known.items()), keep=keep)


def _class(newcomer: Taught, target: Group, prompts: int) -> Group:
    """Pictures of a newcomer's class: of the target's own prompts, evenly chosen, with the class in its place."""
    assert target.concept is not None
    said = list(dict.fromkeys(newcomer.said(p, "before") for p in target.prompts))
    n = min(len(said), max(2, prompts * 2 // 5))
    return Group(
        role="class",
        concept=replace(target.concept, name=newcomer.like, prompts=(), labels=()),
        prompts=tuple(said[i * len(said) // n] for i in range(n)),
        seeds=target.seeds,
        reason=f"what {newcomer.name} is one of",
    )


def _neighbours(
    host: Denoiser, request: Request, words: Vocabulary, k: int, eye: Eye | None
) -> list[tuple[Concept, str]]:
    """Concepts near the targets, nearest first, each with its reason; then those that the request keeps."""
    taken = frozenset(c.name.casefold() for c in request.target)
    ranked: dict[str, Near] = {}
    for target in (t for t in request.target if t.name in words):
        for near in neighbours_of(target, words.nearest(host, target, avoid=taken), k, eye):
            name = near.concept.name
            if name not in ranked or ranked[name].closeness < near.closeness:
                ranked[name] = near
    found: dict[str, tuple[Concept, str]] = {}  # two forms of a name that is kept are one concept: the nearer stays
    for near in sorted(ranked.values(), key=lambda near: -near.closeness)[:k]:
        concept, kept = _as_kept(near.concept, request)
        found.setdefault(concept.name.casefold(), (concept, near.reason(kept=kept)))
    others = [(c, "kept by the request") for c in request.keep if c.name.casefold() not in found]
    return [*found.values(), *others[: (k + 1) // 2]]


def _as_kept(concept: Concept, request: Request) -> tuple[Concept, bool]:
    """The concept as the request keeps it, in whatever form of its name, and whether it does."""
    mine = [c for c in request.keep if c.name.casefold() == concept.name.casefold()]
    mine += [c for c in request.keep if same(c.name, concept.name)]
    return (mine[0], True) if mine else (concept, False)


def _unrelated(request: Request, words: Vocabulary, k: int, near: set[str]) -> list[tuple[Concept, str]]:
    """Concepts of other kinds than the targets: of each other kind in turn."""
    taken = near | {c.name.casefold() for c in (*request.target, *request.keep)}
    return list(words.others(request.target, avoid=frozenset(taken)))[:k]


def _prompts(words: Vocabulary, concept: Concept, n: int, avoid: frozenset[str], salt: int) -> tuple[str, ...]:
    if concept.name not in words:
        return tuple(dict.fromkeys(asking(concept)))[:n]
    generator = torch.Generator().manual_seed(1009 * n + salt)
    return tuple(words.prompts(concept, n, generator=generator, avoid=avoid))
