"""Hostile patches: whatever a file says, it is refused in words or is a patch; the model is as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_patch import Small, make
from torch import Tensor

from palimpsest.core.delta import KINDS, Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.host import Denoiser
from palimpsest.core.patch import Hook, Patch, compose

HOST = Small()
NEEDED = {n for c in Denoiser.__mro__ for n in (*vars(c), *get_annotations(c)) if n[0] != "_"} - set(dir(Small))
SAMPLES = type("Samples", (Small,), dict.fromkeys(NEEDED, print) | {"guide": None})()
"""The same as something that samples: hooks may be attached to it."""
BASE = HOST.fingerprint()
UP, DOWN = torch.ones(4, 1), torch.ones(1, 6)
W = {"delta|a.weight|up": UP, "delta|a.weight|down": DOWN}
HEADER = {"format": 2, "base": BASE, "deltas": {"a.weight": "low_rank"}, "hooks": [], "provenance": {}}


def forge(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], text: str | None = None) -> Path:
    """A patch of format 2 by hand, sealed as it should be: the seal is a hash, which anyone can compute."""

    def bits(t: Tensor) -> bytes:
        return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    each = {k: [str(t.dtype), list(t.shape), hashlib.sha256(bits(t)).hexdigest()] for k, t in tensors.items()}
    seal = hashlib.sha256(json.dumps([each, header], sort_keys=True).encode()).hexdigest()
    text = json.dumps({**header, "sha256": seal}) if text is None else text
    save_file({k: t.contiguous() for k, t in tensors.items()}, str(path), metadata={"palimpsest": text})
    return path


def use(path: Path, host: Any = HOST) -> None:
    """All that a patch is read for; the host must be as it was."""
    patch = Patch.load(path)
    patch.nbytes()
    with patch.applied(host, force=True):
        pass
    compose(patch, patch.scaled(1.0), overlap="sum")


def test_what_is_forged_rightly_is_read(tmp_path: Path) -> None:
    path = forge(tmp_path / "p", HEADER, W)
    use(path)
    assert Patch.load(path).sha256() == json.loads(header_text(path))["sha256"]


def header_text(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        return f.metadata()["palimpsest"]


DEEP: Any = 0
for _ in range(70):
    DEEP = [DEEP]
SAID = {"parameters": {}, "request": {"target": [{"name": "star"}], "keep": [], "toward": []}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": 1}, "'extra' is not known"),
        ({"format": -3}, "'format' is -3"),
        ({"format": 0}, "'format' is 0"),
        ({"format": 3}, "upgrade"),
        ({"format": 2.0}, "'format' is 2.0"),
        ({"format": True}, "'format' is True"),
        ({"format": "2"}, "'format' is '2'"),
        ({"format": None}, "'format' is None"),
        ({"base": 1}, "'base' is 1"),
        ({"base": "x\x1b[31m"}, "fingerprint"),
        ({"deltas": []}, "'deltas' is a list of 0"),
        ({"deltas": {"a.weight": "denser"}}, "denser"),
        ({"deltas": {"a.weight": ["low_rank"]}}, "a list of 1"),
        ({"deltas": {"a.weight": "dense"}}, "lacks the tensor"),
        ({"deltas": {}}, "does not name"),
        ({"deltas": {"a.weight": "low_rank", "a.bias": "dense"}}, "lacks the tensor"),
        ({"hooks": {}}, "'hooks' is a table of 0"),
        ({"hooks": [1]}, r"'hooks\[0\]' is 1"),
        ({"hooks": [{"id": "erase/sld"}]}, "params' is missing"),
        ({"hooks": [{"id": 5, "params": {}}]}, "'hooks.0..id' is 5"),
        ({"hooks": [{"id": "erase/sld", "params": []}]}, "params' is a list of 0"),
        ({"hooks": [{"id": "erase/sld", "params": {}, "code": "os"}]}, "'hooks.0..code' is not known"),
        ({"hooks": [{"id": "erase/sld", "params": {}}] * 2000}, "length of at most"),
        ({"hooks": [{"id": "", "params": {}}]}, "a length of at least 1 and at most 200"),
        ({"hooks": [{"id": "os/system", "params": {}}]}, "not installed here: 'os/system'"),
        ({"hooks": [{"id": "../sld", "params": {}}]}, "not installed here"),
        ({"hooks": [{"id": "erase/uce", "params": {}}]}, "no rule to attach"),
        ({"hooks": [{"id": "unlearn/ssd", "params": {}}]}, "no rule to attach"),
        ({"hooks": [{"id": "erase/sld", "params": {}}]}, "'parameters' is missing"),
        ({"hooks": [{"id": "erase/sld", "params": {"parameters": 1, "request": {}}}]}, "'parameters' is 1"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "request": None}}]}, "'request' is None"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "request": {}}}]}, "request.target' is missing"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "request": {"target": []}}}]}, "no target"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "parameters": {"none": 1}}}]}, "'none' is not known"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "parameters": {"scale": "9"}}}]}, "'scale' is '9'"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "more": 1}}]}, "'more' is not known"),
        ({"hooks": [{"id": "erase/sld", "params": {**SAID, "parameters": {"scale": "x" * 2**24}}}]}, "more than 8,388"),
        ({"provenance": []}, "'provenance' is a list"),
        ({"provenance": {"seconds": "long"}}, "'provenance.seconds' is 'long'"),
        ({"provenance": {"forwards": {"denoiser": -1}}}, "at least 0"),
        ({"provenance": {"method": ["erase/uce"]}}, "'provenance.method' is a list"),
        ({"provenance": {"request": "star"}}, "'provenance.request' is 'star'"),
        ({"provenance": {"other": float("nan")}}, "NaN"),
        ({"provenance": {"other": float("inf")}}, "Infinity"),
        ({"provenance": {"other": "\ud800"}}, "surrogate"),
        ({"provenance": {"other": 10**30}}, "64 bits"),
        ({"provenance": {"other": DEEP}}, "nested deeper"),
    ],
)
def test_each_hostile_header_is_refused_in_words(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = forge(tmp_path / "p", {**HEADER, **change}, W)
    with pytest.raises(Damaged, match=says) as refused:
        use(path, SAMPLES)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600
    assert HOST.fingerprint() == BASE


@pytest.mark.parametrize("field", sorted(HEADER))
def test_each_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "p"
    text = json.dumps({k: v for k, v in HEADER.items() if k != field} | {"sha256": "0" * 64})
    with pytest.raises(Damaged, match=f"'{field}' is missing"):
        use(forge(path, HEADER, W, text=text))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "1", '"x"', "{", "[" * 100_000, '{"format": 2, "format": 2}', '{"format": 1e400}', "NaN"]
)
def test_headers_that_are_no_tables_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Damaged):
        use(forge(tmp_path / "p", HEADER, W, text=text))


def test_a_seal_of_another_content_is_refused(tmp_path: Path) -> None:
    text = json.dumps({**HEADER, "sha256": "0" * 64})
    with pytest.raises(Damaged, match="changed or damaged"):
        use(forge(tmp_path / "p", HEADER, W, text=text))
    with pytest.raises(Damaged, match="changed or damaged"):
        use(forge(tmp_path / "p", HEADER, W, text=json.dumps(HEADER)))


WHOLE, E = torch.int64, 10**6


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("dense", {"value": torch.ones(4, 7)}),
        ("dense", {"value": torch.ones(24)}),
        ("dense", {"value": torch.ones(())}),
        ("dense", {"value": torch.ones(4, 6, dtype=WHOLE)}),
        ("dense", {"value": torch.ones(4, 6, dtype=torch.bool)}),
        ("dense", {"value": torch.full((4, 6), float("nan"))}),
        ("dense", {"value": torch.full((4, 6), float("inf"))}),
        ("dense", {"value": torch.ones(4, 6, dtype=torch.complex64)}),
        ("low_rank", {"up": torch.ones(4, 1), "down": torch.ones(2, 6)}),
        ("low_rank", {"up": torch.ones(4), "down": torch.ones(6)}),
        ("low_rank", {"up": torch.ones(E, 0), "down": torch.ones(0, E)}),
        ("low_rank", {"up": torch.ones(4, 1), "down": torch.ones(1, 6, dtype=torch.float16)}),
        ("low_rank", {"up": torch.ones(4, 1, dtype=WHOLE), "down": torch.ones(1, 6, dtype=WHOLE)}),
        ("low_rank", {"up": torch.ones(4, 1)}),
        ("low_rank", {"up": torch.ones(4, 1), "down": torch.ones(1, 6), "scale": torch.ones(1)}),
        ("rows", {"index": torch.tensor([4]), "value": torch.ones(1, 6)}),
        ("rows", {"index": torch.tensor([-1]), "value": torch.ones(1, 6)}),
        ("rows", {"index": torch.tensor([0, 1]), "value": torch.ones(1, 6)}),
        ("rows", {"index": torch.tensor([[0]]), "value": torch.ones(1, 1, 6)}),
        ("rows", {"index": torch.tensor([0], dtype=torch.int32), "value": torch.ones(1, 6)}),
        ("rows", {"index": torch.tensor([0.0]), "value": torch.ones(1, 6)}),
        ("rows", {"index": torch.tensor(0), "value": torch.ones(6)}),
        ("sparse", {"index": torch.tensor([24]), "value": torch.ones(1)}),
        ("sparse", {"index": torch.tensor([-1]), "value": torch.ones(1)}),
        ("sparse", {"index": torch.tensor([0]), "value": torch.ones(2)}),
        ("sparse", {"index": torch.tensor([0]), "value": torch.ones(1, dtype=WHOLE)}),
        ("sparse", {"index": torch.tensor(0), "value": torch.ones(())}),
    ],
)
def test_each_hostile_delta_is_refused_in_words(tmp_path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    named = {f"delta|a.weight|{k}": t for k, t in tensors.items()}
    path = forge(tmp_path / "p", {**HEADER, "deltas": {"a.weight": kind}}, named)
    with pytest.raises(Damaged) as refused:
        use(path)
    assert "a.weight" in str(refused.value) or "does not fit" in str(refused.value)
    assert HOST.fingerprint() == BASE


@pytest.mark.parametrize(
    "key", ["a", "|", "delta", "delta|a.weight", "hook|0|x", "hook|x", "delta|a.bias|value", "\x1b"]
)
def test_a_tensor_that_nothing_names_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(Damaged, match="does not name"):
        use(forge(tmp_path / "p", HEADER, W | {key: torch.ones(1)}))


def test_sizes_are_held_against_the_model_before_memory_is_taken() -> None:
    """Factors of a few megabytes whose product has a million million entries; and the sum of two of them."""
    bomb = LowRank(up=torch.ones(E, 1), down=torch.ones(1, E))
    patch = Patch(base=BASE, deltas={"a.weight": bomb})
    tracemalloc.start()
    with pytest.raises(Damaged, match="product is 1000000 x 1000000"), patch.applied(HOST):
        pass
    with pytest.raises(Damaged, match="product is"):
        bomb.dense(torch.Size((4, 6)))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LowRank(up=UP, down=DOWN), LowRank(up=torch.ones(5, 1), down=DOWN)),
        (Rows(index=torch.tensor([0]), value=torch.ones(1, 6)), Rows(index=torch.tensor([0]), value=torch.ones(1, 5))),
        (Dense(value=torch.ones(4, 6)), Dense(value=torch.ones(6, 4))),
        (Dense(value=torch.ones(4, 6)), Sparse(index=torch.tensor([24]), value=torch.ones(1))),
        (Dense(value=torch.ones(4, 6)), LowRank(up=torch.ones(5, 1), down=DOWN)),
    ],
)  # fmt: skip
def test_sums_of_deltas_of_two_tensors_are_refused(one: Any, other: Any) -> None:
    a, b = (Patch(base=BASE, deltas={"a.weight": d}) for d in (one, other))
    with pytest.raises(Damaged):
        compose(a, b, overlap="sum")


def test_a_rule_needs_a_model_that_samples(tmp_path: Path) -> None:
    path = forge(tmp_path / "p", {**HEADER, "hooks": [{"id": "erase/sld", "params": SAID}]}, W)
    with pytest.raises(Unsupported, match="needs a Denoiser"):
        use(path)
    assert HOST.fingerprint() == BASE


@pytest.mark.parametrize("said", [{"x": float("nan")}, {"x": "\ud800"}, {"x": 10**30}, {"method": 1}])
def test_what_no_file_can_say_is_not_saved(tmp_path: Path, said: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="cannot be saved"):
        Patch(base=BASE, provenance=said).save(tmp_path / "p")
    with pytest.raises(BadRequest, match="cannot be saved"):
        Patch(base=BASE, hooks=(Hook(id="", params=said),)).save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["a.weight", "a.bias", "b.weight", "e.weight", "zz", ""])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 10]), max_size=4)
TYPES = st.sampled_from([torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool])
VALUES = st.sampled_from([0.0, 1.0, -1.0, 1e30, float("nan")])
TENSORS = st.builds(lambda shape, dtype, value: torch.full(shape, value).to(dtype), SHAPES, TYPES, VALUES)
PARTS = {kind: tuple(f.name for f in fields(delta)) for kind, delta in KINDS.items()}


@st.composite
def patches(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Tensor]]:
    deltas = draw(st.dictionaries(NAMES, st.sampled_from(sorted(PARTS)), max_size=3))
    tensors = {f"delta|{name}|{part}": draw(TENSORS) for name, kind in deltas.items() for part in PARTS[kind]}
    tensors |= draw(st.dictionaries(st.sampled_from(["x", "hook|0|a", "delta|a.bias|value"]), TENSORS, max_size=1))
    ids = st.sampled_from(["erase/sld", "erase/uce", "erase/spm", "erase/geom_erasing", "erase/score_forgetting", "x"])
    hooks = st.lists(st.fixed_dictionaries({"id": ids | JSON, "params": st.just(SAID) | JSON}) | JSON, max_size=1)
    header = {**HEADER, "deltas": deltas, "hooks": draw(hooks) if draw(st.booleans()) else []}
    header |= (
        draw(st.dictionaries(st.sampled_from([*HEADER, "extra"]), JSON, max_size=1)) if draw(st.booleans()) else {}
    )
    return header, tensors


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patches())
def test_any_content_is_a_patch_or_refused(tmp_path: Path, content: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    with contextlib.suppress(Damaged, WrongBase, Unsupported):  # and nothing else
        use(forge(tmp_path / "p", *content))
    assert HOST.fingerprint() == BASE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_are_a_patch_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = make(HOST).save(tmp_path / "p")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(whole)
    try:
        use(path)
    except Damaged:
        return
    assert Patch.load(path).sha256() == make(HOST).sha256()  # what was written over was the same


@pytest.mark.parametrize("value", [torch.ones(4, 6, dtype=torch.int32), torch.ones(4, 6, dtype=torch.bool)])
def test_scaling_makes_no_number_of_what_is_none(tmp_path: Path, value: Tensor) -> None:
    """`sample` scales a patch before it is applied; whole numbers times 1.0 are floats, which fit."""
    path = forge(tmp_path / "p", {**HEADER, "deltas": {"a.weight": "dense"}}, {"delta|a.weight|value": value})
    with pytest.raises(Damaged, match="its values are"):
        Patch.load(path)
