"""The receipt's JSON and page: complete, small, alone, and safe whatever names it is given."""

from __future__ import annotations

import base64
import csv
import json
import re
from dataclasses import replace
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evidence_fixtures import Reader, Scribe, damaging, erased, patch, receipt, small_plan
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import PalimpsestError
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.reading import Change, Curve, Reading, Series
from palimpsest.probes.groups import Group
from palimpsest.probes.plan import Plan
from palimpsest.receipt import audit, charts
from palimpsest.receipt import generator_words as words
from palimpsest.receipt.document import build, plain, reading, seal
from palimpsest.receipt.downloads import table
from palimpsest.receipt.make import Receipt
from palimpsest.receipt.pictures import BUDGET, thumbnails
from palimpsest.receipt.schema import SCHEMA, load
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.view import render

HOSTILE = "<script>alert('x')</script>\"'&{{ 7 * 7 }}<img src=x onerror=alert(1)>../../etc"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Receipt:
    return receipt(tmp_path_factory.mktemp("receipt"))


class Outline(HTMLParser):
    """Tags, texts and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_json_is_what_the_schema_says(made: Receipt) -> None:
    assert made.json is not None
    data = json.loads(made.json.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert data == made.data
    assert data["schema"] == SCHEMA
    documented = Path(__file__).resolve().parents[2] / "docs" / "receipt.md"
    told = set(re.findall(r"^\| `(\w+)` \|", documented.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(data) <= told, f"docs/receipt.md does not tell {sorted(set(data) - told)}"
    assert data["seal"] == seal(data)
    for which, count in (("before", "shots"), ("after", "shots"), ("other", "twin_shots")):
        assert (
            len(data["pictures"][which])
            == len(getattr(erased().plan, count))
            == len(data["measures"][f"{which}/reader/present"])
        )
    assert data["edited"] == {**data["edited"], "kind": "patch", "file": "patch.safetensors"}
    assert Patch.load(made.json.with_name("patch.safetensors")).sha256() == data["edited"]["sha256"]


def test_readings_come_back_from_json(made: Receipt) -> None:
    evaluators = dict(made.evidence.evaluators)
    for r in made.readings:
        again = reading(plain(r), evaluators)
        assert plain(again) == plain(r)
        assert again.name == r.name
        assert again.value == r.value


def test_the_summary_says_what_happened(made: Receipt) -> None:
    assert made.data["headline"].startswith("“star” is gone")
    first = made.data["summary"][0]
    assert first["tone"] == "good"
    assert "0 %" in first["text"]
    assert "before 100 %" in first["text"]
    assert "circle" in first["text"]
    assert "moon" in made.summary()
    star = made.presence("star")
    assert star is not None
    assert star.value == 0


def test_the_page_is_one_small_file_that_loads_nothing(made: Receipt) -> None:
    assert made.html is not None
    page = made.html.read_text(encoding="utf-8")
    assert len(page) < 3_000_000
    outline = Outline(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {t for t, _ in outline.tags}
    for tag, attributes in outline.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href"):
                inside = ("data:image/webp;base64,", "#")
                saved = ("data:application/json;base64,", "data:text/csv;base64,") if "download" in attributes else ()
                assert (value or "").startswith((*inside, *saved)), f"<{tag} {name}={value!r:.60}>"
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_too_few_pictures_of_a_target_are_no_proof_and_said_to_be(made: Receipt) -> None:
    star = made.presence("star")
    assert star is not None
    few = replace(star, p=0.125, high=49.0, n=4)
    said = words.sentences([few], ["star"], erased().plan)[0]
    assert "perhaps gone" in said["text"]
    assert "as before" not in said["text"]
    assert said["tone"] == "unsure"
    never = replace(few, before=0.0)
    assert "hardly there, as before" in words.sentences([never], ["star"], erased().plan)[0]["text"]


def test_the_page_carries_the_receipt_and_its_readings(made: Receipt, tmp_path: Path) -> None:
    assert made.html is not None
    outline = Outline(made.html.read_text(encoding="utf-8"))
    saved = {
        str(a["download"]): base64.b64decode(str(a["href"]).partition(",")[2])
        for _, a in outline.tags
        if "download" in a
    }
    assert json.loads(saved["receipt.json"]) == made.data
    (tmp_path / "receipt.json").write_bytes(saved["receipt.json"])
    assert load(tmp_path / "receipt.json")["seal"] == seal(made.data)
    rows = list(csv.DictReader(saved["readings.csv"].decode().splitlines()))
    assert len(rows) == len(made.readings)
    star = next(r for r in rows if (r["name"], r["concept"]) == ("presence", "star"))
    assert float(star["value"]) == 0
    assert float(star["change_value"]) == -100
    assert star["verdict"] == "changed"


def test_no_cell_of_a_table_is_a_formula() -> None:
    assert table([["=1+1", "@x", "-y", -2.5, None, "moon"]]) == "'=1+1,'@x,'-y,-2.5,,moon\n"


def test_every_picture_has_words_and_every_table_a_header(made: Receipt) -> None:
    assert made.html is not None
    outline = Outline(made.html.read_text(encoding="utf-8"))
    pictures = [a for t, a in outline.tags if t == "img"]
    assert len(pictures) == len(made.data["shown"]) > 0
    assert all(a.get("alt") for a in pictures)
    assert len({a["alt"] for a in pictures}) == len(pictures)
    assert all("scope" in a for t, a in outline.tags if t == "th")
    assert all(a.get("aria-label") for t, a in outline.tags if t == "svg")
    scrolling = [a for t, a in outline.tags if a.get("class") == "scroll"]
    assert scrolling
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolling)
    targets = {a["id"] for _, a in outline.tags if "id" in a}
    assert {str(a["href"])[1:] for t, a in outline.tags if t == "a" and "download" not in a} <= targets


def test_making_a_receipt_draws_nothing_twice(tmp_path: Path) -> None:
    host = Scribe()
    plan = small_plan(host, prompts=2, seeds=1, unrelated=1, neighbours=1)
    audit(host, patch(host), plan.request, subject=Generator(plan=plan, judges=[Reader()]), out=tmp_path)
    assert host.drawn == plan.pictures()


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    host = Scribe()
    plan = small_plan(host, prompts=2, seeds=1, unrelated=1, neighbours=1)
    made = audit(host, patch(host), plan.request, subject=Generator(plan=plan, judges=[Reader()]))
    assert (made.json, made.html, list(tmp_path.iterdir())) == (None, None, [])
    assert made.data["edited"]["file"] == ""


def test_a_full_disk_leaves_no_half_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PalimpsestError, match="Free some space"):
        receipt(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_models_without_judges_or_patch_still_make_a_receipt(tmp_path: Path) -> None:
    class Bare:
        name = "bare"

        def __init__(self) -> None:
            self.sample = Scribe().sample

    plan = small_plan(Scribe(), prompts=2, seeds=1, unrelated=1, neighbours=1)
    made = audit(Bare(), Bare(), plan.request, subject=Generator(plan=plan, judges=[]), out=tmp_path)
    assert "presence was not measured" in made.data["headline"]
    assert "No judge knows" in made.summary()
    assert made.data["edited"]["kind"] == "model"
    assert "two models were compared" in (made.html or tmp_path).read_text(encoding="utf-8")


def hostile_receipt(name: str, folder: Path | None = None) -> Receipt:
    """Everything that a user or a model file may name is `name`."""
    host = Scribe(name)
    target = Concept(name=name, labels=("subject:star",))
    group = Group(role="target", concept=target, prompts=(f"a star {name}",), seeds=2, reason=name)
    plan = Plan(request=Request(target=(target,)), groups=(group,))
    reader = Reader()
    reader.evaluator = replace(reader.evaluator, name=name, version=name, licence=name)
    change = replace(patch(host), provenance={"method": name, "name": name, "parameters": {name: name}, "seed": 0})
    return audit(host, change, plan.request, subject=Generator(plan=plan, judges=[reader]), out=folder, command=name)


@lru_cache(maxsize=1)
def harmless_tags() -> list[str]:
    made = hostile_receipt("star")
    return [
        t
        for t, _ in Outline(
            render(made.data, thumbnails(made.data, made.evidence, Generator.pairs(made.evidence))[1])
        ).tags
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.text(min_size=1, max_size=40).filter(lambda s: s.strip() and s.isprintable()))
def test_no_name_can_change_the_page(name: str) -> None:
    made = hostile_receipt(name)
    _, pictures = thumbnails(made.data, made.evidence, Generator.pairs(made.evidence))
    assert [t for t, _ in Outline(render(made.data, pictures)).tags] == harmless_tags()


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    made = hostile_receipt(HOSTILE, tmp_path)
    assert made.html is not None
    page = made.html.read_text(encoding="utf-8")
    outline = Outline(page)
    assert "<script" not in page
    assert not [a for _, a in outline.tags if any(k.startswith("on") for k in a)]
    assert HOSTILE in "".join(outline.text)
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "evidence.safetensors",
        "patch.safetensors",
        "receipt.html",
        "receipt.json",
    ]


def test_large_pictures_become_small_ones_within_the_budget() -> None:
    import torch

    evidence = erased()
    noise = torch.randint(
        0, 256, (len(evidence.plan.shots), 3, 512, 512), dtype=torch.uint8, generator=torch.Generator()
    )
    large = replace(evidence, gallery={"before": noise, "after": noise, "other": noise[: len(evidence.plan.twins)]})
    data, pictures = thumbnails({"schema": SCHEMA, "readings": []}, large, Generator.pairs(large))
    assert 0 < sum(map(len, pictures.values())) <= BUDGET
    assert len(data["shown"]) == len(pictures)
    roles = {evidence.plan.groups[evidence.plan.shots[int(k.split("/")[1])].group].role for k in pictures}
    assert roles == {"target", "neighbour", "unrelated", "empty"}


def test_curves_are_drawn_where_a_reading_has_one() -> None:
    evidence = erased()
    curve = Curve(
        x=(0, 10, 20),
        x_label="steps of relearning",
        y_label="presence, %",
        series=(
            Series(name=HOSTILE, y=(0, 40, 90), low=(0, 30, 80), high=(5, 50, 100)),
            Series(name="b", y=(1, 2, 3)),
        ),
    )
    found = [*Generator.readings(evidence), Reading(name="relearning", value=90.0, concept="star", curve=curve)]
    host = Scribe()
    data = build(Generator(), evidence, found, evidence.plan.request, base=host, edited=damaging(host))
    page = render(data, {})
    assert "steps of relearning" in page
    assert page.count("<polyline") == 2
    assert page.count("<polygon") == 1
    assert "<script" not in page
    assert "Further readings" in page


def test_the_range_plot_holds_its_numbers() -> None:
    svg = charts.range_plot(97, 3, 1, 6, 5, "wanted")
    assert 'aria-label="before 97, after 3 (interval 1 to 6), noise floor 5 points"' in svg


def presence(role: str, value: float, p: float, concept: str = "star", **more: Any) -> Reading:
    change = Change(value=value - 97, low=value - 100, high=value - 90)
    limits = {"low": max(0, value - 3), "high": min(100, value + 3)}
    return Reading(
        name="presence", role=role, concept=concept, value=value, before=97.0, floor=4.0, p=p, n=60, unit="%",
        change=change, detail=more, **limits,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "p", "expected", "tone"),
    [
        (3.0, 0.0001, "is gone: 3 % (0–6)", "good"),
        (55.0, 0.0001, "is weaker, not gone", "unsure"),
        (96.0, 1.0, "is still there", "unsure"),
        (100.0, 0.001, "is stronger than before", "unsure"),
    ],
)
def test_words_for_a_target(value: float, p: float, expected: str, tone: str) -> None:
    said = words.sentences([presence("target", value, p)], ["star"], erased().plan)
    assert expected in said[0]["text"]
    assert said[0]["tone"] == tone


def test_words_for_others_the_alarm_and_sampling_time_edits() -> None:
    collapsed = Reading(
        name="collapse", role="neighbour", value=40.0, before=0.0, p=0.001, change=Change(value=40, low=30, high=50)
    )
    hooks = Reading(name="relative weight change", value=0.0, n=0, detail={"hooks": ["erase/sld"], "bytes": 0})
    lost = presence("neighbour", 60.0, 0.001, "moon")
    text = "\n".join(
        s["text"]
        for s in words.sentences([presence("target", 3.0, 0.0), lost, collapsed, hooks], ["star"], erased().plan)
    )
    assert "“moon” lost 37 points" in text
    assert "Over-erasure alarm: 40 % of the neighbour pictures" in text
    assert "No weight is changed: erase/sld acts while the model samples." in text


def test_a_request_of_several_targets_has_one_headline() -> None:
    found = [presence("target", 3.0, 0.0, "star"), presence("target", 50.0, 0.0, "moon")]
    assert words.headline(found, ["star", "moon"], erased().plan) == "“star” and “moon”: some gone, some not"
    assert words.headline(found[:1] * 2, ["star", "moon"], erased().plan) == "“star” and “moon” are gone"
    suffering = [*found[:1], presence("neighbour", 60.0, 0.001, "moon")]
    assert words.headline(suffering, ["star"], erased().plan) == "“star” is gone, and other concepts suffered"
    gained = [*found[:1], presence("neighbour", 99.0, 0.001, "moon")]
    assert words.headline(gained, ["star"], erased().plan) == "“star” is gone"


def test_patches_with_hooks_are_described() -> None:
    host = Scribe()
    made = Patch(base=host.fingerprint(), hooks=(Hook(id="erase/sld"),))
    evidence = replace(erased(), patch=made, base={})
    data = build(Generator(), evidence, Generator.readings(evidence), evidence.plan.request, base=host, edited=made)
    assert "No weight is changed" in data["summary"][-1]["text"]
    assert "Changed weights" not in render(data, {})


@pytest.mark.parametrize(
    ("before", "value", "p", "expected", "tone"),
    [
        (0.0, 92.0, 0.0001, "is learned: 92 %", "good"),
        (0.0, 3.0, 1.0, "is not learned", "bad"),
        (90.0, 92.0, 1.0, "is shown as before", "unsure"),
        (90.0, 12.0, 0.001, "is shown less often than before", "bad"),
    ],
)
def test_words_for_a_target_that_was_to_be_taught(
    before: float, value: float, p: float, expected: str, tone: str
) -> None:
    plan = replace(erased().plan, aim="in")
    told = replace(presence("target", value, p), before=before, change=Change(value=1, low=-20, high=20))
    said = words.sentences([told], ["star"], plan)
    assert expected in said[0]["text"]
    assert said[0]["tone"] == tone
    assert "gone" not in words.headline([told], ["star"], plan)
    assert Generator.wanted(told, replace(erased(), plan=plan)) == (value > before)
    assert Plan.from_plain({k: v for k, v in plan.plain().items() if k != "aim"}).aim == "away"


def test_pictures_that_are_none_before_the_edit_raise_an_alarm() -> None:
    black = Reading(
        name="collapse", role="target", value=100.0, before=100.0, p=1.0, change=Change(value=0, low=-5, high=5)
    )
    said = words.sentences([presence("target", 0.0, 1.0), black], ["star"], erased().plan)
    assert said[0]["tone"] == "bad"
    assert "100 % of the target pictures" in said[0]["text"]
    assert not any("No sign of collapse" in s["text"] for s in said)
