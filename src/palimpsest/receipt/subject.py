"""What a receipt can be about: how its evidence is collected, which probes read it, and how it is told.

A subject is a file `receipt/subjects/<name>.py` with one class named like it, or an entry point of the group
"palimpsest.subjects" (name = the subject's name, value = its class). Probes of other packages come through the group
"palimpsest.probes" (value = a Probe class); they read the subjects that they name.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.ops.statistics import Interval
from palimpsest.probes.evidence import Evidence, Probe
from palimpsest.receipt.finding import Finding
from palimpsest.receipt.method import cost_of, method_plain

Form = Literal["figures", "pairs", "table", "matrix", "curves"]
Sentence = Mapping[str, str]
_HERE = Path(__file__).parent / "subjects"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Args:
        title, note: for the reader. readings: names of those that it tells.
        role: tells readings of this role alone, which then stand in no other section; "": those of all others.
        form: figures (large, at the top), pairs (pictures before and after), table, matrix, or curves.
    """

    title: str
    readings: tuple[str, ...] = ()
    note: str = ""
    role: str = ""
    form: Form = "table"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row of the gallery as the page shows it: what was asked for, in which role, and what a judge sees."""

    row: int
    role: str
    name: str
    reason: str
    prompt: str
    seed: int | None  # None: nothing was drawn from one
    judged: tuple[bool, bool] | None = None  # whether the judge sees what was asked for, before and after


def said(pair: Pair) -> str:
    """A pair's prompt and seed in words."""
    prompt = f"“{pair.prompt}”" if pair.prompt else "the empty prompt"
    return prompt if pair.seed is None else f"{prompt}, seed {pair.seed}"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A receipt's row of a comparison: shares and changes in 0..1.

    Args:
        target: what still shows of the target; before: in the untouched model.
        neighbours, unrelated: changes of what should stay; None where nothing was measured. n: rows behind target.
    """

    target: Interval
    before: Interval
    neighbours: Interval | None
    unrelated: Interval | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Again:
    """Evidence that was collected again: `rows` of each set of the receipt that it covers; None: all of them.

    `readings`: whether every reading of the receipt follows from it. `left`: what it does not cover, in words.
    `found`: what was found before anything was asked again.
    """

    evidence: Evidence
    rows: Mapping[str, Sequence[int]] | None = None
    readings: bool = False
    left: str = ""
    found: tuple[Finding, ...] = ()


class Subject(ABC):
    """One thing that receipts are about. An instance holds what measuring takes beside the two models.

    Args:
        counted: what n counts, in words. probes: its own, in the order in which a receipt tells them.
        sections: of the page, in order. terms: (term, text) of its last part. roles: id -> (title, note) of pairs.
        compared: the words of a comparison's columns and axes.
        attempts: names of the readings that `beyond` makes.
        sides: what the two things that are compared are called. kinds: what the second may be.
    """

    name: ClassVar[str]
    counted: ClassVar[str]
    probes: ClassVar[tuple[Probe, ...]]
    sections: ClassVar[tuple[Section, ...]]
    terms: ClassVar[tuple[tuple[str, str], ...]]
    roles: ClassVar[Mapping[str, tuple[str, str]]] = {}
    compared: ClassVar[Mapping[str, str]]
    attempts: ClassVar[tuple[str, ...]] = ()
    sides: ClassVar[tuple[str, str]] = ("untouched model", "edited model")
    kinds: ClassVar[tuple[str, ...]] = ("model", "patch")

    def settled(self, before: Any, request: Request) -> Subject:
        """The subject with everything that it leaves open chosen for a model and a request."""
        return self

    @abstractmethod
    def collect(
        self, before: Any, after: Any, request: Request, *, folder: Path | None, resume: bool, trace: Trace
    ) -> Evidence:
        """Asks the models about every row once.

        Args:
            before: the untouched model. after: a Patch for it, or the edited model.
            folder: where to keep what takes long as soon as it is there; resume: take what an interrupted audit left.
        """

    def beyond(self, before: Any, after: Any, request: Request, trace: Trace) -> list[Reading]:
        """Readings of further models, which follow from no kept evidence."""
        return []

    def sources(self, before: Any) -> dict[str, str]:
        """Evaluator's name -> what loads it again."""
        return {}

    def made(self, evidence: Evidence) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Who made the change, as a receipt states it (None: nobody knows), and what that took."""
        return method_plain(evidence.patch), cost_of(evidence.patch)

    def at(self, data: Mapping[str, Any], folder: Path) -> Subject:
        """The subject, told of a receipt and the folder that it lies in, before anything is loaded."""
        return self

    def loader(self, load: Callable[[str], Any]) -> Callable[[str], Any]:
        """What loads the two sides by the names that a receipt keeps; here they are models, and `load` loads these."""
        return load

    @abstractmethod
    def again(self, kept: Evidence, before: Any, after: Any, how: str, trace: Trace) -> Again | list[Finding]:
        """Collects a receipt's evidence again, a sample of it or all; findings where that is not possible.

        Args:
            kept: what the receipt keeps. how: "sample" or "all".
        """

    @classmethod
    @abstractmethod
    def kept(cls, data: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Evidence:
        """The evidence that a receipt keeps; `vectors` from the file beside it, {} where that is gone."""

    @classmethod
    @abstractmethod
    def words(
        cls, readings: Sequence[Reading], request: Request, evidence: Evidence
    ) -> tuple[str, list[dict[str, str]]]:
        """The headline, and sentences with their tone: "good", "bad", "unsure" or "plain"."""

    @classmethod
    @abstractmethod
    def figures(cls, readings: Sequence[Reading]) -> list[tuple[str, Reading]]:
        """The few numbers at the top, each with its name."""

    @classmethod
    @abstractmethod
    def rates(cls, evidence: Evidence) -> Rates:
        """A receipt's row of a comparison.

        Raises:
            BadRequest: the target was not measured.
        """

    @classmethod
    def pairs(cls, evidence: Evidence) -> list[Pair]:
        """Every row of the gallery, in order; none where the rows are no pictures that were drawn."""
        return []

    @classmethod
    def facts(cls, evidence: Evidence) -> list[tuple[str, str]]:
        """(term, text) of how the evidence was collected, for the page."""
        return []

    @classmethod
    def prints(cls, evidence: Evidence) -> list[tuple[str, str, str]]:
        """(what, name, hash) of what only this subject's receipts name, for the page."""
        return []

    @classmethod
    def wanted(cls, reading: Reading, evidence: Evidence) -> bool:
        """Whether a change of a target's reading is the one that was asked for."""
        return True

    @classmethod
    def checks(cls, data: Mapping[str, Any], evidence: Evidence, folder: Path) -> list[Finding]:
        """Findings about what only this subject's receipts state."""
        return []

    def ready(self, data: Mapping[str, Any], kept: Evidence, before: Any) -> tuple[Subject | None, list[Finding]]:
        """The subject with everything that `again` takes, None where something is missing; and what was found of it.

        Args:
            before: the untouched model; None where it is not there.
        """
        return self, []

    @classmethod
    def readings(cls, evidence: Evidence) -> list[Reading]:
        """Every reading of the probes whose needs the evidence meets, in the order in which a receipt tells them."""
        return [r for probe in cls.readers() if all(map(evidence.holds, probe.needs)) for r in probe.run(evidence)]

    @classmethod
    def readers(cls) -> tuple[Probe, ...]:
        """The subject's own probes, and those of other packages that read it."""
        return (*cls.probes, *(p for p in _foreign() if cls.name in p.subjects))


def find(name: str) -> type[Subject]:
    """The class of a subject.

    Raises:
        BadRequest: no such subject is installed.
    """
    known = {point.name: point for point in entry_points(group="palimpsest.subjects")}
    if name in known:
        return known[name].load()
    own = sorted(p.stem for p in _HERE.glob("[a-z]*.py"))
    if name not in own:
        raise BadRequest(f"There is no subject {name!r} of receipts; there are {', '.join([*own, *known])}.")
    module = importlib.import_module(f"palimpsest.receipt.subjects.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))


def subject_of(data: Mapping[str, Any]) -> type[Subject]:
    """The class of a receipt's subject.

    Raises:
        Damaged: it is not installed.
    """
    try:
        return find(data["subject"])
    except BadRequest as e:
        raise Damaged(f"This receipt cannot be read here: {e} Install the package that wrote it.") from e


@cache
def _foreign() -> tuple[Probe, ...]:
    return tuple(point.load()() for point in entry_points(group="palimpsest.probes"))
