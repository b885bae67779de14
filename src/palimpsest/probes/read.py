"""What judges see in an audit's pictures: batch by batch, by this process and, where that takes long, by its crew."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.concept import Concept
from palimpsest.core.reading import Evaluator
from palimpsest.core.trace import Trace
from palimpsest.probes.crew import Crew, Loadable, add_account, loaded
from palimpsest.probes.evaluators import Judge, decide, judge
from palimpsest.probes.gallery import Gallery
from palimpsest.probes.own_judge import OwnJudge
from palimpsest.probes.plan import Plan

LONG = 5.0  # seconds that reading the rest must take before others are asked: they load the judge first
_judges: dict[tuple[str, Evaluator], Judge] = {}  # that this process of a crew has loaded


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures (n, 3, H, W) uint8, as an array, that a judge reads as one batch, whoever has it read.

    Args:
        rows: their places among the pictures of their set.
        source, concepts: what loads the judge. evaluator: what it must be then.
        model: the untouched model, where that judges.
    """

    rows: tuple[int, ...]
    pictures: Any
    source: str
    concepts: tuple[Concept, ...]
    evaluator: Evaluator
    model: Loadable | None = None

    def __str__(self) -> str:
        return f"{len(self.pictures)} pictures that {self.evaluator.name} reads"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Present (n, classes) bool and features (n, d) float32, as arrays; and the account, where it is another's."""

    present: Any
    features: Any
    forwards: Mapping[str, int] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None


def read(
    by: Judge, pictures: Tensor, plan: Plan, *, crew: Crew, gallery: Gallery, trace: Trace
) -> tuple[Tensor, Tensor]:
    """(n, classes) bool and (n, d) float32 of one judge for a set of pictures.

    What takes as long as drawing, the audited model's own reading, is kept like pictures are and not done twice.
    Batches hold the same pictures whoever reads them; the first one is read here and tells how long the rest takes.
    """
    own, reader = isinstance(by, OwnJudge), by.evaluator.sha256
    rows = [i for i, picture in enumerate(pictures) if not own or gallery.read(reader, picture) is None]
    size = 16 if own else 64
    model = Loadable.of(by.host) if isinstance(by, OwnJudge) and not crew.alone else None
    concepts = by.concepts if isinstance(by, OwnJudge) else plan.concepts
    told = {"source": by.source, "concepts": concepts, "evaluator": by.evaluator, "model": model}
    sheets = [
        Sheet(rows=tuple(now), pictures=pictures[now].numpy(), **told)
        for now in (rows[i : i + size] for i in range(0, len(rows), size))
    ]
    found: dict[int, tuple[Tensor, Tensor]] = {}  # by row
    again: list[Sheet] = []

    def here(sheet: Sheet, between: Callable[[], None]) -> Seen:
        with by.host.looking(lambda cond: between()) if isinstance(by, OwnJudge) else nullcontext():
            return _seen(by, sheet, trace)

    def keep(sheet: Sheet, seen: Seen | None) -> None:
        if seen is None:
            again.append(sheet)
            return
        present, features = torch.from_numpy(seen.present), torch.from_numpy(seen.features)
        if own:
            gallery.heard(reader, pictures[list(sheet.rows)], present, features)
        found.update(zip(sheet.rows, zip(present, features, strict=True), strict=True))
        add_account(trace, seen)
        trace.tell(f"reading: {by.evaluator.name}", len(found), len(rows))

    if sheets:
        start = time.perf_counter()
        keep(sheets[0], here(sheets[0], lambda: None))
        long = (time.perf_counter() - start) * (len(sheets) - 1) > LONG
        if long and not crew.alone and by.source and not (own and model is None):
            crew.workers.share(_elsewhere, sheets[1:], keep, here)
        else:
            again += sheets[1:]
    for sheet in list(again):
        keep(sheet, here(sheet, lambda: None))
    said = [found.get(i) or gallery.read(reader, picture) for i, picture in enumerate(pictures)]
    present, features = zip(*filter(None, said), strict=True)
    return torch.stack(present), torch.stack(features)


def _seen(by: Judge, sheet: Sheet, trace: Trace) -> Seen:
    images = torch.from_numpy(sheet.pictures).float() / 255
    with trace.watching(by.host) if isinstance(by, OwnJudge) else nullcontext():
        present = decide(by.evaluator, by.read(images))
        features = by.features(images).float().flatten(1)
    return Seen(present=present.cpu().numpy(), features=features.detach().cpu().numpy())


def _elsewhere(sheet: Sheet) -> Seen | None:
    """A sheet read in a process of the crew; None where it cannot load the same judge."""
    key = sheet.source, sheet.evaluator
    if key not in _judges:
        host = None if sheet.model is None else loaded(sheet.model)
        if sheet.model is not None and host is None:
            return None
        _judges[key] = judge(sheet.source, sheet.concepts, host)
    by, trace = _judges[key], Trace()
    if by.evaluator != sheet.evaluator:
        return None
    seen = _seen(by, sheet, trace)
    return Seen(
        present=seen.present,
        features=seen.features,
        forwards=trace.forwards,
        calls=trace.calls,
        peak_bytes=trace.peak_bytes,
    )
