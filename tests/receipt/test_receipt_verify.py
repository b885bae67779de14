"""verify finds every tampered number, picture, patch, model and judge, and says which it was."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evidence_fixtures import Reader, Scribe, damaging, patch, receipt
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.patch import Patch
from palimpsest.receipt.document import sealed
from palimpsest.receipt.finding import Finding
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify
from palimpsest.receipt.view import render

Data = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    receipt(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def check(folder: Path, **choices: Any) -> list[Finding]:
    judges = choices.pop("judges", [Reader()])
    given: dict[str, Any] = {"before": Scribe(), "subject": Generator(judges=judges), **choices}
    return verify(folder / "receipt.json", **given)


def wrong(findings: list[Finding]) -> list[str]:
    return [str(f) for f in findings if not f.ok]


def edit(folder: Path, change: Callable[[Data], None], *, reseal: bool) -> None:
    """Changes receipt.json as a forger would; with `reseal` as one who knows the seal's law and makes the page anew."""
    path, page = folder / "receipt.json", folder / "receipt.html"
    data = json.loads(path.read_text(encoding="utf-8"))
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))
    by_hash = {hashlib.sha256(b).hexdigest(): b for b in map(base64.b64decode, pictures)}
    change(data)
    data = sealed(data) if reseal else data
    path.write_text(json.dumps(data), encoding="utf-8")
    if reseal:
        with contextlib.suppress(
            Damaged, KeyError, TypeError, ValueError, IndexError, AttributeError
        ):  # parts that no page can be made of
            page.write_text(render(data, {s["picture"]: by_hash[s["sha256"]] for s in data["shown"]}), encoding="utf-8")


def of(data: Data, name: str, concept: str) -> Data:
    return next(r for r in data["readings"] if (r["name"], r["concept"]) == (name, concept))


@pytest.mark.parametrize("how", ["none", "sample", "all"])
def test_an_honest_receipt_holds(folder: Path, how: Any) -> None:
    findings = check(folder, remeasure=how)
    assert wrong(findings) == []
    assert {f.status for f in findings} <= {"same", "vouched", "not asked"}
    assert ("not asked" in {f.status for f in findings}) == (how == "none")
    if how != "none":
        assert any("bit for bit" in f.detail for f in findings)


def test_an_altered_number_breaks_the_seal(folder: Path) -> None:
    edit(folder, lambda d: of(d, "presence", "moon").update(value=100.0), reseal=False)
    assert any(line.startswith("differs      seal") for line in wrong(check(folder)))


@pytest.mark.parametrize("field", ["value", "low", "high", "before", "floor", "p", "n"])
def test_an_altered_number_under_a_new_seal_is_found_by_name(folder: Path, field: str) -> None:
    edit(folder, lambda d: of(d, "presence", "moon").update({field: 77}), reseal=True)
    found = wrong(check(folder))
    assert any("presence of moon" in line and field in line and "77" in line for line in found), found


def test_an_altered_drift_is_found(folder: Path) -> None:
    def forge(data: Data) -> None:
        next(r for r in data["readings"] if r["name"] == "pixel drift")["value"] = 0.0

    edit(folder, forge, reseal=True)
    assert any("pixel drift of target" in line for line in wrong(check(folder)))


def test_an_altered_leakage_cell_is_found(folder: Path) -> None:
    edit(folder, lambda d: of(d, "leakage", "moon")["row"]["after"].__setitem__(0, 50.0), reseal=True)
    assert any("leakage of moon" in line and "row" in line for line in wrong(check(folder)))


def test_a_removed_and_an_invented_reading_are_found(folder: Path) -> None:
    def forge(data: Data) -> None:
        moon = of(data, "presence", "moon")
        data["readings"].append({**moon, "concept": "dragon"})
        data["readings"].remove(moon)

    edit(folder, forge, reseal=True)
    found = "\n".join(wrong(check(folder)))
    assert "presence of moon: the receipt lacks it" in found
    assert "presence of dragon" in found


def test_an_altered_verdict_or_sentence_is_found(folder: Path) -> None:
    edit(folder, lambda d: of(d, "presence", "star").update(verdict="unchanged"), reseal=True)
    assert any("verdict of presence star" in line for line in wrong(check(folder)))
    edit(folder, lambda d: d.update(headline="all is well"), reseal=True)
    assert any("summary" in line for line in wrong(check(folder)))


