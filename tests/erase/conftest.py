"""What every batch of training was given, while a system goes on working."""

from __future__ import annotations

from typing import Any

import pytest

from palimpsest.erase import few_shot, geom_erasing
from palimpsest.ops import drawn as drawing
from palimpsest.train.walks import KeptWalk


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Any]]:
    """Every batch of walked points that a system trains on, with its prompts."""
    seen: list[tuple[list[str], Any]] = []
    points = KeptWalk.points

    def watch(self: KeptWalk, step: Any) -> Any:
        found = points(self, step)
        seen.append(([self.prompts[int(i)] for i in found.row], found))
        return found

    monkeypatch.setattr(KeptWalk, "points", watch)
    return seen


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every batch of noisy pictures that a system trains on."""
    seen: list[Any] = []

    def watch(*args: Any) -> Any:
        seen.append(drawing.noised(*args))
        return seen[-1]

    monkeypatch.setattr(few_shot, "noised", watch)
    monkeypatch.setattr(geom_erasing, "noised", watch)
    return seen
