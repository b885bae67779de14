"""The catalog reads cards from source."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.core import catalog
from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest

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


@pytest.fixture
def _fresh() -> object:
    catalog.entries.cache_clear()
    yield
    catalog.entries.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_cards_are_read_without_running_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "erase").mkdir()
    (tmp_path / "erase" / "mine.py").write_text(SYSTEM)
    (tmp_path / "erase" / "no_card.py").write_text("x = 1")
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    entries = {k: e for k, e in catalog.entries().items() if k.startswith("erase/")}
    assert list(entries) == ["erase/mine"]
    entry = entries["erase/mine"]
    assert isinstance(entry.card, Card)
    assert entry.doc == "One line."
    assert [(p.name, p.type, p.default) for p in entry.parameters] == [("steps", "int", "3")]


def test_close_names_are_offered() -> None:
    with pytest.raises(BadRequest, match="erase/esd"):
        catalog.find("esdd", "erase")
    assert catalog.find("ESD", "erase").id == "erase/esd"
