"""Edited pictures as evidence: read before, after and rebuilt by each judge, and compared at their own size."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest
from palimpsest.core.printable import printable
from palimpsest.data.framing import Frame
from palimpsest.data.marking import SOURCE_TYPE, source_type_of
from palimpsest.data.picture_folders import PictureFolder
from palimpsest.probes.evaluators import Judge, OracleJudge, classes_of, decide, kind_of
from palimpsest.probes.evidence import Evidence, rounded

STILL = 0.5 / 255  # a mask below it is black
HIGHEST = 99.0  # dB that are kept of equal pictures, whose ratio has no end
DIGITS = 4
ROW = "picture"  # the set of what is measured of each pair
SIDES = ("before", "after", "rebuilt")
PERSON = "identity"


@dataclass(frozen=True, kw_only=True)
class EditPlan:
    """What was asked of pictures, and with what they are compared.

    Args:
        names: of the pictures, in order. asked: what each was to show, as a prompt; () where only the concept is known.
        wanted: the change in words, "glasses". sign: what a judge looks for. gone: it was to go, not to come.
        keep: what a judge that reads text has to tell it from.
        size: side of the squares that judges read.
        beside: further pictures by name, "masks", "rebuilt", "truth": (where they are, their hash).
        marked: whether the files were to say that a model made a part of them; None where nobody said.
        model, base: who drew the edits, and its fingerprint; "" where that is not known.
        flags: of each picture, what its edit remarked.
    """

    names: tuple[str, ...]
    asked: tuple[str, ...] = ()
    wanted: str
    sign: Concept
    gone: bool = False
    keep: tuple[Concept, ...] = ()
    size: int
    beside: Mapping[str, tuple[str, str]]
    marked: bool | None = None
    model: str = ""
    base: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Edits(Evidence):
    """What is known of edited pictures.

    Measures: `before|after|rebuilt/judge/present` bits; and of each pair `picture/name`: `region` (the share that may
    differ), `outside` (mean grey levels outside it), `differing` (share of the pixels outside that differ at all),
    `decibels` (outside), `marked`, `reconstruction` (dB of the rebuilt picture), `gain` (dB nearer to the truth), and
    `picture/judge/person|person_rebuilt|person_other` (cosines with the picture before).
    """

    subject: ClassVar[str] = "edited"
    plan: EditPlan

    def seen(self, judge: str) -> list[int]:
        """The judge's classes that mean what was asked for; [] where it knows none."""
        return classes_of(self.evaluators[judge], self.plan.sign)

    def shows(self, judge: str, side: str) -> Tensor:
        """(n,) bool: whether a judge finds that a side's pictures are as asked."""
        there = self(side, judge, "present").bool()[:, self.seen(judge)].any(1)
        return ~there if self.plan.gone else there

    def knowing(self) -> list[str]:
        """The judges that know what was asked for."""
        return [name for name in self.evaluators if self.seen(name) and self.has("after", name, "present")]

    def kinds(self, judge: str) -> dict[str, list[int]]:
        """Of the judge's classes "kind:word" those of each kind other than the one that was to change."""
        classes = self.evaluators[judge].classes
        barred = {kind_of(classes[i]) for i in self.seen(judge)} | {""}
        if self.has(ROW, judge, "person"):
            barred.add(PERSON)  # names of the nearest say less than the cosine
        found: dict[str, list[int]] = {}
        for i, label in enumerate(classes):
            if (kind := kind_of(label)) not in barred:
                found.setdefault(kind, []).append(i)
        return found

    def failures(self) -> dict[int, list[str]]:
        """Rows that failed, with the reasons in words, worst first."""
        found: dict[int, list[str]] = {}
        for judge in self.knowing()[:1]:
            for i, so in enumerate(self.shows(judge, "after").tolist()):
                if not so:
                    found.setdefault(i, []).append(
                        f"still shows {self.plan.sign.name}" if self.plan.gone else "not moved"
                    )
        for judge in self.evaluators:
            if self.has(ROW, judge, "person"):
                near, other = self(ROW, judge, "person"), self(ROW, judge, "person_other")
                for i in (near <= other).nonzero().flatten().tolist():
                    found.setdefault(i, []).append("the person is lost")
        if self.has(ROW, "reconstruction"):
            for i, dB in enumerate(self(ROW, "reconstruction").tolist()):
                if dB < POOR:
                    found.setdefault(i, []).append(f"rebuilt with only {dB:.1f} dB")
        return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


POOR = 20.0  # dB; a picture that is rebuilt worse failed


