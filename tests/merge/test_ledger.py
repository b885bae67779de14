"""The ledger of edits: a sum that no order changes, a book that tells when it was altered, and its command."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from palimpsest.cli import main
from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Delta, Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError, Unsupported, WrongBase
from palimpsest.core.fingerprint import fingerprint, tensors_of
from palimpsest.core.hook import Hook
from palimpsest.core.patch import Patch
from palimpsest.core.words import Word
from palimpsest.run import load
from palimpsest.run.ledger import BOOK_FILE, Ledger

FLAT = torch.Size((4, 6))


class Small:
    """A host of two layers."""

    name, knows, device = "small", None, torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.root = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Conv2d(3, 5, 2)})

    def fingerprint(self) -> str:
        return fingerprint(self.root)


HOST = Small()
BASE = HOST.fingerprint()


def edit(seed: int, base: str = BASE, forms: int = 4) -> Patch:
    """An edit of the small host; its form changes with the seed."""
    g = torch.Generator().manual_seed(seed)
    kinds: list[Callable[[], Delta]] = [
        lambda: Dense(value=torch.randn(FLAT, generator=g)),
        lambda: LowRank(up=torch.randn(4, 1, generator=g), down=torch.randn(1, 6, generator=g)),
        lambda: Sparse(index=torch.randperm(24, generator=g)[:7], value=torch.randn(7, generator=g)),
        lambda: Rows(index=torch.tensor([2]), value=torch.randn(1, 6, generator=g)),
    ]
    few = Sparse(index=torch.randperm(60, generator=g)[:7], value=torch.randn(7, generator=g))
    return Patch(
        base=base, deltas={"a.weight": kinds[seed % forms](), "b.weight": few}, provenance={"method": f"{seed}"}
    )


def bits(patch: Patch) -> dict[str, Tensor]:
    shapes = {k: t.shape for k, t in tensors_of(HOST.root).items()}
    return {name: delta.dense(shapes[name]) for name, delta in patch.deltas.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def filled(folder: Path, seeds: list[int]) -> Ledger:
    ledger = Ledger.new(folder, HOST)
    for seed in seeds:
        ledger.add(edit(seed), f"e{seed}")
    return ledger


def test_any_subset_of_twenty_edits_is_the_same_to_the_bit_in_any_order(tmp_path: Path) -> None:
    chance = random.Random(0)
    order = list(range(20))
    there = filled(tmp_path / "a", order)
    back = filled(tmp_path / "b", chance.sample(order, 20))
    for _ in range(2):
        subset = set(chance.sample(order, chance.randrange(21)))
        for ledger in (there, back):
            for seed in chance.sample(order, 20):
                (ledger.on if seed in subset else ledger.off)(f"e{seed}")
        alone = filled(tmp_path / f"{len(list(tmp_path.iterdir()))}", chance.sample(sorted(subset), len(subset)))
        made = [ledger.compose(HOST) for ledger in (there, back, alone)]
        assert len({p.sha256() for p in made}) == 1
        wanted = sum((edit(s).deltas["a.weight"].dense(FLAT) for s in subset), torch.zeros(FLAT))
        torch.testing.assert_close(bits(made[0]).get("a.weight", torch.zeros(FLAT)), wanted, rtol=1e-5, atol=1e-5)


OPERATIONS = st.tuples(
    st.sampled_from(["add", "on", "off", "scale", "drop", "add again"]),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.5, 1.0, -2.0]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATIONS, min_size=25, max_size=25))  # a thousand in all
def test_random_operations_equal_a_plain_table(
    operations: list[tuple[str, int, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = Ledger.new(tmp_path_factory.mktemp("book"), HOST)
    table: dict[int, tuple[float, bool]] = {}
    for did, seed, x in operations:
        name, known = f"e{seed}", seed in table
        if did.startswith("add"):
            if known:
                with pytest.raises(BadRequest, match="already"):
                    ledger.add(edit(seed), name.upper(), scale=x)
            else:
                ledger.add(edit(seed), name, scale=x)
                table[seed] = (x, True)
        elif not known:
            with pytest.raises(BadRequest, match="has no edit"):
                ledger.scale(name, x) if did == "scale" else getattr(ledger, did)(name)
        elif did == "scale":
            ledger.scale(name, x)
            table[seed] = (x, table[seed][1])
        elif did == "drop":
            ledger.drop(name)
            del table[seed]
        else:
            getattr(ledger, did)(name)
            table[seed] = (table[seed][0], did == "on")
    book = ledger.verify()
    assert [(e.name, e.scale, e.on) for e in book.entries] == [(f"e{s}", *held) for s, held in table.items()]
    assert {p.name for p in (ledger.folder / "patches").glob("*")} == {f"{e.sha256}.safetensors" for e in book.entries}
    live = sorted((edit(s).sha256(), s) for s, (_, on) in table.items() if on)
    total = torch.zeros(5, 3, 2, 2)
    for _, s in live:
        total = total + edit(s).scaled(table[s][0]).deltas["b.weight"].dense(total.shape)
    made = bits(ledger.compose(HOST)).get("b.weight", torch.zeros_like(total))
    torch.testing.assert_close(made, total, rtol=1e-5, atol=1e-6)


def test_taking_an_edit_out_brings_back_every_bit(tmp_path: Path) -> None:
    ledger = filled(tmp_path, [1, 2])
    before = ledger.compose(HOST)
    ledger.add(edit(3), "huge", scale=1e9)
    with ledger.compose(HOST).applied(HOST):
        assert HOST.fingerprint() != BASE
    ledger.drop("huge")
    assert ledger.compose(HOST).sha256() == before.sha256()
    assert len(ledger.book.chain) == 5


def test_a_sum_is_written_tensor_by_tensor_to_the_same_bits(tmp_path: Path) -> None:
    ledger = filled(tmp_path, [*range(8)])
    for name, scale in (("e1", 0.5), ("e2", -2.0)):
        ledger.scale(name, scale)
    for off in ((), ("e0", "e1"), ("e2", "e3", "e4", "e5", "e6", "e7")):
        for name in off:
            ledger.off(name)
        whole = ledger.compose(HOST)
        written = ledger.compose(HOST, out=tmp_path / "sum.safetensors")
        assert written.sha256() == whole.sha256() == Patch.load(tmp_path / "sum.safetensors").sha256()
        assert {n: type(d) for n, d in written.deltas.items()} == {n: type(d) for n, d in whole.deltas.items()}
    assert not ledger.compose(HOST, out=tmp_path / "none.safetensors").deltas


def test_two_processes_do_not_change_one_book_and_a_dead_one_keeps_nobody_out(tmp_path: Path) -> None:
    ledger = filled(tmp_path, [1])
    code = """import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(1, flush=True)
