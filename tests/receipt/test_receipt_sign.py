"""A signature stands for every byte of a receipt, and so for the patch, the pictures and the judges that it names."""

from __future__ import annotations

import base64
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from evidence_fixtures import Reader, Scribe, patch, receipt
from palimpsest.cli import main
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.receipt.document import sealed
from palimpsest.receipt.sign import keygen, sign, signed_by
from palimpsest.receipt.subjects.generator import Generator
from palimpsest.receipt.verify import verify

pytest.importorskip("cryptography", reason="cryptography is not installed: pip install cryptography")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    receipt(folder)
    keygen(folder / "keys")
    sign(folder / "receipt.json", folder / "keys" / "key.pem")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def wrong(folder: Path) -> list[str]:
    public = folder / "keys" / "public.pem"
    found = verify(folder / "receipt.json", before=Scribe(), subject=Generator(judges=[Reader()]), public_key=public)
    return [str(f) for f in found if not f.ok]


def test_an_honest_signature_holds(folder: Path) -> None:
    assert wrong(folder) == []
    assert signed_by(folder / "receipt.json", folder / "keys" / "public.pem")
    unasked = verify(folder / "receipt.json", before=Scribe(), subject=Generator(judges=[Reader()]))
    assert [f.status for f in unasked if f.what == "signature"] == ["not checked"]


def test_the_private_key_is_its_owners_and_never_overwritten(folder: Path) -> None:
    assert stat.S_IMODE((folder / "keys" / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(BadRequest, match="never overwritten"):
        keygen(folder / "keys")


def number(folder: Path) -> None:
    path = folder / "receipt.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    next(r for r in data["readings"] if r["name"] == "pixel drift")["value"] = 0.0
    path.write_text(json.dumps(sealed(data)), encoding="utf-8")


def picture(folder: Path) -> None:
    page = folder / "receipt.html"
    text = page.read_text(encoding="utf-8")
    first, second = text.split('src="data:image/webp;base64,')[1:3]
    page.write_text(text.replace(first.split('"')[0], second.split('"')[0]), encoding="utf-8")


def another_patch(folder: Path) -> None:
    patch(Scribe(), row=1).save(folder / "patch.safetensors")


def signature(folder: Path) -> None:
    path = folder / "receipt.json.sig"
    head, body = path.read_text(encoding="utf-8").splitlines()
    raw = bytearray(base64.b64decode(body))
    raw[5] ^= 1
    path.write_text(f"{head}\n{base64.b64encode(raw).decode()}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (number, "pixel drift of target: value is 0.0 in the receipt"),
        (number, "signature: it was not made for these bytes"),
        (picture, "pictures of the page"),
        (another_patch, "patch: patch.safetensors is"),
        (signature, "signature: it was not made for these bytes"),
    ],
)
def test_whatever_is_tampered_with_is_named(folder: Path, tamper: Callable[[Path], None], words: str) -> None:
    tamper(folder)
    found = wrong(folder)
    assert any(words in line for line in found), found


def test_another_key_a_missing_and_a_damaged_signature_are_found(folder: Path) -> None:
    keygen(folder / "others")
    assert not signed_by(folder / "receipt.json", folder / "others" / "public.pem")
    path = folder / "receipt.json.sig"
    path.write_text("not a signature", encoding="utf-8")
    assert any("no signature of a receipt" in line for line in wrong(folder))
    with pytest.raises(Damaged):
        signed_by(folder / "receipt.json", folder / "keys" / "public.pem")
    path.unlink()
    assert any("there is no receipt.json.sig" in line for line in wrong(folder))


def test_wrong_keys_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no private key"):
        sign(folder / "receipt.json", folder / "keys" / "public.pem")
    with pytest.raises(BadRequest, match="no public key"):
        signed_by(folder / "receipt.json", folder / "keys" / "key.pem")
    with pytest.raises(BadRequest, match="There is no key"):
        sign(folder / "receipt.json", tmp_path / "nowhere.pem")


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", str(tmp_path / "mine")]) == 0
    assert main(["sign", str(folder / "receipt.json"), "--key", str(tmp_path / "mine" / "key.pem")]) == 0
    public = ["--public-key", str(tmp_path / "mine" / "public.pem")]
    assert main(["verify", str(folder / "receipt.json"), *public]) == 3, "nobody can load the stand-in model"
    assert "same         signature" in capsys.readouterr().out
    number(folder)
    assert main(["verify", str(folder / "receipt.json"), *public]) == 1
    assert "differs      signature" in capsys.readouterr().out
