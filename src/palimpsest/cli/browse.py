"""palimpsest ls, show and doctor"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the systems.

    Examples:
      palimpsest ls erase
    """

    verb: Annotated[Positional[str], arg(metavar="VERB")] = ""
    """Only this verb's."""
    json: bool = False
    """As JSON."""

    def run(self, rest: list[str], command: str) -> int:
        if self.verb and self.verb not in catalog.verbs():
            raise BadRequest(f"There is no verb {self.verb!r}; the verbs are {', '.join(catalog.verbs())}.")
        found = [e for e in catalog.entries().values() if e.id.startswith(f"{self.verb}/" if self.verb else "")]
        if self.json:
            print(json.dumps([{"id": e.id, **asdict(e.card)} for e in found], indent=1))
            return 0
        for e in found:
            print(f"{e.id:24} {e.card.year}  {e.card.name:18} {e.card.family:14} {e.card.title}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Everything about one system: paper, claim, parameters, docs.

    Examples:
      palimpsest show erase/esd
    """

    system: Annotated[Positional[str], arg(metavar="SYSTEM")]
    """Its id, e.g. erase/esd."""
    json: bool = False
    """As JSON."""

    def run(self, rest: list[str], command: str) -> int:
        e = catalog.find(self.system)
        if self.json:
            print(json.dumps({**asdict(e), **asdict(e.card)}, indent=1))
            return 0
        print(
            f"{e.card.name} ({e.id})\n{e.card.title}, {e.card.year}\n{e.card.paper}\nclaim: {e.card.claim}\n\n{e.doc}\n"
        )
        print(own_options(e))
        return 0


def own_options(system: catalog.Entry) -> str:
    """A system's options as its verb's command takes them: a line each, with the values that they may have."""
    from palimpsest.cli import commands

    taken = commands()[system.id.partition("/")[0]].__dataclass_fields__
    own = [(f"{'method.' * (p.name in taken)}{p.name.replace('_', '-')}", p) for p in system.parameters]
    return "\n".join(f"  --{option:22} {p.type:34} default {p.default}" for option, p in own)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Versions, devices, and what is installed.

    Examples:
      palimpsest doctor --json
    """

    json: bool = False
    """As JSON."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.run import doctor

        found = doctor()
        print(json.dumps(found, indent=1) if self.json else "\n".join(f"{k:16} {v}" for k, v in found.items()))
        return 0
