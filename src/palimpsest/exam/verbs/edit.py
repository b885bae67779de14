"""The fixed work of editing: drawn pictures in which one word shall change, beside their twins in which it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.exam import record, tables
from palimpsest.exam.case import Case, Exam, Record, cases
from palimpsest.exam.judged import Judged, Studied, Verdict
from palimpsest.exam.pictures import host_of, method_of, world
from palimpsest.exam.rates import interval, percent, share
from palimpsest.ops import statistics
from palimpsest.ops.editing import ASKED
from palimpsest.ops.masks import blurred
from palimpsest.ops.statistics import Interval
from palimpsest.tiny import oracle
from palimpsest.worlds.concepts import concept, key_of
from palimpsest.worlds.twins import Twins, twins

PICTURES = 2  # for each word and seed
BLUR = 3  # pixels; a style's texture is drawn anew in a twin
MOVED, KEPT = 0.85, 0.97  # of pictures and of readings, at least
CASES = cases(__file__)


def examine(system: str, case: Case, seed: int) -> dict[str, Any]:
    """What each edited picture reads as, and how it lies to its twin, word by word."""
    host = host_of(case["host"])
    drawn_in, method = world(host), method_of(system, case["concept"])
    parts, seconds = [], 0.0
    for i, word in enumerate(case["words"]):
        key = key_of(drawn_in, word)
        assert key is not None
        draws = torch.Generator().manual_seed(700_000 + 1000 * seed + i)
        pairs = twins(drawn_in, key, PICTURES, generator=draws, to=word)
        columns = {**pairs.source.columns, ASKED: pairs.truth.captions}
        sources = replace(pairs.source, columns=columns, masks=None)
        done = method(host, sources, Request(target=(concept(drawn_in, word),)), seed=seed)
        seconds += done.cost["seconds"]
        with torch.no_grad():
            ceiling = host.pixels(host.latents(pairs.truth.pixels())).float().cpu().clamp(0, 1)
        parts.append({"word": word, **_measured(drawn_in, pairs, word, done.images, done.rebuilt, ceiling)})
    return {
        "parameters": method.parameters(),
        "base": host.fingerprint(),
        "words": parts,
        "cost": {"seconds": round(seconds, 2), "pictures": PICTURES * len(parts)},
    }


def _measured(
    drawn_in: Any, pairs: Twins, word: str, images: Tensor, rebuilt: Tensor | None, ceiling: Tensor
) -> dict[str, Any]:
    """Bits and numbers of every picture, from pictures as 8 bits hold them."""
    eye, images = oracle(drawn_in.name), (images.clamp(0, 1) * 255).round() / 255
    source, truth = pairs.source.pixels(), pairs.truth.pixels()
    now, was, place = eye.read(images), eye.read(source), drawn_in.vocabulary[pairs.key].index(word)
    others = [k for k in now if k not in (pairs.key, "identity", "relation", "position") and not k.endswith("2")]
    same = torch.stack([now[k].argmax(1) == was[k].argmax(1) for k in others])
    still = 1 - pairs.region
    apart = 255 * ((images - source).abs() * still).sum((1, 2, 3)) / (3 * still.sum((1, 2, 3))).clamp(min=1)
    found: dict[str, Any] = {
        "moved": _bits(now[pairs.key].argmax(1) == place),
        "before": _bits(was[pairs.key].argmax(1) == place),
        "kept": _bits(same.T.flatten()),
        "gain": _plain(_nearer(images, source, truth, pairs.key)),
        "ceiling": _plain(_nearer(ceiling, source, truth, pairs.key)),
        "outside": _plain(apart) if bool(still.any()) else [],
        "rebuilt": [] if rebuilt is None else _plain(_decibels(rebuilt.float().cpu(), source)),
    }
    if eye.embedding is not None:
        found["person"] = _plain((eye.identity(images) * eye.identity(truth)).sum(1))
    return found


def _nearer(images: Tensor, source: Tensor, truth: Tensor, key: str) -> Tensor:
    """(n,) dB by which pictures are nearer to the truth than the source is."""
    if key == "style":
        images, source, truth = (blurred(p, BLUR) for p in (images, source, truth))
    return _decibels(images, truth) - _decibels(source, truth)


def _decibels(one: Tensor, other: Tensor) -> Tensor:
    return -10 * (one - other).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def _bits(so: Tensor) -> str:
    return "".join(str(int(b)) for b in so)


def _plain(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]


EXAM = Exam(name="edit", verb="edit", cases=CASES, examine=examine, called=("concept",), part="cases", label="case")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One system on one world, or on both, over all seeds.

    Args:
        moved, kept: rates. person, gain, ceiling, outside, rebuilt: means, NaN where there are none.
        seconds: for a picture, the least over the runs. runs: how many.
    """

    moved: Interval
    kept: Interval
    person: Interval
    gain: Interval
    ceiling: Interval
    outside: Interval
    rebuilt: Interval
    seconds: float
    runs: int


