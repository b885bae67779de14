"""The receipt's page: a pure function of the JSON and the pictures in it. Everything the template shows is plain."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.core.reading import Curve, Reading
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.groups import LISTED
from palimpsest.probes.weights import Weights
from palimpsest.receipt import charts
from palimpsest.receipt.document import evaluators_of, reading
from palimpsest.receipt.downloads import files, link
from palimpsest.receipt.page import fill
from palimpsest.receipt.subject import Pair, Section, Subject, said, subject_of

_MOODS = {"changed": "changed", "unchanged": "unchanged", "cannot tell": "unsure", "": ""}
_COLUMNS = {
    "who": "of",
    "verdict": "verdict",
    "plot": "0 to 100\u2009%",
    "judge": "by",
    "n": "n",
    "before": "before",
    "after": "after",
    "interval": "95 % interval",
    "change": "change (95 %)",
    "floor": "noise floor",
    "p": "p",
}
_TEXT = ("who", "verdict", "plot", "judge")


@dataclass(frozen=True, kw_only=True)
class _Told:
    """A reading as the page tells it: with its verdict, and whether a change of it looks wanted."""

    reading: Reading
    verdict: str
    mood: str


def render(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML text: one file, no script, no network.

    Args:
        data: the receipt.
        pictures: "set/row" -> WebP bytes.
    """
    subject = subject_of(data)
    kept = subject.kept(data, {})
    sources = {k: "data:image/webp;base64," + base64.b64encode(v).decode() for k, v in pictures.items()}
    told = _told(data, subject, kept)
    weights = next((t.reading for t in told if t.reading.name == "relative weight change"), None)
    sections = [_section(s, subject, kept, told, sources) for s in (*subject.sections, _further(subject, told))]
    values = {
        "saved": [(name, link(name, text)) for name, text in files(data).items()],
        "data": data,
        "counted": subject.counted,
        "sections": [s for s in sections if s["content"]],
        "tensors": weights.detail["tensors"] if weights else [],
        "method": method_of(data["method"]),
        "facts": subject.facts(kept),
        "cost": _costs(data),
        "prints": [*_prints(data, subject), *subject.prints(kept)],
        "terms": subject.terms,
    }
    return fill("receipt.html.j2", values)


def _told(data: Mapping[str, Any], subject: type[Subject], kept: Evidence) -> list[_Told]:
    evaluators = evaluators_of(data)
    found = []
    for row in data["readings"]:
        r, mood = reading(row, evaluators), _MOODS[row["verdict"]]
        if r.role in ("target", LISTED) and mood == "changed":
            mood = "wanted" if subject.wanted(r, kept) else "changed"
        found.append(_Told(reading=r, verdict=row["verdict"], mood=mood))
    return found


def _further(subject: type[Subject], told: Sequence[_Told]) -> Section:
    """Readings that no section tells: those of probes from other packages."""
    known = {name for s in subject.sections for name in s.readings} | set(Weights.makes)
    return Section(title="Further readings", readings=tuple({t.reading.name for t in told} - known))


def _section(
    section: Section, subject: type[Subject], kept: Evidence, told: Sequence[_Told], sources: Mapping[str, str]
) -> dict[str, Any]:
    """A section with its content, which is empty where there is nothing to tell."""
    apart = {s.role for s in subject.sections if s.role and section.form == "table"} - {section.role}
    mine = [
        t
        for t in told
        if t.reading.name in section.readings and t.reading.role not in apart and section.role in ("", t.reading.role)
    ]
    content: Any
    if section.form == "figures":
        mood = {id(t.reading): t.mood for t in told}
        content = [_figure(name, r, mood[id(r)]) for name, r in subject.figures([t.reading for t in told])]
    elif section.form == "pairs":
        content = _roles(subject, subject.pairs(kept), sources) if sources else []
    elif section.form == "matrix":
        content = _matrices([t.reading for t in mine])
    elif section.form == "curves":
        content = [_curve(t.reading, t.reading.curve) for t in told if t.reading.curve is not None]
    else:
        content = _table(mine)
    return {
        "title": section.title,
        "id": section.title.lower().replace(" ", "-"),
        "note": section.note,
        "form": section.form,
        "content": content,
    }