def test_an_altered_weight_norm_is_found(folder: Path) -> None:
    def forge(data: Data) -> None:
        of(data, "relative weight change", "")["detail"]["tensors"][0]["norm"] = 0.001

    edit(folder, forge, reseal=True)
    assert any("relative weight change" in line for line in wrong(check(folder)))


def test_forged_reads_with_forged_numbers_need_the_pictures(folder: Path) -> None:
    """Reads and readings forged together agree with each other: only drawing again shows it."""
    reader = Reader()
    star, circle = (reader.evaluator.classes.index(f"subject:{w}") for w in ("star", "circle"))

    def forge(data: Data) -> None:
        for which in ("before", "after"):
            key = f"{which}/reader/present"
            data["measures"][key] = [[circle if i == star else i for i in row] for row in data["measures"][key]]

    edit(folder, forge, reseal=True)
    assert any("reader reads" in line and "subject:star" in line for line in wrong(check(folder, remeasure="all")))


def test_an_altered_picture_in_the_page_is_found(folder: Path) -> None:
    page = folder / "receipt.html"
    text = page.read_text(encoding="utf-8")
    first = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)[0]
    forged = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(forged, "WEBP", lossless=True)
    page.write_text(text.replace(first, base64.b64encode(forged.getvalue()).decode()), encoding="utf-8")
    assert any("pictures of the page" in line for line in wrong(check(folder)))


def test_exchanged_pictures_in_the_page_are_found(folder: Path) -> None:
    page = folder / "receipt.html"
    text = page.read_text(encoding="utf-8")
    first, second = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)[:2]
    swapped = text.replace(first, "@").replace(second, first).replace("@", second)
    page.write_text(swapped, encoding="utf-8")
    assert any("text of the page" in line for line in wrong(check(folder)))


