"""Files that are none of theirs: `diff`, `import`, `merge` and `ledger add` say so, and write nothing."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from palimpsest.cli import main
from palimpsest.core.delta import LowRank
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.hook import Hook
from palimpsest.core.patch import Patch
from palimpsest.run import load

NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad files beside a ledger of tiny/sd."""
    folder = tmp_path_factory.mktemp("files")
    host = load("tiny/sd")
    out, inner = tensors_of(host.root)[NAME].shape
    change = LowRank(up=torch.ones(out, 1), down=torch.ones(1, inner) * 1e-3)
    for name, base in (("good", host.fingerprint()), ("stranger", "1" * 64)):
        Patch(base=base, deltas={NAME: change}).save(folder / name / "patch.safetensors")
    wide = LowRank(up=torch.ones(out + 1, 1), down=torch.ones(1, inner))
    Patch(base=host.fingerprint(), deltas={NAME: wide}).save(folder / "wide" / "patch.safetensors")
    Patch(base=host.fingerprint(), hooks=(Hook(id="erase/sld", params={}, tensors={}),)).save(
        folder / "rule.safetensors"
    )
    whole = (folder / "good" / "patch.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-9])
    (folder / "altered.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for name in ("a.pt", "a.safetensors"):
        (folder / name).write_bytes(pickle.dumps({"a": 1}, protocol=2))
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("these are words")
    (folder / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    save_file({"x.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, str(folder / "fp8.safetensors"))
    save_file({"x.weight": torch.ones(2, 2)}, str(folder / "other.safetensors"))
    stray = {"unet.nowhere.lora_A.weight": torch.ones(1, 4), "unet.nowhere.lora_B.weight": torch.ones(4, 1)}
    save_file(stray, str(folder / "stray.safetensors"))
    (folder / "bare").mkdir()
    assert main(["ledger", "new", str(folder / "book"), "--model", "tiny/sd"]) == 0
    return folder


MODEL, PICKLE = r"neither a diffusers pipeline", r"could run code when loaded; it was not opened"
NOT = r"is no patch, LoRA or embedding"
ANSWERS = {  # by file: what `merge --stream`, `diff`, `import` and `ledger add` say; None: it is one of theirs
    "a.pt": (PICKLE,) * 4,
    "a.safetensors": (PICKLE,) * 4,
    "empty.safetensors": (*["cannot be read as"] * 3, NOT),
    "text.safetensors": (*["cannot be read as"] * 3, NOT),
    "m.gguf": (*["is a GGUF file"] * 2, "cannot be read as", NOT),
    "fp8.safetensors": ("only the loaded model", "fp8 checkpoint", "has 'x.weight'", "has 'x.weight'"),
    "bare": (MODEL, MODEL, "give the file of the LoRA", NOT),
    "nowhere.safetensors": ("There is no",) * 4,
    "cut.safetensors": ("cannot be read as",) * 4,
    "altered.safetensors": ("was changed or damaged", "not a whole", "is a patch already", "was changed or damaged"),
    "stray.safetensors": ("palimpsest import", "is a LoRA", "'unet.nowhere.lora_A.weight'", "have no place"),
    "stranger": ("was made for the model 111111111111, but", MODEL, "is a patch already", "the ledger's is"),
    "wide": ("does not fit a tensor of shape", MODEL, "is a patch already", None),
    "rule.safetensors": ("only changes of weights", "not a whole", "is a patch already", None),
}
COMMANDS = (
    ("merge", "good", "BAD", "--model", "tiny/sd", "--stream", "--out", "OUT"),
    ("diff", "tiny/sd", "BAD", "--out", "OUT"),
    ("import", "BAD", "--model", "tiny/sd", "--out", "OUT"),
    ("ledger", "add", "book", "BAD", "--name", "bad"),
)


@pytest.mark.parametrize("bad", ANSWERS)
def test_it_is_refused_in_words_and_nothing_is_written(
    bad: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / "out"
    for command, answer in zip(COMMANDS, ANSWERS[bad], strict=True):
        if answer is None:
            continue
        args = [{"BAD": bad, "OUT": str(out)}.get(word, word) for word in command]
        assert main(args) == 2, command
        said = capsys.readouterr().err
        assert re.search(answer, said), (command, said)
        assert "Traceback" not in said
        assert not out.exists()
    assert not list((files / "book").rglob("*.safetensors"))