Summaries = Mapping[str, Mapping[str, Summary]]  # system -> case ("" for both) -> summary


def summaries(results: Path) -> dict[str, dict[str, Summary]]:
    """Of every system that was run in every case with every seed."""
    return record.pooled(results, EXAM, summarise)


def summarise(records: Iterable[Record], name: str = "") -> Summary | None:
    """Pools a system's records of one case, or of both; None where nothing worked."""
    worked = [r for r in records if "words" in r and name in ("", r["case"]["concept"])]
    if not worked:
        return None
    words = [w for r in worked for w in r["words"]]

    def mean(what: str) -> Interval:
        values = [v for w in words for v in w.get(what, ())]
        return statistics.mean(values) if values else Interval(float("nan"), float("nan"), float("nan"))

    return Summary(
        moved=share([w["moved"] for w in words]),
        kept=share([w["kept"] for w in words]),
        person=mean("person"),
        gain=mean("gain"),
        ceiling=mean("ceiling"),
        outside=mean("outside"),
        rebuilt=mean("rebuilt"),
        seconds=min(r["cost"]["seconds"] / r["cost"]["pictures"] for r in worked),
        runs=len(worked),
    )


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """The family's rule: moved, everything else kept, and surely nearer to the twin."""
    total, by = main[system][""], {c: s for c, s in main[system].items() if c}
    short: dict[str, list[str]] = {}
    for name, s in by.items():
        why = [f"{100 * s.moved.value:.0f} % moved"] if s.moved.value < MOVED else []
        why += [f"{100 * s.kept.value:.0f} % kept"] if s.kept.value < KEPT else []
        why += [f"gain {s.gain.value:+.1f} dB, not surely above 0"] if not s.gain.low > 0 else []
        if why:
            short[name] = why
    verdict: Verdict = "holds" if not short else "holds in part" if len(short) < len(by) else "does not hold here"
    return Judged(
        measured=f"on both worlds at least {100 * MOVED:.0f} % moved, {100 * KEPT:.0f} % of other readings kept, "
        "and the interval of gain above 0",
        found=f"moved {percent(total.moved)}, kept {percent(total.kept)}, gain {_decibel(total.gain)}",
        verdict=verdict,
        why="; ".join(f"{name}: {', '.join(why)}" for name, why in short.items()) or "moved, kept and nearer on both",
    )


def _decibel(x: Interval) -> str:
    return f"{interval(x, '{:+.1f}'.format)} dB"


COLUMNS: tables.Columns = {
    "moved": lambda s: percent(s.moved),
    "kept": lambda s: percent(s.kept),
    "person": lambda s: interval(s.person, "{:.3f}".format),
    "gain, dB": lambda s: interval(s.gain, "{:+.1f}".format),
    "outside": lambda s: interval(s.outside, "{:.2f}".format),
    "rebuilt, dB": lambda s: interval(s.rebuilt, "{:.1f}".format),
    "seconds": lambda s: f"{s.seconds:.1f}",
}


def sections(main: Summaries, results: Path) -> list[str]:
    """Tables of both worlds together, then of each, with the picture left alone and the ceiling."""
    if not main:
        return ["No run of this exam is on record yet.\n"]
    parts = []
    for name, called in (("", "Both worlds together"), *((c["concept"], c["concept"]) for c in CASES)):
        of = {system: by[name] for system, by in main.items() if name in by}
        most = interval(next(iter(of.values())).ceiling, "{:+.1f}".format)
        rows = [["*left alone*", "", "100 %", "", "0", "0", "", "0"], ["*ceiling*", "", "", "", most, "", "", ""]]
        rows += [[f"`{system}`", *tables.shown(COLUMNS, s)] for system, s in of.items()]
        parts += [f"### {called}\n", tables.table(["system", *COLUMNS], rows)]
    return parts


def head() -> str:
    """What the page says first."""
    told = "; ".join(f"{c['concept']} ({c['host']}) to become {', '.join(c['words'])}" for c in CASES)
    return tables.text(__file__, {"cases": told, "pictures": PICTURES, "seeds": len(EXAM.seeds)})