def collect(
    before: PictureFolder,
    after: PictureFolder,
    plan: EditPlan,
    judges: Sequence[Judge],
    beside: Mapping[str, PictureFolder],
    rows: Sequence[int] | None = None,
) -> Edits:
    """Reads pictures once.

    Args:
        before, after: under the plan's names. beside: masks, rebuilt, truth, likewise.
        rows: of the plan; None: all.

    Raises:
        BadRequest: a picture has another size after its edit. Damaged: one cannot be read.

    Cost: each file is decoded once, each picture read once by each judge.
    """
    begun, every = time.perf_counter(), range(len(plan.names))
    chosen = every if rows is None else rows
    framed: dict[str, list[Tensor]] = {side: [] for side in SIDES if side != "rebuilt" or "rebuilt" in beside}
    numbers: list[dict[str, float]] = []
    for i in chosen:
        seen, measured = _pair(plan.names[i], before, after, plan.size, beside)
        numbers.append(measured)
        for side, pictures in framed.items():
            pictures.append(seen[side])
    gallery = {side: torch.cat(pictures) for side, pictures in framed.items()}
    measures = {f"{ROW}/{k}": rounded(torch.tensor([m[k] for m in numbers]), DIGITS) for k in numbers[0]}
    others = torch.cat([_framed(before, plan.names[(i + 1) % len(every)], plan.size) for i in chosen])
    for judge in judges:
        measures |= _read(judge, gallery, others)
    return Edits(
        plan=plan,
        measures=measures,
        gallery=gallery,
        evaluators={j.evaluator.name: j.evaluator for j in judges},
        cost={"seconds": round(time.perf_counter() - begun, 3), "pictures": len(chosen), "forwards": {}},
    )


def _pair(
    name: str, before: PictureFolder, after: PictureFolder, size: int, beside: Mapping[str, PictureFolder]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One pair on the judges' square by side, and what is measured of it at its own size."""
    old, new = before.picture(name), after.picture(name)
    if old.colours.shape != new.colours.shape:
        raise BadRequest(
            f"{printable(name)} has {old.width} x {old.height} pixels before and {new.width} x {new.height} after; "
            "pictures are compared pixel by pixel. Bring both to one size, or leave it out."
        )
    frame = Frame.of(old.height, old.width, size)
    seen = {"before": frame.onto(old.colours), "after": frame.onto(new.colours)}
    measured: dict[str, float] = {"marked": float(source_type_of(new.stored) == SOURCE_TYPE)}
    apart = np.abs(new.colours.astype(np.float64) - old.colours)
    if "masks" in beside:
        still = beside["masks"].mask(name, old.height, old.width) < STILL
        outside = apart[still] if still.any() else np.zeros((1, 3))
        measured |= {
            "region": 1 - float(still.mean()),
            "outside": float(outside.mean()),
            "differing": float((outside > 0).any(1).mean()),
            "decibels": _decibels(float(np.square(outside).mean())),
        }
    if "rebuilt" in beside:
        rebuilt = beside["rebuilt"].picture(name)
        seen["rebuilt"] = Frame.of(rebuilt.height, rebuilt.width, size).onto(rebuilt.colours)
        far = Frame.of(old.height, old.width, rebuilt.height).onto(old.colours)[0].permute(1, 2, 0).numpy()
        measured["reconstruction"] = _decibels(float(np.square(far - rebuilt.colours.astype(np.float64)).mean()))
    if "truth" in beside:
        truth = beside["truth"].picture(name).colours.astype(np.float64)
        if truth.shape != old.colours.shape:
            raise BadRequest(f"The truth of {printable(name)} has another size than the picture; draw it as large.")
        left, came = (_decibels(float(np.square(p.colours - truth).mean())) for p in (old, new))
        measured["gain"] = came - left
    return seen, measured


def _framed(folder: PictureFolder, name: str, size: int) -> Tensor:
    picture = folder.picture(name)
    return Frame.of(picture.height, picture.width, size).onto(picture.colours)


def _decibels(squared: float) -> float:
    return HIGHEST if squared <= 0 else min(HIGHEST, 10 * math.log10(255**2 / squared))


def _read(judge: Judge, gallery: Mapping[str, Tensor], others: Tensor) -> dict[str, Tensor]:
    """What one judge says of every side; where it tells persons apart, how near they stay."""
    name, found = judge.evaluator.name, {}
    for side, pictures in gallery.items():
        if judge.evaluator.classes:
            bits = [decide(judge.evaluator, judge.read(part.float() / 255)) for part in pictures.split(32)]
            found[f"{side}/{name}/present"] = torch.cat(bits).cpu()
    if isinstance(judge, OracleJudge) and judge.oracle.embedding is not None:
        persons = judge.oracle.identity
        was = persons(gallery["before"].float() / 255)
        sides = {"person": gallery["after"], "person_other": others, "person_rebuilt": gallery.get("rebuilt")}
        for what, pictures in sides.items():
            if pictures is not None:
                near = (was * persons(pictures.float() / 255)).sum(1)
                found[f"{ROW}/{name}/{what}"] = rounded(near, DIGITS)
    return found
