"""Two processes divide each step of a training, and the step is that of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hosts_fixtures import folder_of
from palimpsest import cli, machine
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.processes import Workers
from palimpsest.run.do import _divide
from palimpsest.train import ranks
from palimpsest.train.training import Training
from ranks_fixture import Share, divided, trained

REFUSED = {"unlearn/gradient_collision": "differentiates gradients in its loss"}
SYSTEMS = [
    i
    for i, e in catalog.entries().items()
    if e.module.startswith("palimpsest.") and issubclass(catalog.load(i), Training)
]
WHOLE = {"erase/mace"}  # looks into the forwards of its one training
# The forms that a loss can take: of one forward; words that are learnt inside the loss; a mask of gradients; one
# forward that reads another's answer; statistics of the batch; maps from inside the model; features beside answers.
FORMS = (
    *("erase/esd", "erase/adv_unlearn", "erase/salun", "erase/score_forgetting", "erase/invdiff", "erase/mace"),
    *("unlearn/neg_grad_plus", "unlearn/scar", "unlearn/gradient_collision"),
)


def together(systems: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """What either process has at the end."""
    shares = [Share(rank, str(folder / "meeting"), systems, str(folder)) for rank in (0, 1)]
    with Workers(2) as crew:
        found = dict(crew.each(divided, shares))
    return [found[share] for share in shares]


def compare(systems: tuple[str, ...], folder: Path) -> None:
    first, second = together(systems, folder)
    for system in systems:
        if system in REFUSED:
            assert REFUSED[system] in first[system]
            assert first[system] == second[system]
            continue
        assert not isinstance(first[system], str), (system, first[system])
        alone = trained(system)
        rows = [int(done.pop("")) for done in (alone, first[system], second[system])]
        shared = rows[1] + rows[2] < 1.5 * rows[0]
        assert shared or not rows[0] or system in WHOLE, f"{system}: {rows} rows of the denoiser, not divided"
        assert first[system].keys() == second[system].keys() == alone.keys(), system
        assert alone, system
        for name in alone:
            assert np.array_equal(first[system][name], second[system][name]), f"{system}: processes drift apart"
        apart = np.sqrt(sum(((first[system][n] - alone[n]) ** 2).sum() for n in alone))
        size = np.sqrt(sum((alone[n] ** 2).sum() for n in alone))
        assert apart <= 1e-3 * size, f"{system}: {apart / size:.2g} of the change"


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    compare(FORMS, tmp_path)
    assert list(tmp_path.glob("erase/esd-0/*")), "process 0 writes"
    assert not list(tmp_path.glob("*/*-1")), "it alone"


@pytest.mark.slow
def test_every_erasing_training_is_divided(tmp_path: Path) -> None:
    rest = tuple(system for system in SYSTEMS if system not in FORMS and system.startswith("erase/"))
    assert len(rest) > 5
    compare(rest, tmp_path)


def test_what_cannot_be_divided_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.testing import quick

    monkeypatch.setattr(ranks, "world", lambda: 3)
    with pytest.raises(BadRequest, match="UCE trains nothing that 3 processes could divide"):
        _divide(quick("erase/uce"))
    _divide(quick("erase/esd"))
    _divide(catalog.load("unlearn/upcore")())
    method = quick("erase/esd")
    with pytest.raises(BadRequest, match=r"batch is 2; 3 processes cannot divide it\. Give a batch of at least 3"):
        method._divide({"method": "erase/esd"})


def test_alone_nothing_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert machine.launched() == ranks.world() == 1
    assert ranks.rank() == 0
    with ranks.joined("cuda") as number:
        assert number == 0
    assert ranks.place("cuda") == "cuda"
    host = object()
    with ranks.divided(host):
        assert not vars(type(host)).get("predict")
    ranks.agree("anything", torch.rand(()))


def test_a_launched_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    assert machine.launched() == 4
    assert [ranks.place(device) for device in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


def test_commands_that_train_nothing_are_refused_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["ls"]) == 2
    assert capsys.readouterr().err.count("without `accelerate launch`") == 1


@pytest.mark.slow
def test_a_verb_is_launched_as_torchrun_and_accelerate_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    verb = ["palimpsest.cli", "erase", "star", "--model", str(folder_of("sd")), "--method", "esd", "--steps", "2"]
    look = ["--batch", "2", "--walk-steps", "3", "--prompts", "1", "--seeds", "1", "--sample-steps", "1"]
    done = subprocess.run(
        [*launch, *verb, *look, "--keep", "moon", "--out", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("receipt.json") == 1, "process 0 alone speaks"
    assert {"patch.safetensors", "receipt.json", "receipt.html"} <= {file.name for file in out.iterdir()}
