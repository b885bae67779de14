"""What decides a model's answers beside its tensors is stated, held against the model, and told by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_receipt_verify import check, edit, wrong

from evidence_fixtures import Reader, Scribe, patch, receipt, small_plan
from hosts_fixtures import folder_of, host_of
from palimpsest.cli import main
from palimpsest.core.delta import Dense
from palimpsest.core.errors import WrongBase
from palimpsest.core.patch import Patch
from palimpsest.hosts.load import load
from palimpsest.receipt import audit
from palimpsest.receipt.finding import Finding, exit_code
from palimpsest.receipt.settings import settings_of
from palimpsest.receipt.subjects.generator import Generator

Data = dict[str, Any]
SMALL = ["--prompts", "1", "--seeds", "1", "--sample-steps", "1", "--keep", "moon"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    receipt(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def of_settings(findings: list[Finding]) -> Finding:
    (found,) = [f for f in findings if "settings" in f.what]
    return found


def other(change: Callable[[Data], object]) -> Scribe:
    """The same tensors under other settings."""
    host = Scribe()
    host.set = deepcopy(host.set)
    change(host.set)
    return host


def test_settings_are_stated_and_held(folder: Path) -> None:
    stated = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))["base"]["settings"]
    assert stated == settings_of(Scribe())
    assert stated["values"] == Scribe().settings()
    assert of_settings(check(folder)).status == "same"
    assert stated["sha256"] in (folder / "receipt.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["scheduler"].update(beta_end=0.02), "scheduler.beta_end was 0.012, is 0.02"),
        (lambda s: s["scheduler"].update(clip=0), "scheduler.clip was False, is 0"),
        (lambda s: s["labels"].reverse(), "labels[0] was 'star', is 'moon'; labels[1] was 'moon', is 'star'"),
        (lambda s: s["labels"].append("ring"), "labels[2] was absent, is 'ring'"),
        (lambda s: s.pop("labels"), "labels[0] was 'star', is absent"),
        (lambda s: s.update(labels=[f"l{i}" for i in range(9)]), "; and 4 more"),
    ],
)
def test_another_setting_is_named_and_nothing_is_drawn(folder: Path, change: Any, words: str) -> None:
    host = other(change)
    findings = check(folder, before=host, remeasure="all")
    assert words in str(of_settings(findings))
    assert exit_code(findings) == 1
    assert host.drawn == 0
    assert any(f.what == "measuring again" and f.status == "not checked" for f in findings)


def test_a_forged_setting_is_found(folder: Path) -> None:
    edit(folder, lambda d: d["base"]["settings"]["values"]["scheduler"].update(beta_end=0.02), reseal=True)
    assert any("sha256" in line for line in wrong(check(folder)))


def test_a_receipt_that_states_no_settings_is_read_and_told_to_be_incomplete(folder: Path) -> None:
    edit(folder, lambda d: d["base"].pop("settings"), reseal=True)
    findings = check(folder, remeasure="all")
    assert "does not state them" in of_settings(findings).detail
    assert exit_code(findings) == 3


def test_settings_that_another_library_version_adds_are_no_difference(folder: Path) -> None:
    host = other(lambda s: s["scheduler"].update(new=None))
    assert "scheduler.new was absent" in wrong(check(folder, before=host))[0]
    edit(folder, lambda d: d["versions"].update(diffusers="0.1"), reseal=True)
    found = of_settings(check(folder, before=host))
    assert found.status == "not checked"
    assert "diffusers 0.1" in found.detail
    changed = other(lambda s: s["scheduler"].update(new=None, beta_end=0.5))
    assert of_settings(check(folder, before=changed)).status == "differs"


def test_two_models_of_other_settings_are_told_of_both(tmp_path: Path) -> None:
    host, edited = Scribe(), other(lambda s: s["scheduler"].update(beta_end=0.02))
    plan = small_plan(host, prompts=2, seeds=1, unrelated=1, neighbours=1)
    made = audit(host, edited, plan.request, subject=Generator(plan=plan, judges=[Reader()]), out=tmp_path)
    assert "No weight is changed." in made.summary()
    assert "scheduler.beta_end was 0.012, is 0.02" in made.data["summary"][-1]["text"]
    assert wrong(check(tmp_path, after=edited, remeasure="all")) == []
    assert any("settings of the edited model" in line for line in wrong(check(tmp_path, after=host)))
    edit(tmp_path, lambda d: d["summary"].pop(), reseal=True)
    assert any("summary" in line for line in wrong(check(tmp_path, after=edited)))


# -- precision ---------------------------------------------------------------------------------------------


def test_a_receipt_in_bfloat16_names_the_option(tmp_path: Path) -> None:
    def host(dtype: torch.dtype) -> Scribe:
        made = other(lambda s: s.update(dtype=str(dtype).removeprefix("torch.")))
        torch.nn.init.constant_(made.root.get_parameter("unet.weight"), 0.1)
        made.root.to(dtype)
        return made

    of_half, whole = host(torch.bfloat16), host(torch.float32)
    plan = small_plan(whole, prompts=1, seeds=1, unrelated=1, neighbours=1)
    subject = Generator(plan=plan, judges=[])
    audit(of_half, Patch(base=of_half.fingerprint()), plan.request, subject=subject, out=tmp_path / "half")
    audit(whole, Patch(base=whole.fingerprint()), plan.request, subject=subject, out=tmp_path / "whole")
    for made, now, words in (
        ("half", whole, "precision is the difference: float32 here, bfloat16 there; give --dtype bfloat16"),
        ("whole", of_half, "is loaded in bfloat16, the receipt is about it in float32: to compare them give --dtype"),
    ):
        findings = check(tmp_path / made, before=now, judges=[])
        assert words in next(f.detail for f in findings if f.what == "untouched model")
        assert exit_code(findings) == 3
    edit(tmp_path / "whole", lambda d: d["base"].update(settings=None), reseal=True)
    assert any("is now" in line for line in wrong(check(tmp_path / "whole", before=of_half, judges=[])))


def test_a_patch_for_another_precision_says_so() -> None:
    half, whole = load(folder_of("sd"), dtype="bfloat16"), host_of("sd")
    with pytest.raises(WrongBase, match=r"Precision is the difference: .*in float32, not in bfloat16 \(--dtype bfl"):
        Patch(base=half.fingerprint()).fits(whole)
    with pytest.raises(WrongBase, match=r"loaded in bfloat16; a patch fits the precision .*\(--dtype float32\)"):
        Patch(base=whole.fingerprint()).fits(half)
    with pytest.raises(WrongBase, match=r"^[^(]*close\.$"):
        Patch(base="0" * 64).fits(whole)


# -- from the command line -----------------------------------------------------------------------------------


def rescheduled(folder: Path, **changes: Any) -> str:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def test_a_model_folder_whose_scheduler_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shutil.copytree(folder_of("sd"), tmp_path / "model"))
    base = load(model)
    (name, tensor), *_ = base.root.named_parameters()
    made = Patch(base=base.fingerprint(), deltas={name: Dense(value=torch.full(tensor.shape, 0.01))})
    file = str(made.save(tmp_path / "p.safetensors"))
    out = tmp_path / "audit"
    assert main(["audit", "--before", model, "--after", file, "--concept", "star", "--out", str(out), *SMALL]) == 0
    assert main(["verify", str(out / "receipt.json")]) == 0
    rescheduled(Path(model), beta_end=0.02)
    capsys.readouterr()
    assert main(["verify", str(out / "receipt.json")]) == 1
    assert "scheduler.beta_end was 0.012, is 0.02" in capsys.readouterr().out


def test_an_audit_of_two_models_tells_their_settings_and_refuses_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, out = str(folder_of("sd")), ["--out", str(tmp_path / "out")]
    after = rescheduled(Path(shutil.copytree(before, tmp_path / "after")), beta_end=0.02)
    about = ["audit", "--before", before, "--concept", "star", *SMALL, *out]
    assert main([*about, "--after", after]) == 0
    told = capsys.readouterr().out
    assert told.count("also differ in settings") == 2, "before anything is drawn, and in the receipt"
    assert "scheduler.beta_end was 0.012, is 0.02" in told
    assert main(["verify", str(tmp_path / "out" / "receipt.json")]) == 0

    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr("palimpsest.hosts.diffusion.DiffusionHost.sample", drawn)
    others = [(str(folder_of(family)), "is no edit of") for family in ("sd3", "sdxl")]
    for odd, words in (*others, (_foreign(tmp_path), "was made for the model")):
        assert main([*about, "--after", odd, "--overwrite"]) == 2
        assert words in capsys.readouterr().err


def _foreign(folder: Path) -> str:
    return str(patch(Scribe()).save(folder / "foreign.safetensors"))


def test_whole_checkpoints_in_one_file_bear_other_names_and_are_compared_once_loaded(tmp_path: Path) -> None:
    from palimpsest.hosts.load import check_alike

    file = tmp_path / "edited.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, str(file))
    check_alike(host_of("sd"), file)


def test_a_classifiers_preprocessing_and_labels_are_among_its_settings(tmp_path: Path) -> None:
    from palimpsest.hosts.classifiers import ClassifierHost
    from palimpsest.hosts.preprocessing import Preprocessing

    def host(labels: str, **more: Any) -> ClassifierHost:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        return ClassifierHost(model, name="c", labels=list(labels), head="1", preprocessing=Preprocessing(**more))

    plain = host("ab", mean=(0.5, 0.5, 0.5)).settings()
    assert json.loads(json.dumps(plain))["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert plain["dtype"] == "float32"
    assert plain["labels"] == ["a", "b"]
    assert plain != host("ba", mean=(0.5, 0.5, 0.5)).settings()
