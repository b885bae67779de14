"""Receipts of edited pictures: what is told, what verify finds, whoever edited them. On drawn faces and their twins."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hosts_fixtures import host_of
from palimpsest.cli import main
from palimpsest.core.errors import BadRequest
from palimpsest.data.picture_folders import PictureFolder
from palimpsest.edit.ddim_inversion import DDIMInversion
from palimpsest.probes.evaluators import judge
from palimpsest.receipt.compare import compare
from palimpsest.receipt.document import sealed
from palimpsest.receipt.finding import exit_code
from palimpsest.receipt.schema import Document
from palimpsest.receipt.sign import keygen, sign
from palimpsest.receipt.verify import verify
from palimpsest.run import edit
from palimpsest.run.edit_receipts import are_pictures, audit_pictures
from palimpsest.worlds.faces import FACES
from palimpsest.worlds.twins import twins

N = 5
HOSTILE = "<img src=x onerror=alert(1)>.png"


def write(folder: Path, pictures: Mapping[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces before, with glasses, and masks in which the twins differ; one edit that did nothing."""
    root = tmp_path_factory.mktemp("drawn")
    pair = twins(FACES, "glasses", N, generator=torch.Generator().manual_seed(3), to="glasses")
    before, after = (p.images.permute(0, 2, 3, 1).numpy() for p in (pair.source, pair.truth))
    region = (255 * pair.region[:, 0].numpy()).astype(np.uint8)
    names = [*(f"{i}.png" for i in range(N - 1)), HOSTILE]
    write(root / "before", dict(zip(names, before, strict=True)))
    write(root / "truth", dict(zip(names, after, strict=True)))
    write(root / "masks", dict(zip(names, region, strict=True)))
    write(root / "after", dict(zip(names, [before[0], *after[1:]], strict=True)))
    return root


def audited(drawn: Path, out: Path | None, **how: Any) -> Any:
    said = {"to": "glasses", "judges": ["tiny/faces"], "masks": drawn / "masks", "truth": drawn / "truth", **how}
    return audit_pictures(drawn / "before", drawn / "after", out=out, **said)


