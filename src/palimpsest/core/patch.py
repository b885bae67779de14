"""A change of a model as data: named deltas and hooks that can be applied, reverted, scaled, composed and saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core import catalog
from palimpsest.core import delta as deltas_of
from palimpsest.core.delta import KINDS, Delta
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.files import write_beside
from palimpsest.core.fingerprint import digest, tensors_of

FORMAT = 1
Overlap = Literal["refuse", "sum", "first", "last"]


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A change that is not a number added to a weight: a rule that acts while the model runs.

    Args:
        id: the system that knows the rule, e.g. "erase/sld"; it is looked up among the installed systems, so a
            patch file never names code to import.
        params: its parameters, plain JSON.
        tensors: its tensors.
    """

    id: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class HookRule(Protocol):
    """What the system behind a hook offers: it attaches itself to a host until the context ends."""

    def attach(self, host: Any, hook: Hook) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What a ModelEdit returns.

    Args:
        base: fingerprint of the model it was made for.
        deltas: by tensor name in `host.root`.
        hooks: rules that act while the model runs, in order.
        provenance: who made it: method, parameters, request, seed, cost, versions; plain JSON.

    Example:
        >>> with patch.applied(host):          # doctest: +SKIP
        ...     images = host.sample(["a star"], [0])
        >>> patch.save("patch.safetensors")    # doctest: +SKIP
    """

    base: str
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    # -- use ---------------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, host: Any, *, force: bool = False) -> Iterator[None]:
        """The host with this patch, until the block ends; then every tensor is exactly what it was.

        Raises:
            WrongBase: the host is not the model that the patch was made for (`force` applies it all the same).
            Damaged: a delta does not fit its tensor.
        """
        old = self._write(host, force)
        with ExitStack() as stack:
            stack.callback(_restore, host, old)
            for hook in self.hooks:
                stack.enter_context(_rule(hook).attach(host, hook))
            yield

    def fuse(self, host: Any, *, force: bool = False) -> None:
        """Writes the deltas into the host for good. Patches with hooks cannot be fused."""
        if self.hooks:
            raise Unsupported(
                f"{self.hooks[0].id} acts while the model runs and cannot be fused into weights; use `applied`."
            )
        self._write(host, force)

    def _write(self, host: Any, force: bool) -> dict[str, Tensor]:
        if not force and self.base != (found := host.fingerprint()):
            raise WrongBase(
                f"This patch was made for the model {self.base[:12]}, but {host.name} is {found[:12]}. Load the "
                "model that it was made for, or force it if you know that the two are close."
            )
        tensors = tensors_of(host.root)
        missing = sorted(set(self.deltas) - set(tensors))
        if missing:
            raise WrongBase(f"The patch changes {missing[0]!r}, which {host.name} does not have.")
        # All new values are computed before the first is written: a delta that does not fit changes nothing.
        new = {}
        for name, delta in self.deltas.items():
            t = tensors[name].detach()
            wide = torch.promote_types(t.dtype, torch.float32)
            new[name] = (t.to(wide) + delta.dense(t.shape).to(t.device, wide)).to(t.dtype)
        old = {name: tensors[name].detach().clone() for name in new}
        with torch.no_grad():
            for name, value in new.items():
                tensors[name].detach().copy_(value)
        return old

    # -- algebra -----------------------------------------------------------------------------------------

    def scaled(self, factor: float) -> Patch:
        """Every delta times `factor` (0 gives no change, negative the opposite). Hooks have no scale."""
        if self.hooks and factor != 1:
            raise Unsupported(f"{self.hooks[0].id} acts while the model runs; set its own strength instead of scaling.")
        return replace(self, deltas={k: d.scaled(factor) for k, d in self.deltas.items()})

    def __or__(self, other: Patch) -> Patch:
        """Both patches; tensors that both change are refused (name a rule with `merge`)."""
        return merge(self, other)

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file: tensors, and JSON in its header. Written beside and renamed."""
        tensors, header = _pack(self)
        meta = {"palimpsest": json.dumps(header, sort_keys=True), "palimpsest_sha256": _seal(header, tensors)}
        return write_beside(Path(path), lambda tmp: save_file(tensors, tmp, metadata=meta))

    @staticmethod
    def load(path: str | Path) -> Patch:
        """Reads what `save` wrote.

        Raises:
            Damaged: no such file, not a patch, truncated, or changed since it was saved.
        """
        header, tensors, seal = _read(Path(path))
        if seal != _seal(header, tensors):
            raise Damaged(f"{path} was changed or damaged after it was saved; get a fresh copy.")
        return _unpack(header, tensors)

    def sha256(self) -> str:
        """Identity of the whole patch, as the receipt records it."""
        tensors, header = _pack(self)
        return _seal(header, tensors)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        held = [t for d in self.deltas.values() for t in d.tensors().values()]
        held += [t for h in self.hooks for t in h.tensors.values()]
        return sum(t.numel() * t.element_size() for t in held)


