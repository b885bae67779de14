"""Processes that stay: everybody works, nobody waits for a starter, what dies is done again, errors come back."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crew_fixtures import Note, cannot, deaf, fails, odd, slow, whose
from palimpsest import processes
from palimpsest.core.errors import PalimpsestError
from palimpsest.processes import ATTEMPTS, Workers, cores, spread

PIECES = [Note(i) for i in range(8)]


class Kept(dict[Note, int]):
    """What was kept: by piece, whose work it is; `here` works slowly until somebody else has done something."""

    def here(self, piece: Note, between: Callable[[], None]) -> int:
        end = time.monotonic() + 60
        while not set(self.values()) - {os.getpid()} and time.monotonic() < end:
            between()
            time.sleep(0.01)
        return os.getpid()

    def keep(self, piece: Note, who: int) -> None:
        assert piece not in self, "every piece is kept once"
        self[piece] = who


def test_this_process_and_others_share_the_pieces() -> None:
    kept = Kept()
    with Workers(2) as crew:
        crew.share(whose, PIECES, kept.keep, kept.here, alone=lambda piece: piece.number in (3, 5))
        assert set(kept) == set(PIECES)
        assert os.getpid() in kept.values()
        assert set(kept.values()) - {os.getpid()}
        assert {kept[Note(3)], kept[Note(5)]} == {os.getpid()}, "what only this process can do"
        assert all(deaf for _, deaf in crew.each(deaf, PIECES[:2])), "Ctrl-C is this process's to hear"
        others = {process.pid for process in multiprocessing.active_children()}
        again = {who for _, who in crew.each(whose, PIECES)}
        assert again <= others, "the same processes serve the next call"
    assert not multiprocessing.active_children()


def test_a_killed_process_costs_its_piece_alone(tmp_path: Path) -> None:
    pieces = [Note(0, str(tmp_path)), *PIECES[1:]]
    kept = Kept()
    with Workers(1) as crew:
        crew.share(whose, pieces, kept.keep, kept.here, alone=lambda piece: piece.number > 4)
    assert set(kept) == set(pieces)
    assert (tmp_path / "died").exists()


def test_nobody_waits_for_a_process_that_starts() -> None:
    done: list[Note] = []
    with Workers(1, prepare=slow) as crew:  # type: ignore[arg-type]
        start = time.monotonic()
        crew.share(whose, PIECES, lambda piece, who: done.append(piece), lambda piece, between: os.getpid())
        assert time.monotonic() - start < 30
    assert done == PIECES


def test_a_process_that_cannot_be_prepared_takes_no_part() -> None:
    seen: list[int] = []

    def here(piece: Note, between: Callable[[], None]) -> int:
        end = time.monotonic() + 60
        while crew._left and time.monotonic() < end:
            between()
            time.sleep(0.01)
        return os.getpid()

    with Workers(1, prepare=cannot) as crew, pytest.warns(UserWarning, match="takes no part: number 1 has no room"):
        crew.share(whose, PIECES, lambda piece, who: seen.append(who), here)
    assert seen == [os.getpid()] * len(PIECES)
    with (
        Workers(1, prepare=cannot) as crew,
        pytest.warns(UserWarning, match="takes no part"),
        pytest.raises(PalimpsestError, match="number 1 has no room"),
    ):
        list(crew.each(whose, PIECES))


def test_a_process_that_never_starts_is_given_up() -> None:
    with (
        Workers(1, prepare=_end) as crew,
        pytest.warns(UserWarning, match=f"it died {ATTEMPTS} times before it could work"),
        pytest.raises(PalimpsestError, match="No process is left to work"),
    ):
        list(crew.each(whose, PIECES))


def _end(number: int) -> None:
    os._exit(1)


def test_errors_and_results_that_cannot_be_sent_come_back_in_words() -> None:
    with Workers(1) as crew, pytest.raises(KeyError, match="the key") as found:
        list(crew.each(fails, [Note(0)]))
    assert "crew_fixtures" in str(found.value.__cause__), "with the other process's traceback"
    assert not multiprocessing.active_children(), "after an error nobody goes on"
    with Workers(1) as crew, pytest.raises(PalimpsestError, match="Own: ab"):
        list(crew.each(fails, [Note(1)]))
    with Workers(1) as crew, pytest.raises(PalimpsestError, match="cannot be sent"):
        list(crew.each(odd, [Note(1)]))


def test_an_interruption_ends_the_others_at_once() -> None:
    def interrupted(piece: Note, between: Callable[[], None]) -> int:
        end = time.monotonic() + 60
        while not crew._busy and time.monotonic() < end:
            between()
            time.sleep(0.01)
        raise KeyboardInterrupt

    start = time.monotonic()
    with Workers(1) as crew, pytest.raises(KeyboardInterrupt):
        crew.share(slow, PIECES, lambda piece, number: None, interrupted)
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


def test_without_others_all_is_done_here() -> None:
    with Workers(0) as crew:
        seen: list[Note] = []
        crew.share(whose, PIECES, lambda piece, who: seen.append(piece), lambda piece, between: 1)
    assert seen == PIECES
    assert not list(spread(whose, []))


@pytest.mark.parametrize(("quota", "least"), [("max 100000", 2), ("100000 100000", 1), ("150000 100000", 2)])
def test_a_containers_share_of_the_cores_counts(
    quota: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(processes, "Path", lambda name: tmp_path / Path(name).name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert cores() == least
