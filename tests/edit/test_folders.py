"""Folders of pictures: sizes, kinds, masks, captions, resuming, refusals. On a small random model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hosts_fixtures import folder_of, host_of
from palimpsest.cli import main
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.data.framing import Frame
from palimpsest.edit.ddim_inversion import DDIMInversion
from palimpsest.edit.style_id import StyleID
from palimpsest.run import edit
from palimpsest.run.edits import EditedFolder
from palimpsest.run.wording import Wanted, said_of
from palimpsest.worlds.concepts import Words
from palimpsest.worlds.faces import FACES

METHOD = DDIMInversion(steps=2, depth=0.5, guidance=2.0)
HOSTILE = "=1+1 <img src=x onerror=alert(1)>.png"


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub dir").mkdir(parents=True)
    picture(16, 16, 1).save(folder / "a.png")
    picture(40, 24, 2).save(folder / "sub dir" / "b.jpg", quality=90)
    picture(24, 50, 3).convert("L").save(folder / "sub dir" / "ключ.tiff")
    picture(9, 9, 4).save(folder / HOSTILE)
    (folder / "notes.doc").write_text("no picture")
    return folder


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def done(photos: Path | str, out: Path, **how: Any) -> EditedFolder:
    said = {"to": "star", "said": "a red house", "method": METHOD, **how}
    return edit(host_of("sd"), photos, out=out, **said)


def hashes(out: Path) -> dict[str, str]:
    files = [f for part in ("images", "masks") for f in sorted((out / part).rglob("*")) if f.is_file()]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_every_file_is_written_as_it_was(photos: Path, tmp_path: Path) -> None:
    result = done(photos, tmp_path / "out")
    assert [row.name for row in result.rows] == sorted([HOSTILE, "a.png", "sub dir/b.jpg", "sub dir/ключ.tiff"])
    assert result.skipped == ("notes.doc (no picture)",)
    for row in result.rows:
        before, after = opened(photos / row.name), opened(tmp_path / "out" / "images" / row.name)
        assert (before.format, before.size, before.mode) == (after.format, after.size, after.mode)
        region = np.asarray(opened(tmp_path / "out" / "masks" / f"{row.name}.png"))
        assert region.shape == before.size[::-1]
        if before.format != "JPEG":
            apart = np.asarray(before.convert("RGB")) != np.asarray(after.convert("RGB"))
            assert not apart[region == 0].any(), row.name
            assert row.outside == 0
        assert row.written == hashlib.sha256((tmp_path / "out" / "images" / row.name).read_bytes()).hexdigest()
        assert (row.said, row.asked) == ("a red house", "a red house, star")
    with open(tmp_path / "out" / "edits.csv", encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    assert [row["name"].removeprefix("'") for row in table] == [row.name for row in result.rows]
    assert table[0]["name"] == f"'{HOSTILE}", "no spreadsheet computes a name"
    assert "edited" in result.summary()


def test_a_killed_run_goes_on_and_equals_the_unbroken_one(photos: Path, tmp_path: Path) -> None:
    whole = done(photos, tmp_path / "whole")

    def stop_at(n: int) -> Any:
        def progress(what: str, at: int, total: int) -> None:
            if at == n:
                raise KeyboardInterrupt

        return progress

    for n in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            done(photos, tmp_path / "broken", progress=stop_at(n))
        with open(tmp_path / "broken" / "edits.jsonl", "a") as f:
            f.write('{"name": "a.p')  # killed while writing a line
            f.write("\n")
    assert not (tmp_path / "broken" / "edits.csv").exists()
    rest = done(photos, tmp_path / "broken")
    assert rest.kept == 3
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")
    assert [row.written for row in rest.rows] == [row.written for row in whole.rows]
    (tmp_path / "broken" / "images" / "a.png").write_bytes(b"damaged")
    assert done(photos, tmp_path / "broken").kept == 3
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")


def test_a_picture_is_edited_again_where_anything_about_it_changed(photos: Path, tmp_path: Path) -> None:
    done(photos, tmp_path / "out")
    picture(16, 16, 9).save(photos / "a.png")
    assert done(photos, tmp_path / "out").kept == 3
    assert done(photos, tmp_path / "out", said="a blue house").kept == 0
    with pytest.raises(BadRequest, match="edits of other settings \\(wanted\\)"):
        done(photos, tmp_path / "out", to="moon")
    assert done(photos, tmp_path / "out", to="moon", again=True).kept == 0


def test_masks_are_found_by_name_and_hold_to_the_pixel(photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / "sub dir").mkdir(parents=True)
    half = np.zeros((10, 10), np.uint8)
    half[:, 5:] = 255
    for name in ("a_mask.png", "sub dir/b.png", "sub dir/ключ.png", HOSTILE):
        Image.fromarray(half).resize((16, 16), Image.Resampling.NEAREST).save(masks / name)
    result = done(photos, tmp_path / "out", masks=masks)
    before, after = (np.asarray(opened(p / "a.png")) for p in (photos, tmp_path / "out" / "images"))
    assert np.array_equal(before[:, :8], after[:, :8])
    assert result.rows[0].region < 0.7
    Image.fromarray(half * 0).save(masks / "a_mask.png")
    with pytest.raises(BadRequest, match="is black: nothing may change"):
        done(photos, tmp_path / "black", masks=masks)
    (masks / "a_mask.png").unlink()
    with pytest.raises(BadRequest, match=r"1 pictures have no mask .* first a;"):
        done(photos, tmp_path / "bare", masks=masks)
    Image.fromarray(half).save(masks / "other.png")
    with pytest.raises(BadRequest, match=r"mask other.png is called like no picture"):
        done(photos, tmp_path / "odd", masks=masks)


def test_references_serve_all_pictures_or_are_found_by_name(photos: Path, tmp_path: Path) -> None:
    names, method = ["a.png", "sub dir/b.jpg", "sub dir/ключ.tiff", HOSTILE], StyleID(steps=2, finish="whole")
    style = tmp_path / "style"
    (style / "sub dir").mkdir(parents=True)
    for i, name in enumerate(names):
        picture(20, 12, 70 + i).save((style / name).with_suffix(".png"))
    one = done(photos, tmp_path / "one", method=method, reference=style / "a.png")
    each = done(photos, tmp_path / "each", method=method, reference=style)
    assert [row.flags for row in one.rows] == [row.flags for row in each.rows]
    same = [a.written == b.written for a, b in zip(one.rows, each.rows, strict=True)]
    assert [row.name for row, s in zip(one.rows, same, strict=True) if s] == ["a.png"]
    assert done(photos, tmp_path / "one", method=method, reference=style).kept == 1, "another reference, another edit"
    with pytest.raises(BadRequest, match="reads no other pictures; leave out --reference"):
        done(photos, tmp_path / "odd", reference=style)
    with pytest.raises(BadRequest, match="Give --reference FILE for all pictures"):
        done(photos, tmp_path / "odd", method=method)
    with pytest.raises(BadRequest, match="There is no reference at"):
        done(photos, tmp_path / "odd", method=method, reference=tmp_path / "nothing")
    (style / "a.jpg").write_bytes((style / "a.png").read_bytes())
    with pytest.raises(BadRequest, match="a has two references"):
        done(photos, tmp_path / "odd", method=method, reference=style)
    (style / "a.jpg").unlink()
    (style / "a.png").unlink()
    with pytest.raises(BadRequest, match=r"1 of 4 pictures have no reference in .*, first a\.png; "):
        done(photos, tmp_path / "odd", method=method, reference=style)
    (style / "a.png").write_bytes(b"broken")
    with pytest.raises(Damaged, match="A reference cannot be read"):
        done(photos / "a.png", tmp_path / "odd", method=method, reference=style / "a.png")


def test_captions_come_from_beside_the_pictures(photos: Path, tmp_path: Path) -> None:
    (photos / "a.txt").write_text("a house\nin fog")
    rows = {row.name: row for row in done(photos, tmp_path / "out", said="").rows}
    assert (rows["a.png"].said, rows["a.png"].captioned) == ("a house in fog", ".txt")
    assert rows["sub dir/b.jpg"].flags[0] == "nobody said what it shows"
    (photos / "metadata.csv").write_text("file_name,caption\nsub dir/b.jpg,a tree\n")
    rows = {row.name: row for row in done(photos, tmp_path / "more", said="").rows}
    assert (rows["sub dir/b.jpg"].said, rows["sub dir/b.jpg"].captioned) == ("a tree", "metadata")
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"file_name": "a.png", "caption": "a boat"}))
    rows = {row.name: row for row in done(photos, tmp_path / "given", said=str(listed)).rows}
    assert (rows["a.png"].said, rows["a.png"].captioned) == ("a boat", "--said")


def test_unreadable_pictures_stop_the_run_or_are_named(photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    picture().convert("P").save(photos / "c.gif")
    with pytest.raises(Damaged, match=r"b.png cannot be edited: .*--skip-unreadable"):
        done(photos, tmp_path / "out")
    result = done(photos, tmp_path / "out", skip_unreadable=True)
    assert result.kept == 2, "what came before the broken one"
    assert sorted(text.split(" (")[0] for text in result.skipped) == ["b.png", "c.gif", "notes.doc"]


def test_where_pictures_may_lie(photos: Path, tmp_path: Path) -> None:
    assert [row.name for row in done(photos / "a.png", tmp_path / "one").rows] == ["a.png"]
    assert [row.name for row in done(f"{photos}/*/*.jpg", tmp_path / "glob").rows] == ["sub dir/b.jpg"]
    for out in (photos, photos / "out"):
        with pytest.raises(BadRequest, match="within each other"):
            done(photos, out)
    with pytest.raises(BadRequest, match="within each other"):
        done(tmp_path / "one" / "images", tmp_path / "one")
    with pytest.raises(BadRequest, match="There are no pictures at"):
        done(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="holds no pictures"):
        done(tmp_path / "empty", tmp_path / "out")


def test_frames() -> None:
    colours = np.asarray(picture(40, 24, 5))
    frame = Frame.of(24, 40, 16)
    assert (frame.within, frame.across, frame.top, frame.left) == (10, 16, 3, 0)
    whole = frame.onto(colours)
    assert whole.shape == (1, 3, 16, 16)
    assert np.array_equal(whole[0, :, 0].numpy(), whole[0, :, 3].numpy()), "edges go on beside the picture"
    same = Frame.of(16, 16, 16)
    exact = same.onto(np.asarray(picture()))
    assert np.array_equal(same.back(exact.float(), smooth=True).astype(np.uint8), np.asarray(picture()))
    assert frame.back(whole.float(), smooth=True).shape == (24, 40, 3)
    mask = frame.mask_onto(np.ones((24, 40), np.float32))
    assert float(mask[0, 0, 3:13].min()) == 1
    assert float(mask[0, 0, :3].max()) == 0
    assert Frame.of(1, 4000, 16).within == 1


class Knows:
    knows: Any = None


def said(wanted: Wanted, caption: str, world: bool = False) -> tuple[str, str, str]:
    host = Knows()
    host.knows = Words(FACES) if world else None
    found = said_of(host, wanted, caption, "a name")
    return found.said, found.asked, found.avoided


def test_words() -> None:
    assert said(Wanted(to="a dog"), "")[1] == "a dog"
    assert (
        said(Wanted(to="a dog", instead="a cat"), "photo of A cat on a catalogue")[1] == "photo of a dog on a catalogue"
    )
    assert said(Wanted(to="fog", instead="sun"), "a house")[1] == "a house, fog"
    assert said(Wanted(remove="a hat"), "a man with a hat, smiling") == (
        "a man with a hat, smiling",
        "a man, smiling",
        "a hat",
    )
    assert said(Wanted(remove="hat"), "a man in a hat")[1] == "a man"
    assert said(Wanted(asked="{name}: {said} {else}"), "x {name}")[1] == "a name: x {name} {else}"
    with pytest.raises(BadRequest, match="one thing that shall change"):
        Wanted(to="a", remove="b")
    with pytest.raises(BadRequest, match="give --to"):
        Wanted(asked="a", instead="b")


def test_words_of_a_drawn_world() -> None:
    caption = "a portrait of Ada smiling, without glasses"
    assert said(Wanted(to="glasses"), caption, world=True)[1] == "a portrait of Ada smiling, wearing glasses"
    assert said(Wanted(to="frowning"), caption, world=True)[1] == "a portrait of Ada frowning, without glasses"
    worn = "a portrait of Ada, wearing a cap"
    assert said(Wanted(remove="hat"), worn, world=True)[1] == "a portrait of Ada, bareheaded"
    assert said(Wanted(remove="cap"), worn, world=True)[1] == "a portrait of Ada, bareheaded"


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["edit", str(photos / "a.png"), "--to", "star", "--said", "a house", "--model", str(folder_of("sd"))]
    args += ["--method", "sdedit", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main([*args, "--dry-run"]) == 0
    assert "1 picture, " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main([*args, "--no-mark"]) == 0
    told = capsys.readouterr().out
    assert "do not say that a model made a part of them" in told
    assert main([*args, "--no-mark", "--method.depth", "0.9"]) == 2
    assert "edits of other settings (method)" in capsys.readouterr().err
    assert main(["edit", str(photos), "--model", str(folder_of("sd"))]) == 2
    assert "Say one thing" in capsys.readouterr().err