def merge(*patches: Patch, overlap: Overlap = "refuse", shapes: Mapping[str, torch.Size] | None = None) -> Patch:
    """Several patches of one base as one.

    Args:
        overlap: what happens to a tensor that two patches change: refuse | sum | first | last.
        shapes: tensor shapes by name; needed to sum deltas of different forms.

    Raises:
        WrongBase: the patches were made for different models.
        BadRequest: an overlap and no rule.
    """
    bases = {p.base for p in patches}
    if len(bases) != 1:
        raise WrongBase("These patches were made for different models; patches compose on one base only.")
    deltas: dict[str, Delta] = {}
    for patch in patches:
        for name, delta in patch.deltas.items():
            if name not in deltas or overlap == "last":
                deltas[name] = delta
            elif overlap == "sum":
                shape = (shapes or {}).get(name) or _shape_of(deltas[name], delta, name)
                deltas[name] = deltas_of.add(deltas[name], delta, shape)
            elif overlap == "refuse":
                raise BadRequest(
                    f"Both patches change {name!r}; say how to resolve it: merge(..., overlap='sum' | 'first' | 'last')"
                )
    hooks = tuple(h for p in patches for h in p.hooks)
    return Patch(
        base=bases.pop(),
        deltas=deltas,
        hooks=hooks,
        provenance={"merged": [dict(p.provenance) for p in patches]},
    )


def diff(base: Any, edited: Any) -> Patch:
    """The patch that turns one model into another of the same architecture, whoever edited it.

    Raises:
        Unsupported: the two have different tensors.
    """
    old, new = tensors_of(base.root), tensors_of(edited.root)
    odd = sorted(set(old) ^ set(new)) or [n for n in old if old[n].shape != new[n].shape]
    if odd:
        raise Unsupported(f"{base.name} and {edited.name} differ in architecture (first at {odd[0]!r}).")
    changed = {n: deltas_of.of_change(old[n], new[n]) for n in old if not torch.equal(old[n], new[n])}
    return Patch(base=base.fingerprint(), deltas=changed, provenance={"method": "diff", "edited": edited.name})


def _restore(host: Any, old: Mapping[str, Tensor]) -> None:
    tensors = tensors_of(host.root)
    with torch.no_grad():
        for name, value in old.items():
            tensors[name].detach().copy_(value)


def _rule(hook: Hook) -> HookRule:
    return catalog.load(hook.id)


def _shape_of(a: Delta, b: Delta, name: str) -> torch.Size:
    for d in (a, b):
        if d.kind == "dense":
            return d.tensors()["value"].shape
    if a.kind == b.kind:
        return torch.Size(())  # same-form sums never need it
    raise BadRequest(f"Summing a {a.kind} and a {b.kind} delta of {name!r} needs its shape: pass `shapes`.")


def _pack(patch: Patch) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    for name, d in patch.deltas.items():
        for field_name, t in d.tensors().items():
            tensors[f"delta|{name}|{field_name}"] = t.detach().cpu().contiguous()
    for i, hook in enumerate(patch.hooks):
        for name, t in hook.tensors.items():
            tensors[f"hook|{i}|{name}"] = t.detach().cpu().contiguous()
    header = {
        "format": FORMAT,
        "base": patch.base,
        "deltas": {name: d.kind for name, d in patch.deltas.items()},
        "hooks": [{"id": h.id, "params": dict(h.params)} for h in patch.hooks],
        "provenance": dict(patch.provenance),
    }
    return {k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(header))


def _unpack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, t in tensors.items():
        where, rest = key.split("|", 1)
        # A delta's part is a field name; a hook's owner is a number: each splits where no user text stands.
        owner, part = rest.rsplit("|", 1) if where == "delta" else rest.split("|", 1)
        grouped.setdefault((where, owner), {})[part] = t
    deltas = {name: KINDS[kind](**grouped[("delta", name)]) for name, kind in header["deltas"].items()}
    hooks = tuple(
        Hook(id=h["id"], params=h["params"], tensors=grouped.get(("hook", str(i)), {}))
        for i, h in enumerate(header["hooks"])
    )
    return Patch(base=header["base"], deltas=deltas, hooks=hooks, provenance=header["provenance"])


def _seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return digest(tensors, salt=json.dumps(header, sort_keys=True))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    if not path.is_file():
        raise Damaged(f"There is no patch at {path}.")
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
        header = json.loads(meta["palimpsest"])
        if header["format"] > FORMAT:
            raise Damaged(f"{path} has patch format {header['format']}; this version reads up to {FORMAT}: upgrade.")
        return header, tensors, meta["palimpsest_sha256"]
    except KeyError as e:
        raise Damaged(f"{path} is a safetensors file but not a palimpsest patch (no {e} in its header).") from e
    except (SafetensorError, OSError, ValueError) as e:
        raise Damaged(f"{path} cannot be read as a patch: {e}. It is truncated, damaged or of another kind.") from e


def refuse_pickle(path: Path) -> None:
    """Raises Damaged where a file is a pickle or a torch archive: loading one would run code from it."""
    with open(path, "rb") as f:
        head = f.read(9)
    # A safetensors file begins with its header's length, whose bytes may be those that pickles begin with.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or head[:4] == b"PK\x03\x04":
        raise Damaged(
            f"{path} is a pickle or torch archive, which could run code when loaded; it was not opened. "
            "Convert it to safetensors where you trust its source."
        )
