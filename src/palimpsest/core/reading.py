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
    """

    name: str
    version: str
    sha256: str = ""
    threshold: float | None = None
    classes: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One number of a receipt.

    Args:
        name: what was measured, e.g. "presence".
        concept: about which concept, "" for all.
        role: "target", "neighbour", "unrelated" or "all".
        value: the estimate. low, high: its 95 % interval.
        n: how many independent pictures (or tensors) stand behind it.
        unit: "%", "px", "nat", ... ; "" for pure numbers.
        higher_is_better: None where neither is (a plain description).
        before: the same number for the untouched model; None where it has no meaning.
        floor: the 95 % noise floor of |value - before|: what two seeds of the untouched model differ by.
        p: of the null "the edit changed nothing", after correction for the number of concepts.
        evaluator: who judged.
        detail: anything else that the reader may want, plain JSON.
    """

    name: str
    value: float
    concept: str = ""
    role: str = "all"
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    unit: str = ""
    higher_is_better: bool | None = None
    before: float | None = None
    floor: float | None = None
    p: float | None = None
    evaluator: Evaluator | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
