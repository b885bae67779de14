"""A model's folder runs no code: it names one of a closed list of architectures, with whole numbers in bounds."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import palimpsest
from palimpsest.core.errors import Damaged
from palimpsest.hosts.architectures import ARCHITECTURES
from palimpsest.hosts.load import load

SRC = Path(palimpsest.__file__).parent
LISTED = "palimpsest.tiny.resnet:resnet"


def folder(root: Path, factory: object, arguments: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    config = {"factory": factory, "arguments": arguments, "labels": ["a"], "head": "head"}
    (root / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, str(root / "model.safetensors"))
    return root


def names_of(path: Path) -> Iterator[str]:
    """Everything that a file binds at its top, imports included, as a factory would be spelt."""
    module = ".".join(("palimpsest", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        bound: list[str] = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound = [node.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = [a.asname or a.name.partition(".")[0] for a in node.names]
        elif isinstance(node, ast.Assign):
            bound = [t.id for t in node.targets if isinstance(t, ast.Name)]
        yield from (f"{module}:{name}" for name in bound)


def test_no_name_of_the_package_can_be_called_by_a_folder_but_those_listed(tmp_path: Path) -> None:
    every = [name for path in sorted(SRC.rglob("*.py")) for name in names_of(path)]
    assert LISTED in every
    assert "palimpsest.hosts.factory:_built" in every
    made = folder(tmp_path, "", {})
    config = json.loads((made / "config.json").read_text())
    refused = 0
    for name in (*every, "os:system", "subprocess:call", "builtins:eval", "palimpsest", "palimpsest.", ""):
        (made / "config.json").write_text(json.dumps({**config, "factory": name}))
        if name not in ARCHITECTURES:
            with pytest.raises(Damaged, match="not one of the architectures"):
                load(made)
            refused += 1
    assert refused > 1000


def test_a_folder_reaches_no_other_callable_through_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    monkeypatch.setattr(subprocess, "call", lambda *a, **k: ran.append(a))
    arguments = {"factory": "subprocess:call", "arguments": {"args": ["touch", str(tmp_path / "ran")]}}
    with pytest.raises(Damaged, match="not as declared"):
        load(folder(tmp_path / "m", "palimpsest.hosts.factory:_built", arguments))
    arguments = {"factory": "subprocess:call", "arguments": f"touch {tmp_path / 'ran'}"}
    with pytest.raises(Damaged, match="not one of the architectures"):
        load(folder(tmp_path / "m", "palimpsest.hosts.factory:_built", arguments))
    assert not ran
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("factory", [7, None, ["palimpsest.tiny.resnet:resnet"], {"a": 1}])
def test_a_factory_that_is_no_text(tmp_path: Path, factory: object) -> None:
    with pytest.raises(Damaged, match="expected text"):
        load(folder(tmp_path, factory, {}))


@pytest.mark.parametrize(
    "arguments",
    [
        {},  # classes is needed
        {"classes": 10, "depth": 3},
        {"classes": "10"},
        {"classes": 10.0},
        {"classes": True},
        {"classes": 0},
        {"classes": 10, "width": 10**12},
        {"classes": {"factory": "os:system"}},
    ],
)
def test_arguments_are_whole_numbers_in_bounds(tmp_path: Path, arguments: object) -> None:
    with pytest.raises(Damaged, match=r"expected|more than any model has"):
        load(folder(tmp_path, LISTED, arguments))


def test_every_listed_architecture_builds_a_module() -> None:
    from palimpsest.hosts.architectures import built

    for name, known in ARCHITECTURES.items():
        assert name == f"{known.module}:{known.function}"
        least = {key: bounds[0] for key, bounds in known.numbers.items()}
        assert isinstance(built(name, least, Path("here")), torch.nn.Module)
