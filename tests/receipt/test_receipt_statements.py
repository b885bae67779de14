"""Every statement of a receipt is checked, not checked for a reason, or vouched for; hostile content ends in words."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from test_receipt_verify import check, edit, wrong

from evidence_fixtures import Reader, Scribe, damaging, patch, receipt, request, small_plan
from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.fingerprint import digest
from palimpsest.receipt import audit
from palimpsest.receipt.document import sealed
from palimpsest.receipt.finding import Finding, exit_code, report
from palimpsest.receipt.pictures import decode, encode, resembles
from palimpsest.receipt.schema import Document, load
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify

Data = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statements")
    receipt(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to single values, of each list the first entry only."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list):
        if value:
            yield from leaves(value[0], (*path, 0))
    else:
        yield path


def altered(data: Data, path: tuple[Any, ...]) -> Data:
    """The same with one value changed to another of its type."""
    changed = copy.deepcopy(data)
    at = changed
    for step in path[:-1]:
        at = at[step]
    old = at[path[-1]]
    at[path[-1]] = not old if isinstance(old, bool) else old + 1 if isinstance(old, (int, float)) else f"{old}x"
    return changed


def test_every_field_is_in_a_list_that_verify_prints(folder: Path) -> None:
    for how in ("none", "all"):
        findings = check(folder, remeasure=how)
        told = {field for f in findings for field in f.of}
        assert told >= set(Document.__annotations__), sorted(set(Document.__annotations__) - told)
        assert exit_code(findings) == 0
    printed = report(findings)
    assert printed.index("checked:") < printed.index("vouched for by the author alone")


def test_whatever_is_changed_and_sealed_anew_is_found_or_was_only_vouched_for(folder: Path) -> None:
    data = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    host, about = Scribe(), Generator(judges=[Reader()])
    vouched = {"run", "versions", "command"}
    # These say what was drawn, seen or loaded from where: only who draws or loads again can tell.
    again = {"plan", "pictures", "measures"}
    tried = set()
    for path in leaves(data):
        if path[0] in ("seal", *vouched, *again) or (path[:2] == ("readings", 0) and len(path) > 4):
            continue
        tried.add(path[0])
        (folder / "receipt.json").write_text(json.dumps(sealed(altered(data, path))), encoding="utf-8")
        try:
            findings = verify(folder / "receipt.json", before=host, subject=about)
        except Damaged:
            continue
        assert exit_code(findings) == 1, path
    assert tried == set(data) - {"seal", *vouched, *again}


@pytest.mark.parametrize("name", ["kernel distance", "closeness"])
def test_distances_follow_from_the_features_that_are_kept(folder: Path, name: str) -> None:
    def change(data: Data) -> None:
        next(r for r in data["readings"] if r["name"] == name)["value"] += 0.5

    edit(folder, change, reseal=True)
    assert any(name in line and "what the receipt keeps" in line for line in wrong(check(folder)))


def test_readings_that_were_taken_out_are_missed(folder: Path) -> None:
    def remove(data: Data) -> None:
        data["readings"] = [r for r in data["readings"] if r["name"] != "kernel distance"]

    edit(folder, remove, reseal=True)
    assert any("kernel distance of target: the receipt lacks it" in line for line in wrong(check(folder)))


def test_features_that_are_gone_or_changed_are_told(folder: Path) -> None:
    file = folder / "evidence.safetensors"
    tensors = load_file(file)
    key = next(iter(tensors))
    save_file({**tensors, key: tensors[key] + 1}, file)
    assert any(line.startswith("differs      features") for line in wrong(check(folder)))
    file.unlink()
    findings = check(folder)
    assert exit_code(findings) == 3
    missing = {f.what for f in findings if f.status == "not checked"}
    assert {"features", "kernel distance", "closeness"} <= missing


def test_features_that_no_model_gives_are_found_by_drawing_again(folder: Path) -> None:
    file = folder / "evidence.safetensors"
    forged = {k: torch.zeros_like(t) for k, t in load_file(file).items()}
    save_file(forged, file)
    edit(folder, lambda d: d["vectors"].update(sha256=digest(forged)), reseal=True)
    assert any("before/reader/features" in line for line in wrong(check(folder, remeasure="sample")))


def test_a_page_that_is_gone_has_an_exit_code_of_its_own(folder: Path) -> None:
    (folder / "receipt.html").unlink()
    assert exit_code(check(folder)) == 3
    data = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    (folder / "receipt.json").write_text(json.dumps({**data, "headline": "all is well"}), encoding="utf-8")
    assert exit_code(check(folder)) == 1


@pytest.mark.parametrize("name", ["../patch.safetensors", "/etc/passwd", "..", "a/b", "a\\b"])
@pytest.mark.parametrize("field", ["edited", "vectors"])
def test_no_name_leads_out_of_the_folder(folder: Path, field: str, name: str) -> None:
    edit(folder, lambda d: d[field].update(file=name), reseal=True)
    assert any("is no file of the receipt's folder" in line for line in wrong(check(folder)))


def test_a_link_is_not_followed(folder: Path) -> None:
    file = folder / "patch.safetensors"
    file.rename(folder.parent / "elsewhere.safetensors")
    file.symlink_to(folder.parent / "elsewhere.safetensors")
    assert any("is no file of the receipt's folder" in line for line in wrong(check(folder)))


def webp(picture: torch.Tensor, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "WEBP", lossless=True, **how)
    return file.getvalue()


def junk(encoded: bytes) -> bytes:
    return encoded + b"anything"


def metadata(encoded: bytes) -> bytes:
    return webp(decode(encoded), exif=b"Exif\0\0anything at all")


def larger(encoded: bytes) -> bytes:
    return encode(decode(encoded).repeat_interleave(3, 1).repeat_interleave(3, 2))


def bomb(encoded: bytes) -> bytes:
    head = bytearray(webp(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    head[21:25] = struct.pack("<I", 16383 | 16383 << 14)  # VP8L: width and height less one, 14 bits each
    return bytes(head)


def nothing(encoded: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("forge", [junk, metadata, larger, bomb, nothing])
def test_pictures_stated_anew_are_refused(folder: Path, forge: Callable[[bytes], bytes]) -> None:
    page = folder / "receipt.html"
    text = page.read_text(encoding="utf-8")
    old = re.findall(r'src="data:image/webp;base64,([A-Za-z0-9+/=]+)"', text)[0]
    first = base64.b64decode(old)
    forged = forge(first)
    data = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    mine, new = (hashlib.sha256(b).hexdigest() for b in (first, forged))
    for shown in data["shown"]:
        shown["sha256"] = new if shown["sha256"] == mine else shown["sha256"]
    (folder / "receipt.json").write_text(json.dumps(sealed(data)), encoding="utf-8")
    page.write_text(text.replace(old, base64.b64encode(forged).decode()), encoding="utf-8")
    assert any("is not the picture that was judged" in line for line in wrong(check(folder)))


def test_a_picture_that_the_receipt_does_not_have_is_told(folder: Path) -> None:
    edit(folder, lambda d: d["shown"][0].update(picture="before/999999"), reseal=False)
    assert any("no such picture" in line for line in wrong(check(folder)))


def test_copies_of_larger_pictures_are_compared_with_what_is_drawn() -> None:
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    large = picture.repeat_interleave(32, 1).repeat_interleave(32, 2)
    assert resembles(encode(large), large)
    assert not resembles(encode(large.flip(2)), large)


@pytest.mark.parametrize("name", ["star\u2028moon", "st\x1bar", "line\nbreak", "\u202eback"])
def test_names_with_control_characters_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="control characters"):
        Concept(name=name)


@pytest.mark.parametrize("odd", ["new\nline", "carriage\rreturn", "\x1b[31mred", "\u202eback", "\x9bC1"])
def test_an_honest_receipt_with_odd_words_holds_and_shows_them_escaped(tmp_path: Path, odd: str) -> None:
    host = Scribe(f"model {odd}")
    plan = small_plan(host, prompts=2, seeds=1, unrelated=1, neighbours=1)
    about = Generator(plan=plan, judges=[Reader()])
    audit(host, patch(host), plan.request, subject=about, out=tmp_path, command=f"palimpsest erase {odd}")
    findings = verify(tmp_path / "receipt.json", before=host, subject=about)
    assert [str(f) for f in findings if not f.ok] == []
    page = (tmp_path / "receipt.html").read_bytes().decode()
    assert odd not in page
    assert odd.encode("unicode_escape").decode() in page
    assert not set(odd) - set(odd.strip("\n\r\x1b\x9b\u202e")) & set("".join(map(str, findings)))


def test_equal_runs_give_equal_receipts_but_for_one_block(tmp_path: Path) -> None:
    def made(name: str) -> Data:
        return json.loads(receipt(tmp_path / name).json.read_text(encoding="utf-8"))  # type: ignore[union-attr]

    first, second = made("a"), made("b")
    assert {k for k in first if first[k] != second[k]} <= {"run", "seal"}
    files = ("patch.safetensors", "evidence.safetensors")
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_content_ends_in_words(original: Path, tmp_path: Path, draw: st.DataObject) -> None:
    data = json.loads((original / "receipt.json").read_text(encoding="utf-8"))
    path = draw.draw(st.sampled_from([*leaves(data), *((key,) for key in data)]))
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = draw.draw(JSON)
    file = tmp_path / "receipt.json"
    try:
        file.write_text(json.dumps(sealed(data)), encoding="utf-8")
    except ValueError:  # not finite
        return
    shutil.copy(original / "receipt.html", tmp_path)
    try:
        findings = verify(file, before=Scribe(), load=refused, subject=Generator(judges=[Reader()]))
    except Damaged:
        return
    assert all(isinstance(f, Finding) for f in findings)
    assert report(findings)


def refused(name: str) -> Any:
    raise BadRequest("no model is loaded here")


@pytest.mark.parametrize(
    "text",
    ["NaN", "1e400", '"\\ud800"', "[" * 100_000, '{"a": 1, "a": 2}', "1" * 5000, "\ufeff{}", '"\\u0000"', "{" * 70],
)
def test_what_no_strict_reader_takes_is_refused(tmp_path: Path, text: str) -> None:
    for content in (text, f'{{"schema": "palimpsest/receipt/3", "seal": {text}}}'):
        (tmp_path / "receipt.json").write_text(content, encoding="utf-8")
        with pytest.raises(Damaged):
            load(tmp_path / "receipt.json")


def test_another_request_than_the_patchs_is_found_where_the_edit_was_asked_for_it(tmp_path: Path) -> None:
    host = Scribe()
    asked = request("star", keep=["moon"])
    made = replace(damaging(host), provenance={**damaging(host).provenance, "request": asked.plain()})
    about = Generator(plan=small_plan(host, prompts=2, seeds=1), judges=[Reader()])
    audit(host, made, asked, subject=about, out=tmp_path, command="palimpsest erase star --seed 0")

    def found(status: str) -> set[str]:
        findings = verify(tmp_path / "receipt.json", before=host, subject=about)
        return {f.what for f in findings if f.status == status}

    assert {"request", "method"} <= found("same")
    edit(tmp_path, lambda d: d["request"]["keep"][0].update(prompts=["a star"]), reseal=True)
    assert "request" in found("differs")
    edit(tmp_path, lambda d: d.update(command="palimpsest audit --concept star"), reseal=True)
    assert "request" in found("vouched")
    edit(tmp_path, lambda d: d.update(command="palimpsest erase star --seed 7"), reseal=True)
    assert "command" in found("differs")
    edit(tmp_path, lambda d: d["method"]["parameters"].update(row=5), reseal=True)
    assert "method" in found("differs")
