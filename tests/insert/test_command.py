"""palimpsest insert, and the audit of what somebody else taught, on a small random model and pictures of a user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hosts_fixtures import folder_of
from palimpsest.cli import main
from palimpsest.core.patch import Patch

QUICK = ["--prompts", "2", "--seeds", "1", "--sample-steps", "2", "--judge", "none"]
STEPS = ["--steps", "2", "--batch", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and modes, one turned by its camera, one with its caption and one broken."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)

    def save(name: str, shape: tuple[int, ...], mode: str, **more: object) -> None:
        Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8), mode).save(folder / name, **more)

    save("a.png", (40, 30, 3), "RGB")
    save("b.jpg", (33, 50), "L")
    turned = Image.Exif()
    turned[0x0112] = 6
    save("c.jpg", (20, 36, 3), "RGB", exif=turned)
    (folder / "a.txt").write_text("a dog on a sofa")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return folder


def test_a_users_pictures_are_taught_measured_and_audited(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(folder_of("sd")), tmp_path / "out"
    args = ["insert", "<v>", "--images", str(photos), "--like", "a dog", "--keep", "cat", "--model", model, *QUICK]
    assert main([*args, "--out", str(out)]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert not out.exists()
    args += ["--skip-unreadable", "--vectors", "1", *STEPS]
    assert main([*args, "--out", str(out), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "CAT" in told
    assert "“<v> dog”" in told
    assert not out.exists()
    assert main([*args, "--out", str(out)]) == 0
    assert "No judge" in capsys.readouterr().out
    patch = Patch.load(out / "patch.safetensors")
    assert set(patch.words) == {"<v>"}
    assert patch.words["<v>"].reads_as == "dog"
    receipt = json.loads((out / "receipt.json").read_text())
    (newcomer,) = receipt["plan"]["newcomers"]
    assert (newcomer["name"], newcomer["like"], newcomer["references"]) == ("<v> dog", "dog", 3)
    assert len(receipt["pictures"]["references"]) == 3
    assert str(photos) not in (out / "receipt.html").read_text().split("<main")[-1].split("insert ")[0]
    assert main(["verify", str(out / "receipt.json")]) == 0
    assert main([*args, "--out", str(out)]) == 2  # results are there

    again = ["audit", "--before", model, "--after", str(out / "patch.safetensors"), "--concept", "<v>", *QUICK]
    again += ["--images", str(photos), "--like", "dog", "--keep", "cat", "--skip-unreadable"]
    assert main([*again, "--out", str(tmp_path / "audit")]) == 0
    other = json.loads((tmp_path / "audit" / "receipt.json").read_text())
    assert other["pictures"] == receipt["pictures"]
    assert main([*again, "--resurfacing", "--out", str(tmp_path / "b")]) == 2


def test_persons_need_a_word_on_consent(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(folder_of("sd"))
    args = ["insert", "sks", "--images", str(photos / "a.png"), "--like", "person", "--kind", "identity"]
    args += ["--keep", "none", "--model", model, "--method", "dreambooth", "--prior", "0", *QUICK, *STEPS]
    assert main([*args, "--out", str(tmp_path / "a"), "--dry-run"]) == 0
    assert "--consent" in capsys.readouterr().out
    assert main([*args, "--consent", "she agreed in writing", "--out", str(tmp_path / "b")]) == 0
    assert "--consent" not in capsys.readouterr().out
    assert "she agreed in writing" in (tmp_path / "b" / "receipt.html").read_text()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["a b", "--images", "{photos}", "--like", "dog"], "no spaces"),
        (["<a>,<b>", "--images", "{photos}", "--like", "dog"], "1 sources of pictures for 2 words"),
        (["<v>", "--images", "nowhere", "--like", "dog"], "nowhere"),
        (["<v>", "--images", "world:crown", "--like", "shape"], "trained on none"),
        (["<v>", "--images", "{photos}", "--like", "dog", "--captions", "a photo", "--skip-unreadable"], "{word}"),
        (["<v>", "--images", "{photos}", "--like", "dog", "--captions", "file", "--skip-unreadable"], "do not hold"),
    ],
)
def test_bad_input_is_refused_in_words(
    more: list[str], why: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [a.replace("{photos}", str(photos)) for a in more]
    assert main(["insert", *args, "--keep", "none", "--model", str(folder_of("sd")), "--out", str(tmp_path / "o")]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
