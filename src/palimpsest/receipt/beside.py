"""What lies beside a receipt, and what it was made from: patch, features, models, each against what is stated."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from palimpsest.core.errors import Damaged, PalimpsestError
from palimpsest.core.fingerprint import digest
from palimpsest.core.method import versions
from palimpsest.core.patch import COSTS, Patch
from palimpsest.receipt import settings
from palimpsest.receipt.finding import Finding, brief, differs, lacking, same
from palimpsest.receipt.method import card_of
from palimpsest.receipt.readings import equal

Load = Callable[[str], Any]


def inside(folder: Path, name: str) -> Path | None:
    """A file of this name in a folder; None where the name leads elsewhere: a path, or a link."""
    path = folder / name
    plain = name not in ("", ".", "..") and Path(name).name == name and "\\" not in name
    return path if plain and not path.is_symlink() else None


def vectors_of(data: Mapping[str, Any], folder: Path) -> tuple[dict[str, Tensor], list[Finding]]:
    """The features beside a receipt, {} where they are not those that it states; and what was found of them."""
    stated = data["vectors"]
    if stated is None:
        return {}, [same("features", "there are none, as stated", "vectors")]
    path = inside(folder, stated["file"])
    if path is None:
        return {}, [differs("features", f"{brief(stated['file'])} is no file of the receipt's folder", "vectors")]
    if not path.is_file():
        return {}, [lacking("features", f"there is no {path.name} beside the receipt", "vectors")]
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (SafetensorError, OSError, ValueError) as e:
        return {}, [differs("features", f"{path.name} cannot be read: {e}", "vectors")]
    if digest(tensors) != stated["sha256"]:
        text = f"{path.name} is {digest(tensors)[:12]}, the receipt is about {stated['sha256'][:12]}"
        return {}, [differs("features", text, "vectors")]
    odd = [k for k, t in tensors.items() if k in data["measures"] or t.dim() != 2 or not t.is_floating_point()]
    if odd or not all(bool(t.isfinite().all()) for t in tensors.values()):
        return {}, [differs("features", f"{brief(odd[0]) if odd else 'one'} holds no features", "vectors")]
    return tensors, [same("features", f"{path.name} {stated['sha256'][:12]}", "vectors")]


def patch_of(data: Mapping[str, Any], folder: Path) -> tuple[Patch | None, list[Finding]]:
    """The patch beside a receipt, None where it is not the one that is stated; and what was found of it."""
    edited, of = data["edited"], ("edited", "method")
    if edited["kind"] == "pictures" and data["method"] is not None:
        return None, []  # what is said of it is held against what was written beside the pictures
    if edited["kind"] != "patch":
        if data["method"] in (None, {"method": "diff", "edited": edited["name"]}):
            return None, [same("method", "none is named: what came before and after was compared", "method")]
        return None, [differs("method", "two models were compared, so none can be named", *of)]
    if not edited["file"]:
        return None, [lacking("patch", "it was not written with the receipt", *of)]
    path = inside(folder, edited["file"])
    if path is None:
        return None, [differs("patch", f"{brief(edited['file'])} is no file of the receipt's folder", *of)]
    if not path.is_file():
        return None, [lacking("patch", f"there is no {path.name} beside the receipt", *of)]
    try:
        patch = Patch.load(path)
    except Damaged as e:
        return None, [differs("patch", str(e), *of)]
    if patch.sha256() != edited["sha256"]:
        text = f"{path.name} is {patch.sha256()[:12]}, the receipt is about {edited['sha256'][:12]}"
        return None, [differs("patch", text, *of)]
    if {patch.base, edited["base"]} != {data["base"]["fingerprint"]}:
        text = f"it was made for {patch.base[:12]}, the receipt's model is {data['base']['fingerprint'][:12]}"
        return None, [differs("patch", text, *of, "base")]
    if patch.nbytes() != edited["bytes"]:
        return None, [differs("patch", f"it holds {patch.nbytes()} bytes, the receipt says {edited['bytes']}", *of)]
    return patch, [same("patch", f"{path.name} {patch.sha256()[:12]}", "edited")]


def headers(data: Mapping[str, Any], patch: Patch | None) -> list[Finding]:
    """The receipt's method, request and command against the patch's header, the catalog and each other."""
    found = _card(data)
    if patch is not None:
        made = {k: v for k, v in patch.provenance.items() if k not in COSTS}
        stated = {k: v for k, v in (data["method"] or {}).items() if k != "card"}
        wrong = next((k for k in {**stated, **made} if not equal(stated.get(k), _plain(made.get(k)))), None)
        if wrong is not None:
            text = f"{wrong} is {brief(stated.get(wrong))}, the patch's header says {brief(made.get(wrong))}"
            found.append(differs("method", text, "method"))
        else:
            found.append(same("method", "as the patch's header says", "method"))
        found.append(_request(data, made))
    else:
        found.append(_vouched("request", "no patch says what was asked"))
    return [*found, *_command(data)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _card(data: Mapping[str, Any]) -> list[Finding]:
    """The card of the system, as this installation has it."""
    method = data["method"] or {}
    if "card" not in method:
        return []
    mine, what = card_of(str(method.get("method", ""))), "card of the method"
    if mine == method["card"]:
        return [same(what, "as the installed system has it", "method")]
    if mine is None:
        return [lacking(what, f"{brief(method.get('method'))} is not installed", "method")]
    if data["versions"].get("palimpsest") != versions()["palimpsest"]:
        return [lacking(what, "another version's", "method")]
    wrong = next(k for k in mine if mine[k] != method["card"].get(k))
    return [
        differs(what, f"{wrong} is {brief(method['card'].get(wrong))}, installed is {brief(mine[wrong])}", "method")
    ]


def _request(data: Mapping[str, Any], made: Mapping[str, Any]) -> Finding:
    """What was asked. Who audits an edit may ask about other things than its maker did, and says so."""
    if "request" not in made:
        return Finding(
            status="vouched", what="request", detail="the patch does not say what was asked", of=("request",)
        )
    if equal(data["request"], _plain(made["request"])):
        return same("request", "as the patch's header says", "request")
    text = "the patch's header says something else was asked of the edit"
    if data["command"].split()[1:2] in ([], ["audit"]):
        return _vouched("request", f"{text}; the audit asks its own")
    return differs("request", text, "request")


def _command(data: Mapping[str, Any]) -> list[Finding]:
    """Options of the command that contradict what the receipt says was done; else its author's word."""
    try:
        words = shlex.split(data["command"])
    except ValueError:
        words = data["command"].split()
    given = {w.lstrip("-"): words[i + 1] for i, w in enumerate(words[:-1]) if w.startswith("--")}
    given |= dict(w.lstrip("-").split("=", 1) for w in words if w.startswith("--") and "=" in w)
    method = data["method"] or {}
    done = {"method": str(method.get("method", "")).rpartition("/")[2], "seed": str(method.get("seed", ""))}
    if words[1:2] in ([], ["audit"]):
        done = {}
    for option, value in done.items():
        said = given.get(option, value).lower().replace("-", "_").rpartition("/")[2]
        if said != value:
            return [differs("command", f"it says --{option} {given[option]}, the method {value}", "command", "method")]
    return [_vouched("command", "what its author typed")]


def _vouched(what: str, detail: str) -> Finding:
    return Finding(status="vouched", what=what, detail=detail, of=(what,))


def model_of(data: Mapping[str, Any], of: str, given: Any, load: Load, what: str) -> tuple[Any, list[Finding]]:
    """A model that the receipt names, None where it is another one or cannot be loaded; and what was found of it.

    Args:
        of: "base" or "edited". what: the same in words.
    """
    stated, host = data[of], given
    if host is None:
        try:
            host = load(stated["name"])
        except (PalimpsestError, OSError, ValueError) as e:
            return None, [lacking(what, f"{stated['name']} cannot be loaded: {e}", of)]
    now = host.fingerprint() if hasattr(host, "fingerprint") else ""
    if now == stated["fingerprint"]:
        told = settings.held(stated, host, data, what, of)
        return host, [same(what, f"{stated['name']} {now[:12]}", of), *([told] if told else [])]
    if why := settings.other_precision(stated, host):
        return None, [lacking(what, f"{stated['name']} {why}", of)]
    text = f"{stated['name']} is now {now[:12]}, the receipt is about {stated['fingerprint'][:12]}"
    return None, [differs(what, text, of)]
