"""The receipt's JSON, arranged for the page. Everything the template shows is a string, a number or a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.probes.plan import Plan
from palimpsest.probes.resurfacing import NAMES
from palimpsest.receipt import charts

_MOODS = {"changed": "changed", "unchanged": "unchanged", "cannot tell": "unsure", "": ""}
_ROLES = {
    "target": ("Target", "What the edit is about."),
    "neighbour": ("Neighbours", "What lies closest to it in the model, and what was asked to stay."),
    "unrelated": ("Unrelated", "Other kinds of concept. None of it should move."),
    "empty": ("Empty prompt", "What the model draws unasked."),
}
_TABLES = (
    ("Drift", ("pixel drift", "feature drift"), "How far a picture moves when prompt and seed stay."),
    ("Distance", ("kernel distance", "Frechet distance"), "How far all pictures of a role moved, as distributions."),
    ("Collapse", ("collapse",), "The share of pictures that turned into one colour, noise or copies."),
    (
        "Against a model that never saw it",
        ("gap to a model that never saw it", "presence in a model that never saw it"),
        "The gold standard of forgetting: the same recipe, trained without the target.",
    ),
    (
        "Resurfacing",
        NAMES,
        "Presence after an attempt to bring the target back at a stated budget; before: the untouched model, as it is.",
    ),
    (
        "Neighbours to the eye",
        ("closeness",),
        "How alike the untouched pictures of each concept and of the target are: cosine of the judge's features, less "
        "what all share. Neighbours were chosen by the model's text embeddings before anything was drawn.",
    ),
)
_COLUMNS = {
    "who": "of",
    "verdict": "verdict",
    "before": "before",
    "after": "after",
    "interval": "95 % interval",
    "floor": "noise floor",
    "p": "p",
    "n": "pictures",
    "judge": "by",
}
_KNOWN = {"presence", "leakage", "changed tensors", "relative weight change", *(n for t in _TABLES for n in t[1])}


def view(data: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """What the template needs.

    Args:
        data: the receipt.
        sources: "set/row" -> data URI of the pictures to show.
    """
    readings = data["readings"]
    several = len({r["evaluator"] for r in readings if r["name"] == "presence"}) > 1
    weights = next((r for r in readings if r["name"] == "relative weight change"), None)
    return {
        "data": data,
        "title": data["headline"],
        "figures": figures_of(readings),
        "roles": _roles(data, sources),
        "presence": [_presence(r) for r in readings if r["name"] == "presence"],
        "several_judges": several,
        "tables": [t for t in (table(readings, *entry) for entry in _TABLES) if t["rows"]],
        "others": table(readings, "Further readings", tuple({r["name"] for r in readings} - _KNOWN), ""),
        "matrices": matrices(readings),
        "curves": [
            {"title": f"{r['name']} {r['concept']}".strip(), "svg": charts.curves(r["detail"]["curve"], r["name"])}
            for r in readings
            if "curve" in r["detail"]
        ],
        "tensors": weights["detail"]["tensors"] if weights else [],
        "method": method_of(data["method"]),
        "cost": cost_rows(data),
        "prints": prints_of(data),
    }


def number(x: float | None, unit: str = "") -> str:
    """Three significant digits, a real minus sign, the unit after a thin space; a dash for nothing."""
    if x is None:
        return "–"
    if unit in ("%", "points"):
        text = f"{x:.0f}" if abs(x) >= 9.95 or x == round(x) else f"{x:.1f}"
    else:
        text = f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 or x == 0 else f"{x:.4f}" if 1e-4 <= abs(x) < 1 else f"{x:.1e}"
    return text.replace("-", "−") + (f"\u2009{unit}" if unit == "%" else "")


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def figures_of(readings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The few numbers at the top: presence of each target (at most 3), then neighbours and unrelated together."""
    presence = [r for r in readings if r["name"] == "presence"]
    chosen = [r for r in presence if r["role"] == "target"][:3]
    for role in ("neighbour", "unrelated"):
        of_role = [r for r in presence if r["role"] == role]
        chosen += [r for r in of_role if not r["concept"]][:1] or of_role[:1]
    names = {"neighbour": "neighbours", "unrelated": "unrelated"}
    return [
        {
            "name": r["concept"] or names[r["role"]],
            "before": number(r["before"], "points"),
            "after": number(r["value"], "%"),
            "interval": f"{r['low']:.0f}–{r['high']:.0f}",
            "n": str(r["n"]),
            "mood": _mood(r),
        }
        for r in chosen
    ]