time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for change in (lambda: ledger.off("e1"), lambda: ledger.add(edit(2), "e2"), lambda: ledger.drop("e1")):
            with pytest.raises(BadRequest, match="Another process is changing the ledger"):
                change()
        assert [e.name for e in ledger.list()] == ["e1"]  # reading needs no lock
        other.kill()
    ledger.off("e1")
    ledger.add(edit(2), "e2")
    assert [(e.name, e.on) for e in ledger.verify().entries] == [("e1", False), ("e2", True)]


class Killed(BaseException):
    """What no handler of errors takes for one."""


DEEDS: dict[str, Callable[[Ledger], object]] = {
    "add": lambda b: b.add(edit(3), "third"),
    "off": lambda b: b.off("e1"),
    "scale": lambda b: b.scale("e1", 0.5),
    "drop": lambda b: b.drop("e1"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_kill_at_any_write_leaves_the_old_book_or_the_new(
    deed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = filled(tmp_path / "whole", [1, 2])
    old = whole.book
    DEEDS[deed](whole)
    new, seen = whole.book, set()
    for at in range(20):
        ledger = filled(tmp_path / str(at), [1, 2])
        left = [at]
        with monkeypatch.context() as patching:
            for owner, name in (
                (os, "replace"),
                (os, "fsync"),
                (Path, "write_text"),
                (Path, "unlink"),
                (Path, "mkdir"),
            ):
                patching.setattr(owner, name, _killing(getattr(owner, name), left))
            try:
                DEEDS[deed](ledger)
                survived = True
            except Killed:
                survived = False
        book = Ledger(tmp_path / str(at)).verify()
        assert book in (old, new)
        seen.add(book == new)
        if survived:
            break
        DEEDS[deed](ledger) if book == old else None  # and the book can be gone on with
        assert ledger.verify() == new
    assert survived
    assert seen == {False, True}


def _killing(real: Any, left: list[int]) -> Any:
    def call(*args: Any, **rest: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*args, **rest)

    return call


def altered(path: Path, change: Callable[[Any], object], *, seal: int | None = None) -> None:
    held = json.loads(path.read_text())
    change(held)
    if seal is not None:
        line = held["chain"][seal]
        bare = {k: v for k, v in line.items() if k != "sha256"}
        line["sha256"] = hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("change", "seal", "message"),
    [
        (lambda b: b["chain"][2]["entry"].update(scale=3.0), None, "line 3 of its chain is not what"),
        (lambda b: b["chain"][2]["entry"].update(scale=3.0), 2, "line 4 of its chain does not follow"),
        (lambda b: b["chain"].pop(1), None, "line 2 of its chain does not follow"),
        (lambda b: b["chain"].pop(), None, "'e1' is not what the 3 lines"),
        (lambda b: b["chain"][-1].update(name="e9"), 3, "line 4 of its chain cannot be: The ledger has no edit"),
        (lambda b: b["chain"][-1].pop("name"), 3, "line 4 of its chain cannot be"),
        (lambda b: b["entries"][1].update(on=False), None, "'e2' is not what"),
        (lambda b: b.update(base="0" * 64), None, "what it says of its model"),
        (lambda b: b.update(model="\x1b[2Jother"), None, "what it says of its model"),
        (lambda b: b.update(more=1), None, "'more' is not known"),
        (lambda b: b["entries"][0].update(scale="much"), None, "expected a finite number"),
        (lambda b: b["entries"][0].update(name="../../x\x1b"), None, "cannot be the name of an edit"),
        (lambda b: b["entries"][0].update(sha256="../../../etc/passwd"), None, "expected a sha256"),
    ],
)
def test_an_altered_book_is_refused_and_the_line_named(
    change: Callable[[Any], object], seal: int | None, message: str, tmp_path: Path
) -> None:
    ledger = filled(tmp_path, [1, 2])
    ledger.off("e1")
    altered(tmp_path / BOOK_FILE, change, seal=seal)
    with pytest.raises(Damaged, match=message) as found:
        Ledger(tmp_path)
    assert "\x1b" not in str(found.value)
    with pytest.raises(Damaged):
        ledger.on("e1")


def test_another_patch_in_the_place_of_an_edit_is_found(tmp_path: Path) -> None:
    ledger = filled(tmp_path, [1, 2])
    first, second = (tmp_path / "patches" / f"{e.sha256}.safetensors" for e in ledger.list())
    second.write_bytes(first.read_bytes())
    for deed in (ledger.verify, lambda: ledger.compose(HOST)):
        with pytest.raises(Damaged, match="not the patch that was added as e2"):
            deed()
    second.unlink()
    with pytest.raises(Damaged, match="There is no patch"):
        ledger.verify()


def test_what_a_ledger_does_not_take(tmp_path: Path) -> None:
    ledger = filled(tmp_path, [1])
    with pytest.raises(BadRequest, match="an edit e1 already"):
        ledger.add(edit(2), "E1")
    with pytest.raises(BadRequest, match="same patch is in the ledger as e1"):
        ledger.add(edit(1), "other")
    with pytest.raises(BadRequest, match="no edit 'e7'; its edits: e1"):
        ledger.off("e7")
    with pytest.raises(BadRequest, match="is to be a number"):
        ledger.scale("e1", float("inf"))
    with pytest.raises(WrongBase, match=r"With all that is switched on it is"):
        ledger.add(edit(2, base="1" * 64), "stray", host=HOST)
    with pytest.raises(WrongBase, match="This ledger is of the model"):
        ledger.add(edit(2, base="1" * 64), "stray", host=Small(1))
    misfit = Patch(base=BASE, deltas={"a.weight": Dense(value=torch.zeros(2, 2))})
    with pytest.raises(Damaged, match="does not fit"):
        ledger.add(misfit, "odd", host=HOST)
    with pytest.raises(BadRequest, match="another folder"):
        Ledger.new(tmp_path, HOST)
    with pytest.raises(Damaged, match="There is no ledger"):
        Ledger(tmp_path / "nowhere")
    with pytest.raises(BadRequest, match="is no patch"):
        ledger.add(tmp_path / BOOK_FILE, "file")
    for name in ("", " a", "a\nb", "\x1b[2J", "x" * 65, "\u202eabc"):
        with pytest.raises(BadRequest, match="cannot be the name"):
            ledger.add(edit(2), name)
    assert [e.name for e in ledger.verify().entries] == ["e1"]
    assert len(list((tmp_path / "patches").iterdir())) == 1


def test_hostile_names_are_names(tmp_path: Path) -> None:
    ledger = Ledger.new(tmp_path / "book", HOST)
    for i, name in enumerate(["../../up", "--force", "<b>x</b>", "a" * 64, "{0.__class__}", "; rm -rf ~"]):
        ledger.add(edit(i), name, note="\x1b[2J\n" * 3)
        ledger.off(name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["book"]
    assert len(ledger.verify().entries) == 6


def test_an_edit_of_an_edited_model_is_stale_once_that_edit_is_gone(tmp_path: Path) -> None:
    ledger = filled(tmp_path, [1])
    with ledger.compose(HOST).applied(HOST):
        above = edit(2, base=HOST.fingerprint())
    assert [u.name for u in ledger.add(above, "above", host=HOST).on_top_of] == ["e1"]
    with ledger.compose(HOST).applied(HOST):
        both = HOST.fingerprint()
    with edit(1).applied(HOST), above.applied(HOST):
        one_by_one = {k: t.clone() for k, t in tensors_of(HOST.root).items()}
    with ledger.compose(HOST).applied(HOST):
        assert HOST.fingerprint() == both
        for name, t in tensors_of(HOST.root).items():
            torch.testing.assert_close(t, one_by_one[name])

    def why() -> str:
        return ledger.book.stale(ledger.book.entry("above"))

    assert why() == ""
    ledger.scale("e1", 0.5)
    assert why() == "made on top of e1 at 1, which is at 0.5"
    ledger.scale("e1", 1)
    ledger.off("e1")
    assert why() == "made on top of e1, which is off"
    with pytest.raises(BadRequest, match="above was made on top of e1"):
        ledger.drop("e1")
    ledger.drop("e1", force=True)
    assert why() == "made on top of e1, which is dropped"
    assert same(bits(ledger.compose(HOST)), bits(above))
    ledger.add(edit(1), "again", host=HOST)
    assert why() == ""
    ledger.verify()


def test_rules_and_words_come_along(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "book", [1])
    rule = Patch(base=BASE, hooks=(Hook(id="erase/sld", params={}, tensors={}),))
    word = Patch(base=BASE, words={"<x>": Word(vectors={"t": torch.ones(1, 3)}, reads_as="thing")})
    ledger.add(rule, "rule")
    ledger.add(word, "word")
    made = ledger.compose(HOST)
    assert ([h.id for h in made.hooks], set(made.words), set(made.deltas)) == (
        ["erase/sld"], {"<x>"}, {"a.weight", "b.weight"},
    )  # fmt: skip
    assert Patch.load(ledger.write(tmp_path / "out")).sha256() == made.sha256()
    with pytest.raises(Unsupported, match="own strength"):
        ledger.scale("rule", 0.5)
    with pytest.raises(Unsupported, match="which a LoRA cannot"):
        ledger.write(tmp_path / "lora", format="peft", host=HOST)
    for name in ("e1", "rule", "word"):
        ledger.off(name)
    for deed in (lambda: ledger.write(tmp_path / "none"), lambda: ledger.case(HOST)):
        with pytest.raises(BadRequest, match="switched on; there is nothing"):
            deed()
    assert not (tmp_path / "none").exists()


# -- as a user -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three edits of tiny/sd, made up."""
    folder, host = tmp_path_factory.mktemp("edits"), load("tiny/sd")
    tensors = tensors_of(host.root)
    names = sorted(n for n in tensors if n.endswith("attn2.to_k.weight"))[:2]
    for seed, word in enumerate(("star", "moon", "ring")):
        g = torch.Generator().manual_seed(seed)
        deltas = {
            n: LowRank(up=torch.randn(len(t), 1, generator=g), down=torch.randn(1, t.shape[1], generator=g))
            for n, t in tensors.items()
            if n in names
        }
        made: dict[str, Any] = {"method": "made up"}
        if word == "star":  # one is enough to be drawn
            made["request"] = Request(target=(Concept(name=word),)).plain()
        patch = Patch(base=host.fingerprint(), deltas=deltas, provenance=made)
        patch.scaled(0.01).save(folder / f"no-{word}" / "patch.safetensors")
    return folder


def test_the_command_keeps_checks_and_writes(edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = str(tmp_path / "book")

    def said(*args: str, code: int = 0) -> str:
        assert main(["ledger", args[0], book, *args[1:]]) == code
        shown = capsys.readouterr()
        return shown.out + shown.err

    assert "tiny/sd" in said("new", "--model", "tiny/sd")
    for word in ("star", "moon"):
        said("add", str(edits / f"no-{word}"), "--name", f"no-{word}", "--note", "\x1b[2J\nmine")
    said("add", str(edits / "no-ring" / "patch.safetensors"), "--name", "no-ring", "--scale", "2")
    said("off", "no-ring")
    said("scale", "no-moon", "-0.5")
    listed = said("list")
    assert "\x1b" not in listed
    assert [line.split()[:4] for line in listed.splitlines()[1:]] == [
        ["no-star", "on", "x", "1"], ["no-moon", "on", "x", "-0.5"], ["no-ring", "off", "x", "2"],
    ]  # fmt: skip
    assert "star" in listed.splitlines()[1]
    assert "no-moon" in said("check", "--plan")
    few = ["--prompts", "1", "--seeds", "1", "--sample-steps", "1", "--workers", "1"]
    shown = said("check", *few, "--out", str(tmp_path / "checked"))
    assert "cosine" in shown
    receipt = json.loads((tmp_path / "checked" / "receipt.json").read_text())
    assert receipt["subject"] == "merged"
    assert {m["name"] for m in receipt["plan"]["merged"]} == {"no-star", "no-moon"}
    said("write", "--out", str(tmp_path / "patch"))
    host = load("tiny/sd")
    written = Patch.load(tmp_path / "patch" / "patch.safetensors")
    written.fits(host)
    checked = Patch.load(tmp_path / "checked" / "patch.safetensors")
    for name, delta in written.deltas.items():
        shape = tensors_of(host.root)[name].shape
        assert torch.equal(delta.dense(shape), checked.deltas[name].dense(shape))
    said("write", "--format", "peft", "--out", str(tmp_path / "lora"))
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    said("add", str(tmp_path / "lora"), "--name", "lora")
    said("drop", "lora")
    assert said("verify").startswith("whole: 8 lines, 3 edits")
    assert "already holds" in said("write", "--out", str(tmp_path / "patch"), code=2)
    assert "has no edit 'nobody'" in said("drop", "nobody", code=2)
    altered(tmp_path / "book" / BOOK_FILE, lambda b: b["chain"][4].update(did="on"))
    assert "line 5 of its chain" in said("list", code=2)


def test_what_stood_on_a_dropped_edit_is_made_anew(edits: Path, tmp_path: Path) -> None:
    host, system = load("tiny/sd"), catalog.load("erase/uce")()
    asked = {word: Request(target=(Concept(name=word),)) for word in ("moon", "ring", "leaf")}
    ledger = Ledger.new(tmp_path / "book", host)
    ledger.add(edits / "no-star", "no-star")
    for word, request in asked.items():  # each on top of all before it
        with ledger.compose(host).applied(host):
            patch = system(host, request, seed=1)
        ledger.add(patch, f"no-{word}", host=host)
    ledger.scale("no-leaf", 0.5)
    ledger.off("no-leaf")
    old = ledger.book
    assert [len(e.on_top_of) for e in ledger.list()] == [0, 1, 2, 3]
    made = ledger.drop("no-moon", remake=True, host=host)
    assert [e.name for e in made] == ["no-ring", "no-leaf"]
    book = ledger.verify()
    assert [e.name for e in book.entries] == ["no-star", "no-ring", "no-leaf"]
    assert [[u.name for u in e.on_top_of] for e in made] in ([["no-star"], ["no-star", "no-ring"]],
                                                             [["no-star"], ["no-ring", "no-star"]])  # fmt: skip
    assert (made[1].scale, made[1].on) == (0.5, False)
    assert not any(book.stale(e) for e in book.entries)
    held = {p.name for p in (tmp_path / "book" / "patches").iterdir()}
    assert held == {f"{e.sha256}.safetensors" for e in book.entries}
    alone = Ledger.new(tmp_path / "alone", host)  # as if it had been so from the beginning
    alone.add(edits / "no-star", "no-star")
    with alone.compose(host).applied(host):
        assert system(host, asked["ring"], seed=1).sha256() == made[0].sha256
    assert len(book.chain) == len(old.chain) + 5
    last = Ledger.new(tmp_path / "last", host)  # the first patch does not say how it was made
    with Patch.open(edits / "no-ring" / "patch.safetensors").applied(host):
        above = Patch(base=host.fingerprint(), deltas=Patch.load(edits / "no-moon" / "patch.safetensors").deltas)
    last.add(edits / "no-ring", "below")
    last.add(above, "above", host=host)
    before = last.book
    with pytest.raises(BadRequest, match="above cannot be made anew: its patch does not say 'request'"):
        last.drop("below", remake=True, host=host)
    assert last.verify() == before


def test_a_book_of_another_version_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    altered(tmp_path / BOOK_FILE, lambda b: b.update(schema="palimpsest/ledger/2"))
    with pytest.raises(PalimpsestError, match="palimpsest/ledger/1"):
        Ledger(tmp_path)