def test_another_picture_under_its_own_hash_is_found(folder: Path) -> None:
    """A forger who exchanges a picture and its hash, and seals and makes the page again."""
    page = folder / "receipt.html"
    first = base64.b64decode(re.findall(r"base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))[0])
    forged = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(forged, "WEBP", lossless=True)

    def forge(data: Data) -> None:
        old, new = (hashlib.sha256(b).hexdigest() for b in (first, forged.getvalue()))
        for shown in data["shown"]:
            shown["sha256"] = new if shown["sha256"] == old else shown["sha256"]

    text = page.read_text(encoding="utf-8")
    page.write_text(
        text + f'<img src="data:image/webp;base64,{base64.b64encode(forged.getvalue()).decode()}">', "utf-8"
    )
    edit(folder, forge, reseal=True)
    assert any("is not the picture" in line for line in wrong(check(folder)))


def test_an_altered_letter_in_the_page_is_found_with_its_line(folder: Path) -> None:
    page = folder / "receipt.html"
    text = page.read_text(encoding="utf-8")
    assert "<h1>“star” is" in text
    page.write_text(text.replace("<h1>“star” is", "<h1>“moon” is"), encoding="utf-8")
    assert any("text of the page" in line and "moon" in line for line in wrong(check(folder)))


def test_altered_picture_hashes_are_found_by_drawing(folder: Path) -> None:
    def forge(data: Data) -> None:
        data["pictures"]["other"][0] = {"sha256": "0" * 64, "look": "00" * 48}

    edit(folder, forge, reseal=True)
    assert wrong(check(folder)) == []  # nothing drawn, nothing known
    assert any("picture other/0" in line for line in wrong(check(folder, remeasure="all")))


def test_a_rounding_difference_is_no_other_picture(folder: Path) -> None:
    edit(folder, lambda d: d["pictures"]["other"][0].update(sha256="0" * 64), reseal=True)
    findings = check(folder, remeasure="all")
    assert wrong(findings) == []
    assert any("up to rounding" in f.detail for f in findings)


def test_an_exchanged_patch_is_found(folder: Path) -> None:
    patch(Scribe(), row=3).save(folder / "patch.safetensors")
    assert any("patch" in line and "the receipt is about" in line for line in wrong(check(folder)))


def test_a_patch_for_another_model_is_found(folder: Path) -> None:
    stranger = replace(damaging(Scribe()), base="f" * 64)
    stranger.save(folder / "patch.safetensors")
    edit(folder, lambda d: d["edited"].update(sha256=stranger.sha256()), reseal=True)
    assert any("it was made for ffffffffffff" in line for line in wrong(check(folder)))


@pytest.mark.parametrize("fault", ["missing", "truncated", "flipped"])
def test_a_damaged_patch_is_found(folder: Path, fault: str) -> None:
    file = folder / "patch.safetensors"
    content = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    elif fault == "truncated":
        file.write_bytes(content[:-7])
    else:
        content[-3] ^= 1
        file.write_bytes(content)
    found = next(f for f in check(folder) if f.what == "patch")
    assert found.status == ("not checked" if fault == "missing" else "differs")


def test_a_patch_name_cannot_leave_the_folder(folder: Path) -> None:
    edit(folder, lambda d: d["edited"].update(file="../../patch.safetensors"), reseal=True)
    assert any("no file of the receipt's folder" in line for line in wrong(check(folder)))


def test_another_model_is_found(folder: Path) -> None:
    other = Scribe()
    patch(other, row=4).fuse(other)
    found = wrong(check(folder, before=other, remeasure="all"))
    assert any("untouched model" in line and "is now" in line for line in found)


def test_another_judge_or_threshold_is_found(folder: Path) -> None:
    other = Reader()
    other.evaluator = replace(other.evaluator, sha256="ef" * 32)
    assert any("evaluator reader" in line and "efefef" in line for line in wrong(check(folder, judges=[other])))
    edit(folder, lambda d: d["evaluators"]["reader"].update(threshold=0.1), reseal=True)
    assert any("evaluator reader" in line and "threshold" in line for line in wrong(check(folder)))


def test_what_cannot_be_reached_is_not_called_the_same(folder: Path) -> None:
    (folder / "receipt.html").unlink()
    findings = verify(folder / "receipt.json", remeasure="sample")
    assert wrong(findings) == []
    missing = {f.what for f in findings if f.status == "not checked"}
    weights = {"changed tensors", "relative weight change"}
    assert missing == {"the page", "untouched model", "evaluator reader", "measuring again", *weights}


def test_two_models_are_verified_like_a_patch(tmp_path: Path) -> None:
    from palimpsest.receipt import audit

    host, edited = Scribe(), Scribe("edited")
    patch(host).fuse(edited)
    from evidence_fixtures import small_plan

    plan = small_plan(host, prompts=3, seeds=1, unrelated=1, neighbours=1)
    audit(host, edited, plan.request, subject=Generator(plan=plan, judges=[Reader()]), out=tmp_path)
    assert wrong(check(tmp_path, after=edited, remeasure="all")) == []
    assert any("edited model" in line for line in wrong(check(tmp_path, after=host)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not the JSON"),
        ('{"schema": "palimpsest/receipt/1"', "not the JSON"),
        ("[1, 2]", "a list of 2, expected a table"),
        ('{"schema": "another/1"}', "no receipt"),
        ('{"schema": "palimpsest/receipt/99"}', "use the version that wrote it"),
        (
            '{"schema": "palimpsest/receipt/1", "versions": {"palimpsest": "0.0.9"}}',
            r"older .*Tango.*palimpsest 0\.0\.9",
        ),
        ('{"schema": "palimpsest/receipt/1", "versions": 3}', "audit again"),
        ('{"schema": "palimpsest/receipt/2", "seal": ""}', "older .*features lie in a file"),
        ('{"schema": "palimpsest/receipt/3", "seal": ""}', "'base' is missing"),
    ],
)
def test_what_is_no_receipt_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "receipt.json").write_text(content, encoding="utf-8")
    with pytest.raises(Damaged, match=message):
        verify(tmp_path / "receipt.json")


def test_a_missing_receipt_and_an_unknown_choice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="There is no receipt"):
        verify(tmp_path / "receipt.json")
    with pytest.raises(BadRequest, match="none, sample or all"):
        verify(tmp_path / "receipt.json", remeasure="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["plan", "measures", "readings", "evaluators", "summary", "pictures"])
def test_parts_that_do_not_fit_end_in_a_finding_not_in_a_crash(folder: Path, field: str) -> None:
    edit(folder, lambda d: d.update({field: type(d[field])()}), reseal=True)
    assert wrong(check(folder))


def test_the_patch_beside_the_receipt_is_the_one_that_was_audited(folder: Path) -> None:
    assert Patch.load(folder / "patch.safetensors").sha256() == damaging(Scribe()).sha256()
