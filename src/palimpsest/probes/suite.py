"""All probes, in the order in which a receipt tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.probes.closeness import Closeness
from palimpsest.probes.collapse import Collapse
from palimpsest.probes.distance import Distance
from palimpsest.probes.drift import Drift
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.leakage import Leakage
from palimpsest.probes.oracle_gap import OracleGap
from palimpsest.probes.presence import Presence
from palimpsest.probes.weights import Weights


class Probe(Protocol):
    """One kind of reading.

    `from_receipt`: its readings follow from what a receipt keeps, so that `verify` computes them again without
    drawing a picture.
    """

    @property
    def name(self) -> str: ...
    @property
    def from_receipt(self) -> bool: ...
    def run(self, evidence: Evidence) -> list[Reading]:
        """Readings of collected evidence; draws nothing, deterministic."""
        ...


PROBES: tuple[Probe, ...] = (
    Presence(),
    Leakage(),
    Drift(),
    Distance(),
    Collapse(),
    OracleGap(),
    Closeness(),
    Weights(),
)


def readings(evidence: Evidence, *, from_receipt: bool = False) -> list[Reading]:
    """Every reading of an audit; with `from_receipt` only those that need no picture."""
    return [r for probe in PROBES if probe.from_receipt or not from_receipt for r in probe.run(evidence)]


def measures(evidence: Evidence) -> Mapping[str, Tensor]:
    """The per-picture numbers that a receipt keeps, by name."""
    return {**Drift().measure(evidence), **Collapse().measure(evidence)}
