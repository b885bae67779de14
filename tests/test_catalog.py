"""The catalog reads verbs and cards from source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts_fixtures import folder_of
from palimpsest.core import catalog
from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.load import load

SYSTEM = '''
from dataclasses import dataclass
from typing import ClassVar
from palimpsest.core.card import Card

raise RuntimeError("reading a card must not run the file")

@dataclass
class Mine:
    """One line."""
    card = Card(name="Mine", title="T", year=2024, paper="p", family="f", needs="Denoiser", claim="c")
    steps: int = 3
    name: ClassVar[str] = "x"
'''
VERB = """
from palimpsest.core.verb import Verb

raise RuntimeError("reading a verb must not run the file")

VERB = Verb(does="Smudge.", makes="ModelEdit", subject="generator", default="mine", asks=("target",))
"""
AWAY = '''
from dataclasses import dataclass
from palimpsest.core.card import Card
from palimpsest.core.method import SamplingEdit

@dataclass(frozen=True, kw_only=True)
class Away(SamplingEdit):
    """Draws everything a little nearer to nothing."""
    card = Card(name="Away", title="T", year=2024, paper="p", family="sampling", needs="Denoiser", claim="c")
    strength: float = 0.5

    def guide(self, host, request, *learned):
        return lambda step: step.x0(step.cond)[0] * (1 - self.strength)
'''


def forget() -> None:
    for cached in (catalog.entries, catalog.verbs, catalog._tree):
        cached.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path in which packages can be installed."""
    folder = tmp_path / "site"
    (folder / "mine-1.0.dist-info").mkdir(parents=True)
    (folder / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    forget()


def declare(site: Path, text: str) -> None:
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(text)


def test_verbs_and_cards_are_read_without_running_the_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = site / "ours"
    (root / "smudge").mkdir(parents=True)
    (root / "smudge" / "__init__.py").write_text(VERB)
    (root / "smudge" / "mine.py").write_text(SYSTEM)
    (root / "smudge" / "no_card.py").write_text("x = 1")
    monkeypatch.setattr(catalog, "ROOT", root)
    assert list(catalog.verbs()) == ["smudge"]
    assert catalog.verbs()["smudge"].asks == ("target",)
    assert list(catalog.entries()) == ["smudge/mine"]
    entry = catalog.entries()["smudge/mine"]
    assert isinstance(entry.card, Card)
    assert entry.doc == "One line."
    assert [(p.name, p.type, p.default) for p in entry.parameters] == [("steps", "int", "3")]


def test_verbs_of_other_packages_bring_their_systems(site: Path) -> None:
    (site / "their_package" / "smudge").mkdir(parents=True)
    (site / "their_package" / "__init__.py").write_text("raise RuntimeError('parents are not imported')")
    (site / "their_package" / "smudge" / "__init__.py").write_text(VERB)
    (site / "their_package" / "smudge" / "mine.py").write_text(SYSTEM)
    declare(site, "[palimpsest.verbs]\nsmudge = their_package.smudge\n")
    assert list(catalog.verbs())[-1] == "smudge"
    assert catalog.find("mine", "smudge").module == "their_package.smudge.mine"
    assert catalog.id_of("their_package.smudge.mine") == "smudge/mine"


def test_a_system_of_another_package_is_applied_from_its_file(site: Path, tmp_path: Path) -> None:
    (site / "their_away.py").write_text(AWAY)
    declare(site, "[palimpsest.systems]\nerase/away = their_away\n")
    host = load(str(folder_of("sd")))
    method = catalog.load("erase/away")()
    assert method.id == "erase/away"
    patch = method(host, Request(target=(Concept(name="star"),)))
    loaded = Patch.load(patch.save(tmp_path / "away.safetensors"))
    plain = host.sample(["a star"], [0], Sampling(steps=2))  # type: ignore[attr-defined]
    with loaded.applied(host):
        assert not host.sample(["a star"], [0], Sampling(steps=2)).equal(plain)  # type: ignore[attr-defined]
    from palimpsest.receipt.method import method_plain

    made = method_plain(loaded)
    assert made is not None
    assert made["card"]["name"] == "Away"


@pytest.mark.parametrize("system", list(catalog.entries()))
def test_parameters_are_those_that_the_class_takes(system: str) -> None:
    declared = [(p.name, p.default) for p in catalog.find(system).parameters]
    taken = [f for f in dataclasses.fields(catalog.load(system)) if f.init]
    assert [name for name, _ in declared] == [f.name for f in taken]
    for (_, default), field in zip(declared, taken, strict=True):
        assert (default == "") == (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )


@pytest.mark.parametrize("system", sorted(i for i, e in catalog.entries().items() if "Source:" in e.doc))
def test_a_card_cites_the_paper_of_the_formula(system: str) -> None:
    """Whoever used the system for a purpose of their own is named in `as_used_in`, not as its source."""
    entry = catalog.find(system)
    first, *_ = re.findall(r"\d{4}\.\d{5}|10\.\d{4,}/\S+?(?=[.;,]?(?:\s|$))", entry.doc.split("Source:")[1])
    assert first in entry.card.paper


def test_close_names_are_offered() -> None:
    with pytest.raises(BadRequest, match="erase/esd"):
        catalog.find("esdd", "erase")
    assert catalog.find("ESD", "erase").id == "erase/esd"


def test_every_verb_has_a_command() -> None:
    from palimpsest.cli import commands

    assert set(catalog.verbs()) <= set(commands())