def number(x: float | None, unit: str = "") -> str:
    """Three significant digits, a real minus sign, the unit after a thin space; a dash for nothing."""
    if x is None or not math.isfinite(x):
        return "–"
    if unit in ("%", "points"):
        text = f"{x:.0f}" if abs(x) >= 9.95 or x == round(x) else f"{x:.1f}"
    else:
        text = f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 or x == 0 else f"{x:.4f}" if 1e-4 <= abs(x) < 1 else f"{x:.1e}"
    return text.replace("-", "−") + (f"\u2009{unit}" if unit == "%" else "")


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _figure(name: str, r: Reading, mood: str) -> dict[str, str]:
    return {
        "name": name,
        "before": number(r.before, "points"),
        "after": number(r.value, "%"),
        "interval": f"{number(r.low, 'points')}–{number(r.high, 'points')}",
        "n": str(r.n),
        "mood": mood,
    }


def _table(told: Sequence[_Told]) -> dict[str, Any]:
    """Rows, and the columns that any of them fills; {} without rows."""
    rows = [_row(t) for t in told]
    columns = [
        {"key": key, "label": label, "text": key in _TEXT}
        for key, label in _COLUMNS.items()
        if any(row[key] not in ("", "–") for row in rows)
        and (key != "judge" or len({row["judge"] for row in rows}) > 1)
    ]
    return {"rows": rows, "columns": columns} if rows else {}


def _row(t: _Told) -> dict[str, Any]:
    r, unit = t.reading, "points" if t.reading.unit == "%" else t.reading.unit
    together = not r.concept and r.change is not None and r.name == "presence"
    limits = None if not (math.isfinite(r.low) and math.isfinite(r.high)) else (r.low, r.high)
    floor = number(r.floor, unit)
    return {
        "what": r.name,
        "who": f"all {'neighbours' if r.role == 'neighbour' else r.role}" if together else r.concept or r.role,
        "role": r.role,
        "together": together,
        "verdict": t.verdict,
        "mood": t.mood,
        "plot": _plot(t),
        "judge": r.evaluator.name if r.evaluator else "",
        "n": r.n,
        "before": number(r.before, r.unit) if r.before or r.unit == "%" else "–",
        "after": number(r.value, r.unit) + (f" {r.unit}" if r.unit not in ("", "%") else ""),
        "interval": "–" if limits is None else f"{number(limits[0], unit)} to {number(limits[1], unit)}",
        "change": _change(r),
        "floor": "±" + floor if r.change is not None and r.floor is not None else floor,
        "p": _p(r.p),
    }


def _plot(t: _Told) -> Any:
    """A rate before and after on a line; "" for other numbers."""
    r = t.reading
    if r.unit != "%" or r.change is None or not (math.isfinite(r.low) and math.isfinite(r.high)):
        return ""
    return charts.range_plot(r.before or 0.0, r.value, r.low, r.high, r.floor or 0.0, t.mood)


def _change(r: Reading) -> str:
    if r.change is None:
        return ""
    unit = "points" if r.unit == "%" else r.unit
    value, low, high = (number(x, unit) for x in (r.change.value, r.change.low, r.change.high))
    return f"{value} ({low} to {high})"