def _mood(r: Mapping[str, Any]) -> str:
    """How a row looks: a target's change is wanted, any other's is not."""
    if r["role"] == "target" and r["verdict"] == "changed" and r["name"] != "collapse":
        worse = r["name"] == "presence" and r["value"] > r["before"]
        return "changed" if worse else "wanted"
    return _MOODS[r["verdict"]]


def _presence(r: Mapping[str, Any]) -> dict[str, Any]:
    change = r["detail"]["change"]
    return {
        "name": r["concept"] or f"all {'neighbours' if r['role'] == 'neighbour' else r['role']}",
        "role": r["role"],
        "together": not r["concept"],
        "judge": r["evaluator"],
        "n": r["n"],
        "before": number(r["before"], "%"),
        "after": number(r["value"], "%"),
        "interval": f"{r['low']:.0f}–{r['high']:.0f}",
        "change": number(change["value"]) if change["value"] else "0",
        "change_interval": f"{number(change['low'], 'points')} to {number(change['high'], 'points')}",
        "floor": "±" + number(r["floor"], "points"),
        "p": _p(r["p"]),
        "verdict": r["verdict"],
        "mood": _mood(r),
        "plot": charts.range_plot(r["before"], r["value"], r["low"], r["high"], r["floor"], _mood(r)),
    }


def table(readings: Sequence[Mapping[str, Any]], title: str, names: Sequence[str], note: str) -> dict[str, Any]:
    rows = [
        {
            "what": r["name"],
            "who": r["concept"] or r["role"],
            "judge": r["evaluator"] or "",
            "n": r["n"],
            "before": number(r["before"], r["unit"]) if r["before"] or r["unit"] == "%" else "–",
            "after": number(r["value"], r["unit"]) + (f" {r['unit']}" if r["unit"] not in ("", "%") else ""),
            "interval": _range(r),
            "floor": number(r["floor"], r["unit"]),
            "p": _p(r["p"]),
            "verdict": r["verdict"],
            "mood": _mood(r),
        }
        for r in readings
        if r["name"] in names
    ]
    columns = [
        {"key": key, "label": label, "text": key in ("verdict", "who", "judge")}
        for key, label in _COLUMNS.items()
        if any(row[key] not in ("", "–") for row in rows)
    ]
    return {"title": title, "note": note, "rows": rows, "columns": columns}


def _range(r: Mapping[str, Any]) -> str:
    if r["low"] is None:
        return "–"
    unit = "points" if r["unit"] == "%" else r["unit"]
    return f"{number(r['low'], unit)} to {number(r['high'], unit)}"


