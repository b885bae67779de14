"""Which label a name means: to the letter, normalised, by a synonym, by its number; never by a guess."""

from __future__ import annotations

import unicodedata

import pytest

from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest
from palimpsest.core.reading import Evaluator
from palimpsest.ops.names import meant, only
from palimpsest.probes.evaluators import classes_of

LABELS = ("tench, Tinca tinca", "maillot", "maillot, tank suit", "church, church building", "crane", "crane", "Café")


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("maillot", LABELS, (1,)),  # to the letter, before the synonym of another
        ("Tench,  tinca TINCA", LABELS, (0,)),
        (unicodedata.normalize("NFD", "Café"), LABELS, (6,)),
        ("church", LABELS, (3,)),
        ("church_building", LABELS, (3,)),
        ("Tinca tinca, a fish", LABELS, (0,)),
        ("crane", LABELS, (4, 5)),
        ("tank", LABELS, ()),
        ("3", ("five", "3", "LABEL_3"), (1,)),
        ("03", ("5", "3"), (1,)),
        ("3", ("LABEL_2", "LABEL_3"), (1,)),
        ("LABEL_3", ("2", "3"), (1,)),
        ("3", ("zero", "one", "two", "three"), ()),
        ("three", ("2", "3"), ()),
        ("", ("", ","), (0,)),
        (" ", LABELS, ()),
    ],
)
def test_what_a_name_means(name: str, labels: tuple[str, ...], expected: tuple[int, ...]) -> None:
    assert meant(name, labels) == expected


def test_two_readings_are_refused_and_both_shown() -> None:
    with pytest.raises(BadRequest, match=r"'crane' of m may be 'crane' \(number 4\) or 'crane' \(number 5\)"):
        only("crane", LABELS, "class", "m")
    with pytest.raises(BadRequest, match=r"m has no class 'churhc'.*Known: tench"):
        only("churhc", LABELS, "class", "m")
    assert only("tench", LABELS, "class", "m") == 0


def test_a_judges_label_of_several_names_is_seen_by_each() -> None:
    judge = Evaluator(name="judge", version="1", classes=LABELS)
    assert classes_of(judge, Concept(name="church")) == [3]
    assert classes_of(judge, Concept(name="a church", labels=("church building", "Tench"))) == [3, 0]
    with pytest.raises(BadRequest, match=r"number 4.*number 5.*labels=\(4,\)"):
        classes_of(judge, Concept(name="Crane"))
    assert classes_of(judge, Concept(name="Crane", labels=(5,))) == [5]
