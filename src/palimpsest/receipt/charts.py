"""Small drawings inside the receipt, as SVG text. Colours come from the page's style sheet."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from palimpsest.core.printable import printable
from palimpsest.core.reading import Curve

_W, _H = 220, 26  # of a range plot, in its own units
_CURVE = (560, 260)
_MARGIN = (44, 12, 34, 14)  # left, right, bottom, top of a curve plot


def range_plot(before: float, after: float, low: float, high: float, floor: float, mood: str) -> Markup:
    """A rate before and after on a line from 0 to 100, with the interval and the noise floor around `before`."""
    middle = _H / 2

    def x(v: float) -> str:
        return f"{6 + (_W - 12) * min(100.0, max(0.0, v)) / 100:.1f}"

    left, right = float(x(before - floor)), float(x(before + floor))
    label = f"before {before:.0f}, after {after:.0f} (interval {low:.0f} to {high:.0f}), noise floor {floor:.0f} points"
    return Markup(
        f'<svg class="range {escape(mood)}" viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(label)}">'
        f'<line class="axis" x1="{x(0)}" x2="{x(100)}" y1="{middle}" y2="{middle}"/>'
        f'<rect class="floor" x="{left}" width="{right - left:.1f}" y="3" height="{_H - 6}" rx="2"/>'
        f'<line class="whisker" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="before" cx="{x(before)}" cy="{middle}" r="5"/>'
        f'<circle class="after" cx="{x(after)}" cy="{middle}" r="4.5"/></svg>'
    )


def curves(curve: Curve, title: str) -> Markup:
    """Lines with bands over one axis."""
    w, h = _CURVE
    left, right, bottom, top = _MARGIN
    xs = [float(v) for v in curve.x]
    ys = [float(v) for s in curve.series for line in (s.y, s.low, s.high) for v in line]
    lowest, highest = min([0.0, *ys]), max([*ys, 1e-9])

    def px(v: float) -> float:
        return left + (w - left - right) * (v - xs[0]) / ((xs[-1] - xs[0]) or 1.0)

    def py(v: float) -> float:
        return h - bottom - (h - top - bottom) * (v - lowest) / ((highest - lowest) or 1.0)

    drawn = [_frame(curve, xs, (lowest, highest), px, py)]
    for i, series in enumerate(curve.series):
        points = [(px(x), py(float(y))) for x, y in zip(xs, series.y, strict=True)]
        if series.low:
            band = [(px(x), py(float(v))) for x, v in zip(xs, series.high, strict=True)]
            band += [(px(x), py(float(v))) for x, v in zip(xs[::-1], series.low[::-1], strict=True)]
            drawn.append(f'<polygon class="band s{i % 4}" points="{_path(band)}"/>')
        drawn.append(f'<polyline class="line s{i % 4}" points="{_path(points)}"/>')
        end = points[-1]
        drawn.append(
            f'<text class="key s{i % 4}" x="{end[0] - 4:.1f}" y="{end[1] - 6:.1f}" text-anchor="end">'
            f"{escape(printable(series.name))}</text>"
        )
    label = escape(printable(title))
    return Markup(f'<svg class="curves" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{"".join(drawn)}</svg>')


def _frame(curve: Curve, xs: list[float], span: tuple[float, float], px: Any, py: Any) -> str:
    """Axes with their end values and names."""
    w, h = _CURVE
    left, right, bottom, _ = _MARGIN
    parts = [f'<line class="axis" x1="{left}" x2="{w - right}" y1="{h - bottom}" y2="{h - bottom}"/>']
    for v in span:
        parts.append(f'<text class="tick" x="{left - 6}" y="{py(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for v in (xs[0], xs[-1]):
        parts.append(f'<text class="tick" x="{px(v):.1f}" y="{h - bottom + 15}" text-anchor="middle">{v:g}</text>')
    parts.append(
        f'<text class="tick" x="{w / 2}" y="{h - 4}" text-anchor="middle">{escape(printable(curve.x_label))}</text>'
    )
    parts.append(f'<text class="tick" x="{left}" y="10">{escape(printable(curve.y_label))}</text>')
    return "".join(parts)


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