def _roles(data: Mapping[str, Any], sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """Pictures by role and concept, each a pair with the same seed."""
    shots = Plan.from_plain({**data["plan"], "request": data["request"]}).shots
    found: dict[str, list[dict[str, Any]]] = {role: [] for role in _ROLES}
    for g, group in enumerate(data["plan"]["groups"]):
        name = group["concept"]["name"] if group["concept"] else ""
        pairs = [
            {
                "prompt": prompt,
                "seed": seed,
                "before": _picture(data, sources, "before", row, prompt, seed, name),
                "after": _picture(data, sources, "after", row, prompt, seed, name),
            }
            for row, (of, prompt, seed) in enumerate((s.group, s.prompt, s.seed) for s in shots)
            if of == g and f"before/{row}" in sources
        ]
        if pairs:
            found[group["role"]].append({"name": name, "reason": group["reason"], "pairs": pairs})
    return [
        {"id": role, "title": _ROLES[role][0], "note": _ROLES[role][1], "concepts": concepts}
        for role, concepts in found.items()
        if concepts
    ]


def _picture(
    data: Mapping[str, Any], sources: Mapping[str, str], which: str, row: int, prompt: str, seed: int, name: str
) -> dict[str, Any]:
    judge = next(iter(data["evaluators"]), None)
    seen = None
    if judge is not None and name:
        concept = next(g["concept"] for g in data["plan"]["groups"] if g["concept"] and g["concept"]["name"] == name)
        wanted = _classes(data["evaluators"][judge]["classes"], concept)
        if wanted:
            seen = bool(set(data["reads"][judge][which][row]) & wanted)
    said = "" if seen is None else f"; the judge {'sees' if seen else 'does not see'} {name}"
    asked = f"“{prompt}”" if prompt else "the empty prompt"
    return {
        "source": sources[f"{which}/{row}"],
        "alt": f"{which} the edit, {asked}, seed {seed}{said}",
        "seen": seen,
    }


def _classes(classes: Sequence[str], concept: Mapping[str, Any]) -> set[int]:
    from palimpsest.core.concept import Concept
    from palimpsest.core.reading import Evaluator
    from palimpsest.probes.evaluators import classes_of

    labels = tuple(concept["labels"])
    judge = Evaluator(name="", version="", classes=tuple(classes))
    return set(classes_of(judge, Concept(name=concept["name"], kind=concept["kind"], labels=labels)))


def matrices(readings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One heat table a judge: a row for each concept asked for, a column for each concept seen."""
    found: dict[str, dict[str, Any]] = {}
    for r in readings:
        if r["name"] != "leakage":
            continue
        table = found.setdefault(
            r["evaluator"], {"judge": r["evaluator"], "columns": r["detail"]["columns"], "rows": []}
        )
        cells = []
        for column, before, after, change in zip(
            r["detail"]["columns"], r["detail"]["before"], r["detail"]["after"], r["detail"]["change"], strict=True
        ):
            strength = min(1.0, abs(change) / 100) ** 0.6
            cells.append(
                {
                    "text": number(change, "points") if change > 0 or change < 0 else "0",
                    "sign": "up" if change > 0 else "down" if change < 0 else "none",
                    "strength": f"{strength:.2f}",
                    "asked": column == r["concept"],
                    "title": f"{column} seen in {number(before, '%')} before, {number(after, '%')} after",
                }
            )
        table["rows"].append({"name": r["concept"] or "(empty prompt)", "role": r["role"], "cells": cells})
    return list(found.values())


def method_of(method: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if method is None:
        return None
    return {
        "name": method.get("name") or method.get("method", ""),
        "id": method.get("method", ""),
        "card": method.get("card"),
        "parameters": sorted((method.get("parameters") or {}).items()),
        "seed": method.get("seed"),
    }


def cost_rows(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The edit's and the audit's cost."""
    rows = []
    for what, cost in (("the edit", data["method"] or {}), ("this audit", data["cost"])):
        if "seconds" not in cost:
            continue
        forwards = ", ".join(f"{n:,} {part.replace('_', ' ')}" for part, n in (cost.get("forwards") or {}).items())
        memory = cost.get("peak_bytes")
        rows.append(
            {
                "what": what,
                "seconds": f"{cost['seconds']:.1f} s" if cost["seconds"] < 120 else f"{cost['seconds'] / 60:.1f} min",
                "forwards": forwards or "none",
                "memory": "not measured" if memory is None else f"{memory / 1e6:.0f} MB",
                "pictures": str(cost.get("pictures", "")),
            }
        )
    return rows


def prints_of(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, name, hash) of everything that can be hashed again."""
    edited = data["edited"]
    rows = [("untouched model", data["base"]["name"], data["base"]["fingerprint"])]
    if edited["kind"] == "patch":
        rows.append(("patch", edited["file"] or "in memory", edited["sha256"]))
    else:
        rows.append(("edited model", edited["name"], edited["fingerprint"]))
    rows += [("evaluator", f"{n} {e['version']}", e["sha256"]) for n, e in data["evaluators"].items()]
    return [*rows, ("this receipt", "receipt.json", data["seal"])]