def _roles(subject: type[Subject], pairs: Sequence[Pair], sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """Pictures by role and concept, each a pair with the same seed."""
    found: dict[str, dict[str, dict[str, Any]]] = {role: {} for role in subject.roles}
    for pair in pairs:
        if f"before/{pair.row}" in sources and f"after/{pair.row}" in sources:
            concepts = found.setdefault(pair.role, {})
            concept = concepts.setdefault(pair.name, {"name": pair.name, "reason": pair.reason, "pairs": []})
            concept["pairs"].append(
                {"prompt": pair.prompt, "seed": pair.seed, "sides": [_side(pair, i, sources) for i in (0, 1)]}
            )
    return [
        {
            "id": role,
            "title": subject.roles.get(role, (role, ""))[0],
            "note": subject.roles.get(role, ("", ""))[1],
            "concepts": list(concepts.values()),
        }
        for role, concepts in found.items()
        if concepts
    ]


def _side(pair: Pair, side: int, sources: Mapping[str, str]) -> dict[str, Any]:
    which = ("before", "after")[side]
    seen = None if pair.judged is None else pair.judged[side]
    judged = "" if seen is None else f"; the judge {'sees' if seen else 'does not see'} {pair.name}"
    alt = f"{which} the edit, {said(pair)}{judged}"
    return {"source": sources[f"{which}/{pair.row}"], "alt": alt, "seen": seen}


def _matrices(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """One heat table a judge: a row for each concept asked for, a column for each concept seen."""
    found: dict[str, dict[str, Any]] = {}
    for r in readings:
        if r.row is None:
            continue
        judge = r.evaluator.name if r.evaluator else "the labels"
        table = found.setdefault(judge, {"judge": judge, "columns": r.row.columns, "rows": []})
        cells = [
            {
                "text": number(change, "points") if change else "0",
                "sign": "up" if change > 0 else "down" if change < 0 else "none",
                "strength": f"{min(1.0, abs(change) / 100) ** 0.6:.2f}",
                "asked": column == r.concept,
                "title": f"{column} seen in {number(before, '%')} before, {number(after, '%')} after",
            }
            for column, before, after, change in zip(
                r.row.columns, r.row.before, r.row.after, r.row.change, strict=True
            )
        ]
        table["rows"].append({"name": r.concept or "(empty prompt)", "cells": cells})
    return list(found.values())


def _curve(r: Reading, curve: Curve) -> dict[str, Any]:
    return {"title": f"{r.name} {r.concept}".strip(), "svg": charts.curves(curve, r.name)}


def method_of(method: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the page names the system that made a change."""
    if method is None:
        return None
    return {
        "name": method.get("name") or method.get("method", ""),
        "id": method.get("method", ""),
        "card": method.get("card"),
        "parameters": sorted((method.get("parameters") or {}).items()),
        "seed": method.get("seed"),
    }


def _costs(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The edit's and the audit's cost."""
    rows = []
    for what, cost in (("the edit", data["run"]["edit"]), ("this audit", data["run"]["audit"])):
        if cost.get("seconds") is None:
            continue
        forwards = ", ".join(f"{n:,} {part.replace('_', ' ')}" for part, n in (cost.get("forwards") or {}).items())
        memory = cost.get("peak_bytes")
        rows.append(
            {
                "what": what,
                "seconds": f"{cost['seconds']:.1f} s" if cost["seconds"] < 120 else f"{cost['seconds'] / 60:.1f} min",
                "forwards": forwards or "none",
                "memory": "not measured" if memory is None else f"{memory / 1e6:.0f} MB",
                "rows": str(cost.get("pictures", "")),
            }
        )
    return rows


def _prints(data: Mapping[str, Any], subject: type[Subject]) -> list[tuple[str, str, str]]:
    """(what, name, hash) of everything that can be hashed again."""
    edited = data["edited"]
    rows = _model(subject.sides[0], data["base"])
    if edited["kind"] == "patch":
        rows.append(("patch", edited["file"] or "in memory", edited["sha256"]))
    else:
        rows += _model(subject.sides[1], edited)
    rows += [("evaluator", f"{n} {e['version']}", e["sha256"]) for n, e in data["evaluators"].items()]
    if data["vectors"] is not None:
        rows.append(("features", data["vectors"]["file"], data["vectors"]["sha256"]))
    return [*rows, ("this receipt", "receipt.json", data["seal"])]


def _model(what: str, stated: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The hashes of a model's tensors and of its settings, which older receipts do not state."""
    settings = stated.get("settings")
    rows = [(what, stated["name"], stated["fingerprint"])]
    return rows if settings is None else [*rows, (f"settings of the {what}", stated["name"], settings["sha256"])]
