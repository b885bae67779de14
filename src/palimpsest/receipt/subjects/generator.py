"""Receipts about a model that draws pictures of prompts: is the concept there, and what happened to the others?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.data.photos import Photos
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval
from palimpsest.probes.attempt import Budget
from palimpsest.probes.closeness import Closeness
from palimpsest.probes.collapse import Collapse
from palimpsest.probes.crew import Crew
from palimpsest.probes.distance import Distance
from palimpsest.probes.drawn import REFERENCE, REFERENCES, Drawn, collect
from palimpsest.probes.drift import Drift
from palimpsest.probes.evaluators import Judge, judge, judges_for
from palimpsest.probes.evidence import Probe, unkept
from palimpsest.probes.gallery import Gallery, key
from palimpsest.probes.groups import LISTED, Group
from palimpsest.probes.judging import Agreement, JudgeErrors
from palimpsest.probes.leakage import Leakage
from palimpsest.probes.matching import Matching
from palimpsest.probes.oracle_gap import OracleGap, OraclePresence
from palimpsest.probes.plan import Plan, plan
from palimpsest.probes.presence import Presence
from palimpsest.probes.reference import Reference, measured, others
from palimpsest.probes.resurfacing import NAMES, resurfacing
from palimpsest.probes.stopping import collect_until_clear
from palimpsest.probes.weights import Weights
from palimpsest.receipt import generator_page as page
from palimpsest.receipt import generator_words, resurfaced
from palimpsest.receipt.document import evaluators_of
from palimpsest.receipt.finding import Finding, differs, same
from palimpsest.receipt.judges import loaded_again
from palimpsest.receipt.subject import Again, Pair, Rates, Section, Subject

SAMPLE = 12  # rows that are drawn again


@dataclass(frozen=True, kw_only=True)
class Generator(Subject):
    """A model that draws.

    Args:
        plan: which pictures to draw; by default `probes.plan.plan(before, request)`.
        judges: who reads the pictures; by default the oracle of the drawn world that the model knows, else the
            untouched model itself.
        oracle: a model that never saw the target, to compare with.
        reference: a folder of pictures to compare with.
        batch: pictures that are drawn at once; the model's choice where not given.
        stop_early: look four times, and stop drawing as soon as every answer is clear.
        resurfacing: also try to bring the targets back, at this budget.
        crew: the processes that draw and read; by default this one alone.
    """

    plan: Plan | None = None
    judges: Sequence[Judge] | None = None
    oracle: Any = None
    reference: Photos | None = None
    batch: int | None = None
    stop_early: bool = False
    resurfacing: Budget | None = None
    crew: Crew | None = None

    name: ClassVar[str] = "generator"
    counted: ClassVar[str] = "pictures"
    probes: ClassVar[tuple[Probe, ...]] = (
        Presence(), JudgeErrors(), Agreement(), Leakage(), Drift(), Distance(), Reference(), Matching(), Collapse(),
        OracleGap(), OraclePresence(), Closeness(), Weights(),
    )  # fmt: skip
    attempts: ClassVar[tuple[str, ...]] = NAMES
    roles: ClassVar[Mapping[str, tuple[str, str]]] = page.ROLES
    sections: ClassVar[tuple[Section, ...]] = page.SECTIONS
    terms: ClassVar[tuple[tuple[str, str], ...]] = page.TERMS
    compared: ClassVar[Mapping[str, str]] = page.COMPARED

    def collect(
        self, before: Any, after: Any, request: Request, *, folder: Path | None, resume: bool, trace: Trace
    ) -> Drawn:
        about = self.settled(before, request)
        assert about.plan is not None
        chosen, judges = about.plan, list(about.judges or ())
        gallery = Gallery(folder, key(before, after, chosen, self.oracle), resume=resume)
        others = measured(self.reference, judges)  # first: a broken picture is told before hours of drawing
        draw = collect_until_clear if self.stop_early else collect
        found = draw(
            before, after, chosen, judges, oracle=self.oracle, batch=self.batch, gallery=gallery, trace=trace,
            crew=self.crew,
        )  # fmt: skip
        return replace(found, measures={**found.measures, **others})

    def settled(self, before: Any, request: Request) -> Generator:
        chosen = self.plan or plan(before, request)
        chosen = replace(chosen, resurfacing=self.resurfacing, reference=others(self.reference))
        judges = judges_for(before, chosen) if self.judges is None else self.judges
        return replace(self, plan=chosen, judges=tuple(judges))

    def sources(self, before: Any) -> dict[str, str]:
        return {j.evaluator.name: j.source for j in self.judges or ()}

    def beyond(self, before: Any, after: Any, request: Request, trace: Trace) -> list[Reading]:
        if self.resurfacing is None:
            return []
        judges = [j for j in self.settled(before, request).judges or () if j.evaluator.classes]
        return resurfacing(before, after, request, self.resurfacing, judges=judges, oracle=self.oracle, trace=trace)

    @classmethod
    def kept(cls, data: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Drawn:
        evaluators = evaluators_of(data)
        measures = {**unkept(data["measures"], evaluators), **vectors}
        chosen = Plan.from_plain({**data["plan"], "request": data["request"]})
        dues = cls.counts(chosen)
        for path, rows in measures.items():
            due = dues.get(path.partition("/")[0], len(chosen.shots))
            if len(rows) != due:
                raise ValueError(f"{path} has {len(rows)} rows, the plan {due} pictures")
        return Drawn(plan=chosen, measures=measures, evaluators=evaluators, cost=data["run"]["audit"])

    @classmethod
    def counts(cls, plan: Plan) -> dict[str, int]:
        """How many rows the sets have that have not one for each of the plan's pictures."""
        brought = 0 if plan.reference is None else plan.reference.pictures
        taught = sum(n.references for n in plan.newcomers)
        return {"other": len(plan.twin_shots), REFERENCE: brought, REFERENCES: taught}

    def again(self, kept: Drawn, before: Any, after: Any, how: str, trace: Trace) -> Again:
        """Cost: 12 pictures before and after, or the whole audit again."""
        judges, brought = list(self.judges or ()), self.reference
        if how == "all":
            evidence = collect(before, after, kept.plan, judges, oracle=self.oracle, trace=trace, crew=self.crew)
            evidence = replace(evidence, measures={**evidence.measures, **measured(brought, judges)})
            lacking = [
                *(["pictures of the model that never saw it: give that model"] if _lacks(kept, self.oracle) else []),
                *(["features of the reference: give its pictures"] if kept.plan.reference and not brought else []),
            ]
            return Again(
                evidence=evidence, readings=not lacking, left="; ".join(lacking), found=tuple(_others(kept, brought))
            )
        count = len(kept.plan.shots)
        rows = sorted({i * count // SAMPLE for i in range(SAMPLE)})
        evidence = collect(before, after, kept.plan, judges, rows=rows, trace=trace)
        return Again(evidence=evidence, rows={"before": rows, "after": rows})

    def ready(self, data: Mapping[str, Any], kept: Drawn, before: Any) -> tuple[Generator | None, list[Finding]]:
        used, found = loaded_again(
            kept.evaluators,
            data["evaluators"],
            self.judges or (),
            lambda source: judge(source, kept.plan.concepts, before),
        )
        return (None if used is None else replace(self, judges=used)), found

    @classmethod
    def words(cls, readings: Sequence[Reading], request: Request, evidence: Drawn) -> tuple[str, list[dict[str, str]]]:
        names = [c.name for c in request.target]
        return generator_words.headline(readings, names, evidence.plan), generator_words.sentences(
            readings, names, evidence.plan
        )

    @classmethod
    def figures(cls, readings: Sequence[Reading]) -> list[tuple[str, Reading]]:
        """Presence of each target (at most 3), then of neighbours and of unrelated concepts together."""
        presence = [r for r in readings if r.name == "presence"]
        chosen = [(r.concept, r) for r in presence if r.role == "target"][:3]
        for role, called in (("neighbour", "neighbours"), ("unrelated", "unrelated")):
            of_role = [r for r in presence if r.role == role]
            chosen += [(r.concept or called, r) for r in [r for r in of_role if not r.concept][:1] or of_role[:1]]
        return chosen

    @classmethod
    def facts(cls, evidence: Drawn) -> list[tuple[str, str]]:
        how = evidence.plan
        guidance = "default" if how.guidance is None else how.guidance
        size = f", {how.size} px" if how.size else ""
        text = f"{how.steps or 'default'} steps, guidance {guidance}{size}; seeds from {how.first_seed}"
        files = [(f"Prompts of {g.name}", _brought(g)) for g in how.groups if g.role == LISTED]
        if (photos := how.reference) is not None:
            some = f"{photos.pictures:,} of {photos.found:,}" if photos.pictures < photos.found else f"{photos.found:,}"
            files.append(("Reference", f"{some} pictures of {photos.name}, cut and resized to {photos.size} px"))
        return [("Sampling", f"{text}, one for each picture"), *files]

    @classmethod
    def prints(cls, evidence: Drawn) -> list[tuple[str, str, str]]:
        photos = evidence.plan.reference
        return [] if photos is None else [("reference pictures", photos.name, photos.sha256)]

    @classmethod
    def wanted(cls, reading: Reading, evidence: Drawn) -> bool:
        if reading.name == "collapse":
            return False
        up = reading.value > (reading.before or 0.0)
        if reading.role == LISTED and reading.name != "presence":
            return False
        return reading.name != "presence" or up == (evidence.plan.aim == "in")

    @classmethod
    def pairs(cls, evidence: Drawn) -> list[Pair]:
        plan = evidence.plan
        seen: dict[int, list[tuple[bool, bool]]] = {}
        targets: dict[tuple[int, str], list[int]] = {}  # of a file's prompts: the classes of all targets
        for g, name, classes, _ in evidence.listed():
            targets.setdefault((g, name), []).extend(classes)
        for g, name, classes in [*evidence.asked(), *((*of, classes) for of, classes in targets.items())]:
            if g not in seen:
                bits = [evidence.present(name, which, classes).tolist() for which in ("before", "after")]
                seen[g] = list(zip(*bits, strict=True))
        return [
            Pair(
                row=row,
                role=plan.groups[shot.group].role,
                name=plan.groups[shot.group].name,
                reason=plan.groups[shot.group].reason,
                prompt=shot.prompt,
                seed=shot.seed,
                judged=seen[shot.group][row] if shot.group in seen else None,
            )
            for row, shot in enumerate(plan.shots)
        ]

    @classmethod
    def rates(cls, evidence: Drawn) -> Rates:
        """Rates pooled over all concepts of a role, each by the first judge that knows it."""
        target = _bits(evidence, "target")
        if target is None:
            raise BadRequest("no judge knows the target, so there is nothing to compare")
        before, after = (statistics.wilson(int(bits.sum()), len(bits)) for bits in target)
        near, far = _moved(evidence, "neighbour"), _moved(evidence, "unrelated")
        return Rates(target=after, before=before, neighbours=near, unrelated=far, n=len(target[0]))

    @classmethod
    def checks(cls, data: Mapping[str, Any], evidence: Drawn, folder: Path) -> list[Finding]:
        return resurfaced.check(data, evidence)


def _lacks(kept: Drawn, oracle: Any) -> bool:
    """Whether a receipt has pictures of a model that never saw the target, and that is not given."""
    return oracle is None and any(key.startswith("oracle/") for key in kept.measures)


def _others(kept: Drawn, brought: Photos | None) -> list[Finding]:
    """Whether the reference pictures that are given are those of the receipt."""
    stated, now = kept.plan.reference, others(brought)
    if now is None or stated == now:
        return [] if now is None else [same("reference pictures", now.sha256[:12], "plan")]
    said = "none" if stated is None else f"{stated.pictures} of {stated.name} ({stated.sha256[:12]})"
    text = f"the receipt has {said}, given are {now.pictures} of {now.name} ({now.sha256[:12]}), {now.size} px"
    return [differs("reference pictures", text, "plan")]


def _brought(group: Group) -> str:
    """What a file of prompts gave, in words."""
    given = {"seed": group.row_seeds, "guidance": group.row_guidance}
    counts = [f"{sum(v is not None for v in values):,} with a {what} of their own" for what, values in given.items()]
    return f"{group.reason}; {', '.join(counts)}"


def _bits(evidence: Drawn, role: str) -> tuple[Tensor, Tensor] | None:
    """(before, after) bits of all pictures of a role; None where no judge knows any of its concepts."""
    plan = evidence.plan
    first: dict[int, tuple[str, list[int]]] = {}
    for g, name, classes in evidence.asked():
        if plan.groups[g].role == role:
            first.setdefault(g, (name, classes))
    if not first:
        return None
    before, after = (
        torch.cat([evidence.present(j, which, classes)[plan.rows(group=g)] for g, (j, classes) in first.items()])
        for which in ("before", "after")
    )
    return before, after


def _moved(evidence: Drawn, role: str) -> Interval | None:
    """The paired change of a role's presence; None where no judge knows any of its concepts."""
    bits = _bits(evidence, role)
    return None if bits is None else statistics.paired(bits[0].numpy(), bits[1].numpy())
