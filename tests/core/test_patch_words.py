"""Words of patches: files, algebra, and what no file may bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hostile_files import BASE, HEADER, forge, header_text
from test_patch import Small
from torch import Tensor

from hosts_fixtures import host_of
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.patch import Patch, compose
from palimpsest.core.words import MOST, Word
from words_fixture import word_for

CROWN = Word(vectors={"e": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}, reads_as="shape")
BELL = Word(vectors={"e": torch.ones(3, 4, dtype=torch.float16)})
DELTA = {"a.bias": Dense(value=torch.ones(4))}


def patch_with(**words: Word) -> Patch:
    return Patch(base=BASE, deltas=DELTA, words={f"<{name}>": word for name, word in words.items()})


def test_saved_words_are_read_again(tmp_path: Path) -> None:
    patch = patch_with(crown=CROWN, bell=BELL)
    again = Patch.load(patch.save(tmp_path / "p"))
    assert again.words.keys() == patch.words.keys()
    assert all(again.words[word].same(patch.words[word]) for word in patch.words)
    assert again.sha256() == patch.sha256()
    assert again.format == 2
    assert patch.nbytes() == 4 * 4 + 4 * 4 + 3 * 4 * 2
    other = replace(patch, words=dict(reversed(list(patch.words.items()))))
    assert other.save(tmp_path / "q").read_bytes() == (tmp_path / "p").read_bytes()


def test_every_part_of_a_word_is_part_of_the_identity() -> None:
    patches = [
        Patch(base=BASE, deltas=DELTA),
        patch_with(crown=CROWN),
        patch_with(bell=CROWN),
        patch_with(crown=replace(CROWN, reads_as="")),
        patch_with(crown=CROWN.mapped(lambda v: v + 1)),
        patch_with(crown=CROWN.mapped(lambda v: v.double())),
        patch_with(crown=Word(vectors={"f": CROWN.vectors["e"]}, reads_as="shape")),
    ]
    assert len({p.sha256() for p in patches}) == len(patches)


def test_a_patch_without_words_keeps_its_bytes(tmp_path: Path) -> None:
    assert "words" not in header_text(Patch(base=BASE, deltas=DELTA).save(tmp_path / "p"))


def test_merging_takes_all_words_and_refuses_one_with_two_meanings() -> None:
    crown, bell = patch_with(crown=CROWN), replace(patch_with(bell=BELL), deltas={})
    both = crown | bell
    assert set(both.words) == {"<crown>", "<bell>"}
    assert set(compose(bell, patch_with(bell=BELL.mapped(torch.clone))).words) == {"<bell>"}
    for other in (BELL, replace(CROWN, reads_as=""), CROWN.mapped(lambda v: v + 1)):
        with pytest.raises(BadRequest, match="'<crown>' with different"):
            compose(bell, crown, replace(patch_with(crown=other), deltas={}))
    with pytest.raises(BadRequest, match="one word to a text encoder"):
        compose(crown, Patch(base=BASE, words={"<Crown>": CROWN}))


def test_scaling_leaves_words_and_fusing_refuses_them() -> None:
    patch = patch_with(crown=CROWN)
    assert patch.scaled(0.5).words["<crown>"].same(CROWN)
    host = Small()
    before = host.fingerprint()
    with pytest.raises(Unsupported, match="export a pipeline instead"):
        patch.fuse(host)
    assert host.fingerprint() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"": CROWN}, "1 to 64 letters"),
        ({"x" * 65: CROWN}, "1 to 64 letters"),
        ({"a crown": CROWN}, "no spaces"),
        ({"crown\u00a0": CROWN}, "no spaces"),
        ({'"crown"': CROWN}, "no spaces, quotes"),
        ({"cr\u200bown": CROWN}, "cannot be seen"),
        ({"\x1b[31m": CROWN}, "cannot be seen"),
        ({",": CROWN}, "one letter or digit"),
        ({"<a>": Word(vectors={})}, "no vectors"),
        ({"<a>": Word(vectors={"e": torch.ones(4)})}, r"\(4,\)"),
        ({"<a>": Word(vectors={"e": torch.ones(0, 4)})}, r"\(0, 4\)"),
        ({"<a>": Word(vectors={"e": torch.ones(MOST + 1, 4)})}, r"\(65, 4\)"),
        ({"<a>": Word(vectors={"e": torch.ones(1, 4, dtype=torch.int64)})}, "int64"),
        ({"<a>": Word(vectors={"e": torch.full((1, 4), torch.nan)})}, "not finite"),
        ({"<a>": Word(vectors={"e": torch.ones(1, 4)}, reads_as="\x07")}, "cannot be seen"),
        ({"<a>": CROWN, "<A>": BELL}, "one word to a text encoder"),
        ({"<a>": {"e": torch.ones(1, 4)}}, "it is no Word"),
    ],
)
def test_what_is_no_word_is_neither_saved_nor_applied(tmp_path: Path, words: Any, says: str) -> None:
    patch = Patch(base=BASE, words=words)
    with pytest.raises(BadRequest, match=says) as refused:
        patch.save(tmp_path / "p")
    assert str(refused.value).isprintable()
    with pytest.raises(BadRequest, match=says), patch.applied(Small()):
        pass
    assert list(tmp_path.iterdir()) == []


def entry(word: str = "<a>", reads_as: str = "") -> dict[str, Any]:
    return {"word": word, "reads_as": reads_as}


ROW = {"word|0|e": torch.ones(1, 4)}


@pytest.mark.parametrize(
    ("entries", "tensors", "says"),
    [
        ([], {}, "length of at least 1"),
        ({}, ROW, "'words' is a table"),
        ([entry()] * 1001, ROW, "a length of at"),
        ([{"word": "<a>"}], ROW, "reads_as' is missing"),
        ([{**entry(), "code": "os"}], ROW, "'code|code' is not known"),
        ([entry(reads_as="x" * 201)], ROW, "a length of at"),
        ([entry("a b")], ROW, "no spaces"),
        ([entry()], {}, "no vectors"),
        ([entry()], {"word|1|e": torch.ones(1, 4)}, "does not name"),
        ([entry(), entry()], {**ROW, "word|1|e": torch.ones(1, 4)}, "one word twice"),
        ([entry(), entry("<A>")], {**ROW, "word|1|e": torch.ones(1, 4)}, "one word to a text encoder"),
        ([entry()], {"word|0|e": torch.full((1, 4), torch.inf)}, "not finite"),
        ([entry()], {"word|0|e": torch.ones(65, 4)}, r"\(65, 4\)"),
        ([entry()], {"word|0|e": torch.ones(1, 4, dtype=torch.bool)}, "torch.bool"),
    ],
)
def test_hostile_words_of_a_file_are_refused(
    tmp_path: Path, entries: Any, tensors: dict[str, Tensor], says: str
) -> None:
    path = forge(tmp_path / "p", {**HEADER, "deltas": {}, "words": entries}, tensors)
    with pytest.raises(Damaged, match=says) as refused:
        Patch.load(path)
    assert str(refused.value).isprintable()


def test_a_word_is_held_against_the_model() -> None:
    host = host_of("sd")
    table = next(iter(host.parts("token_embedding")))
    base = host.fingerprint()
    for word, error, says in [
        (Word(vectors={table: torch.ones(1, 9)}), Damaged, "vectors of 9"),
        (Word(vectors={"text_encoder_9.table": torch.ones(1, 16)}), WrongBase, "text_encoder_9"),
    ]:
        with pytest.raises(error, match=says), Patch(base=base, words={"<a>": word}).applied(host):
            pass
    sdxl = host_of("sdxl")
    half = word_for(sdxl)
    half = replace(half, vectors=dict([next(iter(half.vectors.items()))]))
    with pytest.raises(BadRequest, match="reads_as"), sdxl.speaking({"<a>": half}):
        pass
    with sdxl.speaking({"<a>": replace(half, reads_as="star")}):
        pass
    with pytest.raises(Unsupported, match="reads no prompts"):
        Patch(base=BASE, words={"<a>": CROWN}).fits(Small())
