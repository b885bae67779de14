"""The page of a comparison: plots of forgetting against its price, tables, and pictures with the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from palimpsest.core.method import versions
from palimpsest.receipt.downloads import link
from palimpsest.receipt.page import fill
from palimpsest.receipt.view import number

_W, _H = 620, 380
_LEFT, _RIGHT, _BOTTOM, _TOP = 58, 20, 46, 30
_CROWDED = 12  # rows


def render(
    data: Mapping[str, Any],
    labels: Sequence[Mapping[str, str]],
    strips: Sequence[Mapping[str, Any]] = (),
    *,
    downloads: Mapping[str, str] | None = None,
) -> str:
    """The page as HTML text: one file, no script, no network.

    Args:
        data: what compare.json holds. labels: of each section, its subject's words for columns and axes.
        strips: {"prompt", "seed", "role", "cells": [{"name", "source"}]} with data URIs.
        downloads: file name -> text, to be saved from the page; an empty text: the file lies beside the page.
    """
    values = {
        "version": versions()["palimpsest"],
        "notes": data["notes"],
        "sections": [
            _section(s, of, first=i == 0) for i, (s, of) in enumerate(zip(data["sections"], labels, strict=True))
        ],
        "strips": strips,
        "downloads": [(name, link(name, text) if text else name) for name, text in (downloads or {}).items()],
    }
    return fill("compare.html.j2", values)


def _section(section: Mapping[str, Any], labels: Mapping[str, str], *, first: bool) -> dict[str, Any]:
    rows = section["rows"]
    # So many names would hide the points: then numbers stand beside them, and before the names in the table.
    number_of = {r["name"]: str(i) for i, r in enumerate(rows, start=1)} if len(rows) > _CROWDED else {}
    by_harm, by_cost = (
        [{**p, "label": number_of.get(p["name"], p["name"])} for p in _points(rows, x)]
        for x in (_harm, lambda r: _exactly(r["seconds"]))
    )
    return {
        "title": section["title"],
        "heads": [labels[k] for k in ("before", "target", "neighbours", "unrelated", "n")],
        "plots": [
            {
                "title": "Forgetting against collateral",
                "note": "Down and left is better: the target is gone, and the rest is spared."
                + (" Numbers are those of the table." if number_of else ""),
                "svg": scatter(by_harm, labels["x"], labels, zero=True),
            },
            {
                "title": "Forgetting against cost",
                "note": "Down and left is better. Seconds are on a logarithmic scale; systems that act while the model "
                "samples take theirs at every picture, which is not counted here.",
                "svg": scatter(by_cost, "seconds that the edit takes", labels, log=True),
            },
        ]
        if first or len(rows) > 1
        else [],
        "rows": [_cells(r, r["name"] in front(by_harm), number_of.get(r["name"], "")) for r in rows],
    }


def _harm(r: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Points lost, the worse of neighbours and unrelated, with its interval turned round."""
    lost = [(-x["value"], -x["high"], -x["low"]) for x in (r["neighbours"], r["unrelated"]) if x]
    return max(lost, default=None)


def _exactly(x: float | None) -> tuple[float, float, float] | None:
    return None if x is None else (x, x, x)


def _points(rows: Sequence[Mapping[str, Any]], x: Any) -> list[dict[str, Any]]:
    """Name, x and y of what can be plotted, each with its limits."""
    found = [(r["name"], x(r), r["target"]) for r in rows]
    return [
        {"name": name, "x": at, "y": (y["value"], y["low"], y["high"])}
        for name, at, y in found
        if at is not None and y is not None
    ]


