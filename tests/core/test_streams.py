"""Tensors by blocks: from files, into files, and patches that stay in theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_patch import Small, make
from torch import Tensor

from palimpsest.core import stored as stored_tensors
from palimpsest.core.change import Change, diff
from palimpsest.core.delta import Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import Damaged, PalimpsestError, Unsupported, WrongBase
from palimpsest.core.fingerprint import digest, tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.stored import Files, Memory, Piece, Place, Tensors, blocks, digest_of
from palimpsest.core.streams import Stream, write


@given(shape=st.lists(st.integers(0, 7), max_size=4), entries=st.integers(1, 60))
def test_blocks_cover_every_row_once(shape: list[int], entries: int) -> None:
    found = list(blocks(torch.Size(shape), entries))
    rows = shape[0] if shape else 1
    assert [i for start, stop in found for i in range(start, stop)] == list(range(rows))
    size = torch.Size(shape[1:]).numel()
    assert all((stop - start) * size <= max(entries, size) for start, stop in found)


def tensors() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(7, 3, 2, generator=g),
        "a.half": torch.randn(5, 4, generator=g).half(),
        "c.count": torch.tensor(3),
        "d.brain": torch.randn(9, generator=g).bfloat16(),
    }


def test_files_give_what_memory_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tensors, "ENTRIES", 2)
    save_file(tensors(), str(tmp_path / "m.safetensors"))
    held, memory = Tensors(tmp_path / "m.safetensors"), Memory(tensors())
    assert held.names() == memory.names() == sorted(tensors())
    for name, t in tensors().items():
        assert (held.shape(name), held.dtype(name)) == (t.shape, t.dtype)
        assert torch.equal(held.whole(name), t)
        for start, stop in blocks(t.shape, 3):
            assert torch.equal(held.rows(name, start, stop), memory.rows(name, start, stop))
    for dtype in (None, torch.float32, torch.float16):
        assert digest_of(held, dtype) == digest_of(memory, dtype) == digest(tensors(), dtype=dtype)


def test_places_put_pieces_together(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    whole = torch.arange(24.0).reshape(6, 4)
    save_file({"qkv": whole, "turn": whole[:3].clone()}, str(path))
    files = Files(
        {
            "k": Place(torch.Size((2, 4)), (Piece(path, "qkv", 2, 4),)),
            "vq": Place(torch.Size((4, 2, 2)), (Piece(path, "qkv", 4, 6), Piece(path, "qkv", 0, 2))),
            "t": Place(torch.Size((4, 3)), (Piece(path, "turn", 0, 3),), turned=True),
        },
        {"one": torch.eye(2)},
    )
    assert torch.equal(files.rows("k", 0, 2), whole[2:4])
    assert torch.equal(files.rows("vq", 1, 3), torch.stack([whole[5], whole[0]]).reshape(2, 2, 2))
    assert torch.equal(files.rows("t", 1, 4), whole[:3].T[1:])
    assert torch.equal(files.rows("one", 0, 2), torch.eye(2))
    assert files.names() == ["k", "one", "t", "vq"]


def test_numbers_of_few_bits_and_broken_files_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, str(tmp_path / "f8.safetensors"))
    with pytest.raises(Damaged, match="few bits"):
        Tensors(tmp_path / "f8.safetensors")
    save_file({"w": torch.ones(64)}, str(tmp_path / "cut.safetensors"))
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    with pytest.raises(Damaged, match="truncated"):
        Tensors(tmp_path / "cut.safetensors")
    (tmp_path / "later.safetensors").write_bytes(whole)
    held = Tensors(tmp_path / "later.safetensors")
    (tmp_path / "later.safetensors").write_bytes(whole[:-8])
    with pytest.raises(Damaged, match="cut short"):
        held.whole("w")


def test_what_is_written_in_blocks_is_read_by_the_library(tmp_path: Path) -> None:
    streams = {k: Stream.of(t) for k, t in tensors().items()}
    rows = torch.arange(30).reshape(10, 3)
    streams["rows"] = Stream.by_rows(torch.int64, rows.shape, lambda i, j: rows[i:j])
    path = write(tmp_path / "w.safetensors", streams, lambda each: {"told": each["rows"][2]})
    found = load_file(str(path))
    assert all(torch.equal(found[k], t) for k, t in {**tensors(), "rows": rows}.items())
    with safe_open(path, framework="pt") as f:
        assert len(f.metadata()["told"]) == 64
        assert f.metadata()["told"] != "0" * 64
    short = Stream(torch.float32, torch.Size((3,)), lambda: iter([torch.ones(2)]))
    with pytest.raises(PalimpsestError, match="3 numbers and got 2"):
        write(tmp_path / "short.safetensors", {"x": short}, lambda each: {})
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 6), stop=st.integers(0, 6))
def test_rows_of_a_delta_are_those_of_its_dense_form(start: int, stop: int) -> None:
    g, shape = torch.Generator().manual_seed(start), torch.Size((6, 2, 2))
    forms = [
        Dense(value=torch.randn(shape, generator=g)),
        LowRank(up=torch.randn(6, 2, generator=g), down=torch.randn(2, 4, generator=g)),
        Rows(index=torch.tensor([5, 0, 5]), value=torch.randn(3, 2, 2, generator=g)),
        Sparse(index=torch.tensor([23, 0, 7, 7]), value=torch.randn(4, generator=g)),
    ]
    for form in forms:
        torch.testing.assert_close(
            form.rows(shape, start, max(start, stop)), form.dense(shape)[start : max(start, stop)]
        )


def test_a_patch_stays_in_its_file(tmp_path: Path) -> None:
    host = Small()
    patch = make(host)
    opened = Patch.open(patch.save(tmp_path / "p.safetensors"))
    assert opened.sha256() == patch.sha256()
    assert list(opened.deltas) == list(Patch.load(tmp_path / "p.safetensors").deltas)
    with patch.applied(host):
        once = {k: t.clone() for k, t in tensors_of(host.root).items()}
    with opened.applied(host):
        assert all(torch.equal(t, once[k]) for k, t in tensors_of(host.root).items())
    assert opened.save(tmp_path / "again.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()
    whole = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Damaged, match="changed or damaged"):
        Patch.open(tmp_path / "p.safetensors")
    with pytest.raises(Damaged, match="no patch"):
        Patch.open(tmp_path / "none.safetensors")


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_difference_of_files_is_that_of_models(tmp_path: Path, few: bool, dtype: torch.dtype) -> None:
    base, edited = Small(), Small()
    base.root.to(dtype), edited.root.to(dtype)
    with torch.no_grad():
        for _, t in edited.root.named_parameters():
            t.view(-1)[: 2 if few else None] += 0.5
    paths = []
    for i, host in enumerate((base, edited)):
        paths.append(tmp_path / f"{i}.safetensors")
        save_file({k: t.detach().clone() for k, t in tensors_of(host.root).items()}, str(paths[-1]))
    plain = diff(base, edited)
    found = diff(Tensors(paths[0]), Tensors(paths[1]), out=tmp_path / "change.safetensors")
    assert found.base == plain.base == base.fingerprint()
    assert {k: d.kind for k, d in found.deltas.items()} == {k: d.kind for k, d in plain.deltas.items()}
    assert {d.kind for d in plain.deltas.values()} >= ({"sparse"} if few else {"dense"})
    with found.applied(base):
        for name, t in tensors_of(base.root).items():
            assert torch.equal(t, tensors_of(edited.root)[name])
    assert diff(base, base).deltas == {}


def test_models_of_other_shapes_have_no_difference(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"'w'.*\(3,\).*\(2,\)"):
        Change(before=Memory({"w": torch.ones(2)}), after=Memory({"w": torch.ones(3)}), name="other")
    with pytest.raises(Unsupported, match="2 tensors differ"):
        diff(Memory({"w": torch.ones(2)}), Memory({"v": torch.ones(2)}))


def test_one_file_in_two_precisions_is_one_base() -> None:
    half, full = Small(), Small()
    half.root.half()
    full.root.load_state_dict(half.root.state_dict())
    patch = Patch(base=half.fingerprint(), deltas={"a.bias": Dense(value=torch.ones(4))})
    with patch.applied(full):
        pass
    with Patch(base=full.fingerprint(), deltas=patch.deltas).applied(half):
        pass
    with torch.no_grad():
        full.root["a"].bias += 1e-6  # no number of half precision
    with pytest.raises(WrongBase), patch.applied(full):
        pass
