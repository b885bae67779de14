"""A measured number, with everything needed to believe it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Who judged a picture: enough to find the same judge again.

    Args:
        name: e.g. "glyphs oracle", "CLIP ViT-L/14", "NudeNet".
        version: of the weights or the package.
        sha256: of the weights, "" for formulas without weights.
        threshold: probability from which a class counts as present; None where the largest one wins.
        classes: the class list that was used.
        licence: of the weights, since some judges restrict their use.
        judges_itself: it is the audited model, untouched; its errors are known from that model's pictures alone.
    """

    name: str
    version: str
    sha256: str = ""
    threshold: float | None = None
    classes: tuple[str, ...] = ()
    licence: str = ""
    judges_itself: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """A paired change of a rate, in points, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a plot; low and high are its band, empty where it has none."""

    name: str
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A plot: lines over one axis, each with one y for every x."""

    x: tuple[float, ...]
    x_label: str
    y_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """A row of a matrix: what is seen, in percent before and after and in points of change, by column."""

    columns: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    change: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One number of a receipt.

    Args:
        name: what was measured, e.g. "presence". value: the estimate. low, high: its 95 % interval.
        concept: about which concept, "" for all. role: "target", "neighbour", "unrelated" or "all".
        n: how many independent pictures (or samples, or tensors) stand behind it. unit: "%", "nat"; "" for none.
        before: the same number for the untouched model; None where it has no meaning.
        floor: the 95 % noise floor of |value - before|: what two seeds of the untouched model differ by.
        p: of the null "the edit changed nothing", after correction for the number of concepts.
        visible: the smallest value that counts as a change, for readings that have no test; None for those that have
            one and for those that only describe.
        change: the paired change, where the value is a rate of pictures or samples that exist before and after.
        references: the same number of each model that never saw the target; None where it was not asked.
        curve: the plot behind the number. row: the matrix row behind it.
        evaluator: who judged. detail: anything else that the reader may want, plain JSON.
    """

    name: str
    value: float
    concept: str = ""
    role: str = "all"
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    unit: str = ""
    before: float | None = None
    floor: float | None = None
    p: float | None = None
    visible: float | None = None
    evaluator: Evaluator | None = None
    change: Change | None = None
    references: tuple[float, ...] | None = None
    curve: Curve | None = None
    row: MatrixRow | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