def front(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the points that no other one betters in both x and y, from left to right."""

    def beaten(p: Mapping[str, Any]) -> bool:
        a = (p["x"][0], p["y"][0])
        others = [(q["x"][0], q["y"][0]) for q in points]
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in others)

    return [p["name"] for p in sorted(points, key=lambda p: (p["x"][0], p["y"][0])) if not beaten(p)]


def scatter(
    points: Sequence[Mapping[str, Any]],
    x_label: str,
    labels: Mapping[str, str],
    *,
    log: bool = False,
    zero: bool = False,
) -> Markup:
    """Points with the whiskers of their 95 % intervals, names beside them, and a line along the best.

    Args:
        points: {"name", "x": (value, low, high), "y": (value, low, high)}; y in percent. "label": what stands beside
            the point, where it is not the name.
        labels: the subject's words: y of the axis, said of one point.
        log: of the x axis; values below a hundredth count as one.
        zero: marks x = 0.
    """
    if not points:
        return Markup('<p class="note">Nothing to plot.</p>')

    def scaled(v: float) -> float:
        return math.log10(max(v, 0.01)) if log else v

    xs = [scaled(v) for p in points for v in p["x"]] + ([0.0] if zero else [])
    pad = 0.08 * ((max(xs) - min(xs)) or 1.0)
    start, end = min(xs) - pad, max(xs) + pad

    def px(v: float) -> float:
        return _LEFT + (_W - _LEFT - _RIGHT) * (scaled(v) - start) / (end - start)

    def py(v: float) -> float:
        return _H - _BOTTOM - (_H - _BOTTOM - _TOP) * v / 100

    drawn = [_axes(start, end, px, py, (x_label, labels["y"]), log)]
    if zero:
        drawn.append(f'<line class="floor-line" x1="{px(0):.1f}" x2="{px(0):.1f}" y1="{_TOP}" y2="{_H - _BOTTOM}"/>')
    best = front(points)
    line = " ".join(f"{px(p['x'][0]):.1f},{py(p['y'][0]):.1f}" for n in best for p in points if p["name"] == n)
    drawn.append(f'<polyline class="front" points="{line}"/>')
    taken: list[tuple[float, float, float]] = []
    for p in sorted(points, key=lambda p: -p["y"][0]):
        (x, left, right), (y, low, high) = p["x"], p["y"]
        said = f"{p['name']}: {labels['said']} {y:.0f} % ({low:.0f} to {high:.0f}), {x_label} {x:.2g}"
        if right != left:
            said += f" ({left:.2g} to {right:.2g})"
            drawn.append(_line(px(left), px(right), py(y), py(y)))
        drawn.append(_line(px(x), px(x), py(low), py(high)))
        kind = "best" if p["name"] in best else "beaten"
        drawn.append(
            f'<circle class="{kind}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="5"><title>{escape(said)}</title></circle>'
        )
        drawn.append(_label(p.get("label", p["name"]), px(x), py(y), taken))
    names = ", ".join(f"{p['name']} at {p['x'][0]:.2g} and {p['y'][0]:.0f} %" for p in points)
    label = escape(f"{x_label}, against the share of {labels['y']}: {names}")
    return Markup(
        f'<svg class="scatter" viewBox="0 0 {_W} {_H}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
    )


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> str:
    """A name beside its point, moved up until it is free of the names before it."""
    wide, turned = 7.2 * len(name), x > 0.72 * _W
    start = x - 8 - wide if turned else x + 8
    at = y - 7
    while any(abs(at - other) < 13 and start < end and begin < start + wide for begin, end, other in taken):
        at -= 13
    taken.append((start, start + wide, at))
    where = f'x="{x - 8:.1f}" text-anchor="end"' if turned else f'x="{x + 8:.1f}"'
    return f'<text class="name" {where} y="{max(at, 11):.1f}">{escape(name)}</text>'


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="whisker" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _axes(start: float, end: float, px: Any, py: Any, labels: tuple[str, str], log: bool) -> str:
    base = _H - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{base}" y2="{base}"/>']
    for v in (0, 25, 50, 75, 100):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{py(v):.1f}" y2="{py(v):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{py(v) + 4:.1f}" text-anchor="end">{v} %</text>')
    if log:
        ticks = [10.0**e for e in range(math.ceil(start), math.floor(end) + 1)] or [10**start, 10**end]
    else:
        step = 10 ** math.floor(math.log10(end - start))
        step = next(s for s in (step / 5, step / 2, step, 2 * step) if (end - start) / s <= 8)
        ticks = [i * step for i in range(math.ceil(start / step), math.floor(end / step) + 1)]
    for v in ticks:
        text = f"{v:g}".replace("-", "−")
        parts.append(f'<text class="tick" x="{px(v):.1f}" y="{base + 16}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + _W - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{_LEFT}" y="{_TOP - 8}">{escape(labels[1])}</text>')
    parts.append(f'<text class="tick" x="{middle}" y="{_H - 8}" text-anchor="middle">{escape(labels[0])}</text>')
    return "".join(parts)


def _cells(r: Mapping[str, Any], best: bool, at: str) -> dict[str, Any]:
    return {
        "name": f"{at} {r['name']}" if at else r["name"],
        "best": best,
        "note": r["note"],
        "pictures": r["pictures"] or "–",
        "before": _rate(r["before"]),
        "target": _rate(r["target"]),
        "neighbours": _rate(r["neighbours"], signed=True),
        "unrelated": _rate(r["unrelated"], signed=True),
        "seconds": number(r["seconds"]),
        "forwards": "–" if r["forwards"] is None else f"{r['forwards']:,}",
        "memory": "–" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:.0f} MB",
        "patch": "–" if r["patch_bytes"] is None else f"{r['patch_bytes'] / 1e6:.2g} MB",
    }


def _rate(x: Mapping[str, float] | None, *, signed: bool = False) -> tuple[str, str]:
    """The value, and its interval in brackets."""
    if x is None:
        return "–", ""
    form = "+.1f" if signed else ".1f"
    value, low, high = (f"{x[k]:{form}}".replace("-", "−") for k in ("value", "low", "high"))
    return value + ("" if signed else "\u2009%"), f"({low} to {high})"