@pytest.fixture(scope="module")
def made(drawn: Path) -> Path:
    audited(drawn, drawn / "audit", command="palimpsest audit --before before --after after")
    return drawn


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The pictures and a receipt of them, to be tampered with; what it names lies here."""
    root = Path(shutil.copytree(made, tmp_path / "copy"))
    path = root / "audit" / "receipt.json"
    path.write_text(path.read_text(encoding="utf-8").replace(str(made), str(root)), encoding="utf-8")
    audited(root, root / "audit")
    return root


def check(root: Path, how: Any = "all") -> int:
    return exit_code(verify(root / "audit" / "receipt.json", remeasure=how))


def reading(data: Any, name: str) -> Any:
    return next(r for r in data["readings"] if r["name"] == name)


def test_what_moved_what_stayed_and_what_failed(made: Path) -> None:
    data = json.loads((made / "audit" / "receipt.json").read_text(encoding="utf-8"))
    assert data["subject"] == "edited"
    assert data["headline"] == f"{N - 1} of {N} pictures show “glasses” after the edit, 0 before"
    moved = reading(data, "moved")
    assert (moved["value"], moved["before"], moved["n"]) == (80.0, 0.0, N)
    kept = {r["concept"]: r["value"] for r in data["readings"] if r["name"] == "kept"}
    assert set(kept) == {"expression", "hat", "pose", "light", "style", "background"}
    assert min(kept.values()) >= 80
    assert reading(data, "person")["value"] > 0.8 > reading(data, "person")["detail"]["other"] + 0.3
    assert reading(data, "outside")["detail"]["equal"] == N
    gain = reading(data, "counterfactual gain")
    assert gain["detail"]["harmed"] == 0
    assert gain["value"] > 20
    text = " ".join(s["text"] for s in data["summary"])
    assert "1 of 5 pictures failed: 0.png (not moved)" in text
    assert "bit for bit" in text
    page = (made / "audit" / "receipt.html").read_text(encoding="utf-8")
    assert page.index("<b>0.png</b>") < page.index("<b>1.png</b>"), "failures first"
    assert "<img src=x" not in page
    assert "not known: two folders of pictures were compared" in page


def test_numbers_are_those_of_a_naive_count(drawn: Path) -> None:
    worse = write(drawn / "worse", {})
    for file in (drawn / "after").iterdir():
        picture = np.asarray(Image.open(file)).copy()
        picture[0, 0] = 255 - picture[0, 0]
        Image.fromarray(picture).save(worse / file.name)
    made = audit_pictures(
        drawn / "before", worse, to="glasses", judges=[judge("tiny/faces")], masks=drawn / "masks",
        truth=drawn / "truth",
    )  # fmt: skip
    for i, name in enumerate(made.evidence.plan.names):
        was, now, truth = (
            np.asarray(Image.open(f / name)).astype(float) for f in (drawn / "before", worse, drawn / "truth")
        )
        still = np.asarray(Image.open(drawn / "masks" / name)) == 0
        assert float(made.evidence("picture", "outside")[i]) == pytest.approx(np.abs(now - was)[still].mean(), abs=1e-4)
        assert float(made.evidence("picture", "differing")[i]) == pytest.approx(1 / still.sum(), abs=1e-4)
        due = [-10 * np.log10(np.square(p - truth).mean() / 255**2) for p in (was, now)]
        assert float(made.evidence("picture", "gain")[i]) == pytest.approx(due[1] - due[0], abs=1e-3)
    assert next(r for r in made.readings if r.name == "outside").detail["equal"] == 0


def test_verify_holds_and_every_field_is_told(made: Path) -> None:
    for how in ("none", "sample", "all"):
        findings = verify(made / "audit" / "receipt.json", remeasure=how)  # type: ignore[arg-type]
        assert exit_code(findings) == 0, [str(f) for f in findings if not f.ok]
        told = {field for f in findings for field in f.of}
        assert told >= set(Document.__annotations__), sorted(set(Document.__annotations__) - told)


def tampered(root: Path, what: str) -> None:
    path = root / "audit" / "receipt.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    if what == "a pixel":
        picture = np.asarray(Image.open(root / "after" / "1.png")).copy()
        picture[0, 0, 0] ^= 1
        Image.fromarray(picture).save(root / "after" / "1.png")
    elif what == "a name":
        (root / "after" / "1.png").rename(root / "after" / "9.png")
    elif what == "a mask":
        Image.new("L", (64, 64), 255).save(root / "masks" / "1.png")
    elif what == "a judge":
        data["evaluators"]["faces oracle"]["sha256"] = "0" * 64
        path.write_text(json.dumps(sealed(data)), encoding="utf-8")
    elif what == "a number":
        data["measures"]["picture/outside"][1] = 3.0
        path.write_text(json.dumps(sealed(data)), encoding="utf-8")
    elif what == "a model":
        data["plan"]["model"] = "mine"
        path.write_text(json.dumps(sealed(data)), encoding="utf-8")
    else:
        data["edited"]["kind"] = "model"
        path.write_text(json.dumps(sealed(data)), encoding="utf-8")


@pytest.mark.parametrize("what", ["a pixel", "a name", "a mask", "a judge", "a number", "a model", "a kind"])
def test_what_was_tampered_with_is_found(copy: Path, what: str) -> None:
    assert check(copy, "none") == 0
    tampered(copy, what)
    assert check(copy, "none") == 1


def test_what_is_asked_wrongly_is_said(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="name a judge"):
        audited(drawn, None, judges=[])
    with pytest.raises(BadRequest, match=r"no 'glassy'\. Did you mean glasses"):
        audited(drawn, None, to="glassy")
    with pytest.raises(BadRequest, match="one of the two"):
        audited(drawn, None, remove="hat")
    few = Path(shutil.copytree(drawn / "after", tmp_path / "few"))
    (few / "1.png").rename(few / "1 new.png")
    with pytest.raises(BadRequest, match=r"1 of 5 pictures of .*before have no partner in .*few \(1.png\)"):
        audit_pictures(drawn / "before", few, to="glasses", judges=["tiny/faces"])
    (few / "1 new.png").rename(few / "1.jpg")
    Image.open(drawn / "after" / "1.png").resize((80, 80)).save(few / "1.jpg", format="JPEG")
    with pytest.raises(BadRequest, match="64 x 64 pixels before and 80 x 80 after"):
        audit_pictures(drawn / "before", few, to="glasses", judges=["tiny/faces"])
    (drawn / "few masks").mkdir()
    shutil.copy(drawn / "masks" / "1.png", drawn / "few masks")
    with pytest.raises(BadRequest, match="4 of 5 pictures have none in the folder of masks"):
        audited(drawn, None, masks=drawn / "few masks")


def test_what_shall_be_gone(drawn: Path) -> None:
    made = audit_pictures(drawn / "truth", drawn / "before", remove="glasses", judges=["tiny/faces"])
    assert made.data["headline"] == "4 of 5 pictures show “without glasses” after the edit, 0 before"


def test_partners_have_any_ending() -> None:
    here = PictureFolder(name="a", files={"x.png": Path("1"), "s/y.jpg": Path("2")})
    there = PictureFolder(name="b", files={"x.webp": Path("3"), "s/y_mask.png": Path("4"), "y.jpg": Path("5")})
    assert there.paired(here.files).files == {"x.png": Path("3"), "s/y.jpg": Path("4")}


def test_edits_of_this_program_have_a_receipt(drawn: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    method = DDIMInversion(steps=2, depth=0.5, guidance=2.0)
    how: Any = {"to": "glasses", "said": "a face", "method": method, "out": out, "judges": ["tiny/faces"]}
    done = edit(host_of("sd"), drawn / "before", mark=False, size=16, **how)
    data = done.receipt.data
    assert data["method"]["method"] == "edit/ddim_inversion"
    assert data["method"]["card"]["name"] == "DDIM inversion"
    assert data["plan"]["base"] == host_of("sd").fingerprint()
    assert (
        "0 of 5 files say that a model made a part of them: they were written with --no-mark." in done.receipt.summary()
    )
    assert [r["n"] for r in data["readings"] if r["name"] == "reconstruction"] == [N]
    with open(out / "edits.csv", encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    rebuilt = [float(row["reconstruction"]) for row in table]
    assert done.receipt.evidence("picture", "reconstruction").tolist() == pytest.approx(rebuilt, abs=0.1)
    assert "left out (--no-mark)" in (out / "receipt.html").read_text(encoding="utf-8")
    assert main(["verify", str(out / "receipt.json"), "--remeasure", "all"]) == 0, capsys.readouterr()
    (out / "rebuilt" / "1.png.png").unlink()
    assert edit(host_of("sd"), drawn / "before", mark=False, size=16, **how).kept == N - 1
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    (out / "settings.json").write_text(json.dumps({**settings, "seed": 7}), encoding="utf-8")
    assert main(["verify", str(out / "receipt.json")]) == 1
    assert "seed is 0, settings.json has 7" in capsys.readouterr().out


def test_the_command(made: Path, tmp_path: Path, capsys: Any) -> None:
    args = ["audit", "--before", str(made / "before"), "--after", str(made / "after"), "--out", str(tmp_path / "out")]
    assert main([*args, "--concept", "glasses", "--judge", "tiny/faces"]) == 0
    assert "not moved" in capsys.readouterr().out
    assert main([*args, "--concept", "glasses", "--seeds", "4"]) == 2
    assert "--seeds is about the audit of models" in capsys.readouterr().err
    assert main(["audit", "--before", "tiny/sd", "--after", "x", "--concept", "star", "--remove", "hat"]) == 2
    assert "--remove is about the audit of pictures" in capsys.readouterr().err
    private, public = keygen(tmp_path / "keys")
    sign(tmp_path / "out" / "receipt.json", private)
    assert exit_code(verify(tmp_path / "out" / "receipt.json", public_key=public)) == 0
    compare([tmp_path / "out", made / "audit"], tmp_path / "compared")
    assert "80" in (tmp_path / "compared" / "compare.csv").read_text(encoding="utf-8")


def test_which_paths_mean_pictures(made: Path, tmp_path: Path) -> None:
    assert are_pictures(made / "before")
    assert are_pictures(made / "before" / "1.png")
    assert are_pictures(f"{made}/before/*.png")
    assert not are_pictures("tiny/sd")
    (tmp_path / "model").mkdir()
    shutil.copy(made / "before" / "1.png", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert not are_pictures(tmp_path / "model")
