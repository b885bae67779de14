"""The one shape of all that is examined: cases, seeds, and a function that writes down what a system does there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.exam.budgets import said

Case = Mapping[str, Any]
Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]  # by system
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One kind of work.

    Args:
        name: that of its module. verb: whose systems it is about.
        cases: plain mappings, as JSON holds them. seeds: each case is done with all of them.
        examine: (system, case, seed) -> the record, plain JSON; it runs in a process of its own.
        systems: ids, and stand-ins for comparison ("untouched"); () is every system of the verb.
        called: the fields by which a case is called, also in a system's budget; () where the exam's name is enough.
        version: of the work; a change of it, of a case or of anything that `digest.key` follows is another work.
        part: the list of a results' file that holds the records; "records" is a study's, in a file of its own.
        label: how a record calls its case; "" where there is one case only.
        with_verb: whether asking for the verb runs this study, too.
        missing: why a case cannot be done here; "" where it can.
        columns: of the study's table: heading -> what a system has below it, from all records.
    """

    name: str
    verb: str
    cases: tuple[Case, ...]
    examine: Callable[[str, Case, int], dict[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)
    systems: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    version: int = 1
    part: str = "records"
    label: str = ""
    with_verb: bool = False
    missing: Callable[[Case], str] = lambda case: ""
    columns: Mapping[str, Callable[[str, Records], str]] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """How many records a system has when it is wholly examined."""
        return len(self.cases) * len(self.seeds)

    def words(self, case: Case) -> str:
        """A case in words: "star", "digits, class", "attack"."""
        return ", ".join(case[name] for name in self.called) or self.name

    def models(self, case: Case) -> tuple[str, ...]:
        """Names of the shipped models that a case is done on."""
        return tuple(case[name] for name in ("host", "oracle", "task") if name in case)

    def examined(self) -> tuple[str, ...]:
        """Ids of the installed systems that it is about, and its stand-ins."""
        known = catalog.entries()
        if self.systems:
            return tuple(s for s in self.systems if "/" not in s or s in known)
        return tuple(s for s in known if s.startswith(self.verb + "/") and not said(s, "elsewhere"))

    def work(self, systems: Sequence[str] = ()) -> Iterator[tuple[str, Case, int]]:
        """(system, case, seed) of every run, those of one case together; only of `systems` where they are given."""
        for case in (c for c in self.cases if not self.missing(c)):
            for seed in self.seeds:
                yield from ((s, case, seed) for s in self.examined() if not systems or s in systems)

    def module(self) -> ModuleType:
        """Where it is defined."""
        return importlib.import_module(self.examine.__module__)


def cases(module: str) -> tuple[Case, ...]:
    """The cases beside a module's file: <module>.json, a list of mappings, whose lists become tuples."""
    listed = json.loads(Path(module).with_suffix(".json").read_text(encoding="utf-8"))
    return tuple({k: tuple(v) if isinstance(v, list) else v for k, v in case.items()} for case in listed)


def rule_of(system: str) -> ModuleType | None:
    """`rules/<verb>/<leaf>.py`, where a paper claims something of its own; None where the verb's rule is enough.

    A rule may hold `judge(system, main, studied) -> Judged`, and `compared(main, studied)`, rows (the paper's claim,
    what was found, verdict) against another system.
    """
    verb, _, leaf = system.partition("/")
    there = (HERE / "rules" / verb / f"{leaf}.py").is_file() and system in catalog.entries()
    return importlib.import_module(f"palimpsest.exam.rules.{verb}.{leaf}") if there else None


@cache
def exams() -> dict[str, Exam]:
    """Every exam by name: the verbs' first, then the studies, then those of other packages.

    A package brings one by the entry-point group "palimpsest.exams": name = exam, value = the module with its `EXAM`.
    """
    files = [(room, f.stem) for room in ("verbs", "studies") for f in sorted((HERE / room).glob("[a-z]*.py"))]
    names = [f"palimpsest.exam.{room}.{stem}" for room, stem in files]
    names += [point.module for point in entry_points(group="palimpsest.exams")]
    return {m.EXAM.name: m.EXAM for m in map(importlib.import_module, names)}


def asked(what: str) -> list[tuple[Exam, tuple[str, ...]]]:
    """The exams that a word of the command means, each with the only systems that are wanted, () for all.

    Args:
        what: a verb ("erase"), a system ("erase/uce"), "studies", or one study ("studies/attack").

    Raises:
        BadRequest: there is no such exam, system or study, or the system is not examined.
    """
    verb, _, name = what.partition("/")
    studies = {e.name: e for e in exams().values() if e.name != e.verb}
    if verb == "studies":
        if name and name not in studies:
            raise BadRequest(f"There is no study {name!r}; the studies are {', '.join(studies)}.")
        return [(e, ()) for e in studies.values() if (e.name == name if name else not e.with_verb)]
    if name:
        verb = catalog.find(what).id.split("/")[0]
    if verb not in exams() or exams()[verb].verb != verb:
        catalog.find(what)  # says so of a system that does not exist
        raise BadRequest(f"There is no exam for {verb}; there is one for {', '.join(e.verb for e in verbs())}.")
    both = [exams()[verb], *(e for e in studies.values() if e.with_verb and e.verb == verb)]
    if not name:
        return [(e, ()) for e in both]
    system = catalog.find(what).id
    fitting = [e for e in both if system in e.examined()]
    if not fitting:
        raise BadRequest(f"{system} is not examined: {said(system, 'elsewhere')}.")
    return [(e, (system, *(s for s in e.systems if "/" not in s))) for e in fitting]


def verbs() -> list[Exam]:
    """The exams of whole verbs."""
    return [e for e in exams().values() if e.name == e.verb]
