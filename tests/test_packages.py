"""What the two packages hold, and how they are called wherever a command or a text names them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import palimpsest
from palimpsest import tiny
from palimpsest.core.errors import Unsupported
from palimpsest.run import doctor, load
from palimpsest.tiny import shelf

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = (".safetensors", ".zip", ".pt", ".bin", ".ckpt")


def wheel(project: Path, out: Path) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="hatchling builds the wheels: pip install hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_has_code_and_no_weights(tmp_path: Path) -> None:
    with wheel(ROOT, tmp_path) as built:
        names = built.namelist()
    assert f"palimpsest_concepts-{palimpsest.__version__}" in next(n for n in names if n.endswith("METADATA"))
    assert {"palimpsest/py.typed", "palimpsest/cli/__main__.py", "palimpsest/tiny/shelf.py"} <= set(names)
    assert not [n for n in names if n.endswith(WEIGHTS) or n.startswith(("tests/", "models/", "exam/"))]


def test_the_models_wheel_has_every_file_of_theirs(tmp_path: Path) -> None:
    with wheel(ROOT / "models", tmp_path) as built:
        names = set(built.namelist())
        (entries,) = (built.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    source = ROOT / "models" / "src"
    files = {f.relative_to(source).as_posix() for f in source.rglob("*") if f.is_file() and f.suffix != ".pyc"}
    assert files <= names
    assert any(n.endswith("unet/diffusion_pytorch_model.safetensors.zip") for n in names)
    assert "tiny = palimpsest_models:WEIGHTS" in entries


def test_without_models_every_error_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path / "nothing")
    assert tiny.names() == ()
    for ask in (lambda: load("tiny/sd"), lambda: tiny.path("cifar"), lambda: tiny.oracle("glyphs")):
        with pytest.raises(Unsupported, match=r"pip install 'palimpsest-concepts\[models\]'"):
            ask()
    assert shelf.INSTALL in doctor()["models"]
    monkeypatch.setattr(shelf, "entry_points", lambda **_: ())
    with pytest.raises(Unsupported, match=r"pip install 'palimpsest-concepts\[models\]'"):
        shelf.maker("train_classifier")


def test_other_packages_ship_models_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[palimpsest.models]\nacme = acme_models:FOLDER\n")
    (tmp_path / "acme_models.py").write_text("import pathlib\nFOLDER = pathlib.Path(__file__).parent / 'shelf'\n")
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "mine").symlink_to(tiny.path("digits"))
    monkeypatch.syspath_prepend(tmp_path)
    shelf.shelves.cache_clear()
    try:
        assert tiny.names("acme") == ("mine",)
        assert load("acme/mine").fingerprint() == load("tiny/digits").fingerprint()
        assert "acme/mine" in doctor()["models"]
        with pytest.raises(Unsupported, match="no model acme/yours; installed are mine"):
            load("acme/yours")
    finally:
        shelf.shelves.cache_clear()


def test_no_text_names_the_package_of_somebody_else() -> None:
    """`palimpsest` on PyPI is other people's; the import and the command are called so, the package is not."""
    texts = [p for end in ("py", "md", "toml", "yml") for p in ROOT.rglob(f"*.{end}")] + [ROOT / "Makefile"]
    old = re.compile(r"palimpsest\[|pip install [^\n]*\bpalimpsest\b(?!-concepts)")
    named = {
        str(path.relative_to(ROOT)): found[0]
        for path in texts
        if not {".venv", "runs", "site"} & set(path.relative_to(ROOT).parts) and path != Path(__file__).resolve()
        for found in [old.search(path.read_text(encoding="utf-8"))]
        if found
    }
    assert named == {}


def test_the_changelog_dates_this_version() -> None:
    first = re.search(r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == palimpsest.__version__
