"""A change of a model as data: named deltas and hooks that can be applied, reverted, scaled, composed and saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.core import catalog, sealed
from palimpsest.core import delta as deltas_of
from palimpsest.core.declared import fitted, parsed, shown
from palimpsest.core.delta import KINDS, REAL, Delta
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.files import refuse_pickle as refuse_pickle
from palimpsest.core.files import write_beside
from palimpsest.core.fingerprint import of_precision, tensors_of
from palimpsest.core.host import CAPABILITIES
from palimpsest.core.words import Word, sound, united

COSTS = ("seconds", "forwards", "peak_bytes")
"""Keys of `Patch.cost`; format 1 had them in the provenance."""
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
Overlap = Literal["refuse", "sum", "first", "last"]
T = TypeVar("T")


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

    def read(self, kind: type[T]) -> T:
        """The parameters as the type that their system declares (see `core.declared`).

        Raises:
            Damaged: they are not that.
        """
        return fitted(dict(self.params), kind, f"The patch's hook {shown(self.id)}")


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
        words: that may stand in a prompt while the patch is applied.
        provenance: who made it: method, parameters, request, seed, versions; plain JSON.
        cost: what making it took: seconds, forwards, peak_bytes. It is not saved and not part of the identity, so
            that equal work makes equal files; receipts keep it.
        format: of the file that it was read from. It decides the identity, which never changes once given.

    Example:
        >>> with patch.applied(host):          # doctest: +SKIP
        ...     images = host.sample(["a star"], [0])
        >>> patch.save("patch.safetensors")    # doctest: +SKIP
    """

    base: str
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    words: Mapping[str, Word] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    format: int = sealed.FORMAT

    # -- use ---------------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, host: Any, *, force: bool = False) -> Iterator[None]:
        """The host with this patch, until the block ends; then every tensor is exactly what it was.

        Raises:
            WrongBase: the host is not the model that the patch was made for (`force` applies it all the same).
            Damaged: a delta does not fit its tensor, or a word its token table.
            Unsupported, BadRequest: the host cannot do what a hook needs, or read a word.
        """
        tensors = self.fits(host, force=force)
        rules = [(_rule(hook, host), hook) for hook in self.hooks]
        old: dict[str, Tensor] = {}
        with ExitStack() as stack:
            stack.callback(_restore, host, old)
            self._write(tensors, old, self.deltas)
            if self.words:
                stack.enter_context(host.speaking(self.words))
            for rule, hook in rules:
                stack.enter_context(rule.attach(host, hook))
            yield

    def fuse(self, host: Any, *, force: bool = False) -> None:
        """Writes the deltas into the host for good. Patches with hooks or words cannot be fused.

        Memory: a few times the largest changed tensor.
        """
        if self.hooks:
            raise Unsupported(
                f"{shown(self.hooks[0].id)} acts while the model runs and cannot be fused into weights; use `applied`."
            )
        if self.words:
            raise Unsupported(
                f"The word {shown(min(self.words))} is no weight and cannot be fused; export a pipeline instead, whose "
                "tokenizer and token table grow by it, or use `applied`."
            )
        tensors = self.fits(host, force=force)
        places = Counter(tensors[name].data_ptr() for name in self.deltas)
        self._write(tensors, {}, {name for name in self.deltas if places[tensors[name].data_ptr()] > 1})

    def fits(self, host: Any, *, force: bool = False) -> dict[str, Tensor]:
        """The host's tensors, after every delta and word was held against its own: one that does not fit changes
        nothing.

        Raises:
            WrongBase, Damaged, Unsupported, BadRequest: as `applied`.
        """
        if not force and self.base != (found := host.fingerprint()):
            raise WrongBase(
                f"This patch was made for the model {self.base[:12]}, but {host.name} is {found[:12]}."
                f"{of_precision(host.root, self.base)} Load the model that it was made for, or force it if you know "
                "that the two are close."
            )
        tensors = tensors_of(host.root)
        missing = sorted(set(self.deltas) - set(tensors))
        if missing:
            raise WrongBase(f"The patch changes {shown(missing[0], 120)}, which {host.name} does not have.")
        for name, delta in self.deltas.items():
            delta.fits(tensors[name].shape)
        for word, meant in sound(self.words).items():
            meant.fits(word, host)
        return tensors

    def _write(self, tensors: Mapping[str, Tensor], old: dict[str, Tensor], kept: Collection[str]) -> None:
        """Tensor by tensor; what stood in those of `kept` is put into `old` first.

        A tensor that the model has under two names is computed from what stood there before either was written.
        """
        before: dict[int, Tensor] = {}
        with torch.no_grad():
            for name, delta in self.deltas.items():
                t = tensors[name].detach()
                was = before.get(t.data_ptr(), t)
                if name in kept and was is t:
                    was = before[t.data_ptr()] = t.clone()
                wide = torch.promote_types(t.dtype, torch.float32)
                value = (was.to(wide) + delta.dense(t.shape).to(t.device, wide)).to(t.dtype)
                if name in kept:
                    old[name] = was
                t.copy_(value)

    # -- algebra -----------------------------------------------------------------------------------------

    def scaled(self, factor: float) -> Patch:
        """Every delta times `factor` (0 gives no change, negative the opposite). Hooks have no scale; words stay."""
        if self.hooks and factor != 1:
            raise Unsupported(f"{self.hooks[0].id} acts while the model runs; set its own strength instead of scaling.")
        return replace(self, deltas={k: d.scaled(factor) for k, d in self.deltas.items()})

    def __or__(self, other: Patch) -> Patch:
        """Both patches; tensors that both change are refused (name a rule with `merge`)."""
        return merge(self, other)

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file: tensors, and JSON in its header. Written beside and renamed.

        Raises:
            BadRequest: hooks, words or provenance hold what a file cannot say (NaN, half characters, 8 MiB of text).
        """
        sound(self.words)
        tensors, header = _pack(self)
        try:
            parsed(text := sealed.text(header), sealed.Header, "Its header")
        except Damaged as e:
            raise BadRequest(f"The patch cannot be saved: {e}") from e
        if len(text) > sealed.MOST_HEADER:
            raise BadRequest(f"The patch cannot be saved: its header is longer than {sealed.MOST_HEADER:,} bytes.")
        seal = sealed.seal(header, tensors)
        # One text, since the library that writes the file puts several in an order of its own each time.
        meta = {"palimpsest": sealed.text({**header, "sha256": seal})}
        if header["format"] == 1:
            meta = {"palimpsest": text, "palimpsest_sha256": seal}
        apart = {k: t.clone() for k, t in tensors.items()}  # safetensors refuses tensors that share memory
        return write_beside(Path(path), lambda tmp: save_file(apart, tmp, metadata=meta))

    @staticmethod
    def load(path: str | Path) -> Patch:
        """Reads what `save` wrote.

        Raises:
            Damaged: no such file, not a patch, truncated, changed since it was saved, or not what a patch may hold.
        """
        header, tensors, seal = sealed.read(Path(path))
        if seal != sealed.seal(header, tensors):
            raise Damaged(f"{path} was changed or damaged after it was saved; get a fresh copy.")
        return _unpack(header, tensors, str(path))

    def sha256(self) -> str:
        """Identity of the whole patch, as the receipt records it."""
        tensors, header = _pack(self)
        return sealed.seal(header, tensors)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        held = [t for d in self.deltas.values() for t in d.tensors().values()]
        held += [t for h in self.hooks for t in h.tensors.values()]
        held += [t for word in self.words.values() for t in word.vectors.values()]
        return sum(t.numel() * t.element_size() for t in held)


def merge(*patches: Patch, overlap: Overlap = "refuse", shapes: Mapping[str, torch.Size] | None = None) -> Patch:
    """Several patches of one base as one.

    Args:
        overlap: what happens to a tensor that two patches change: refuse | sum | first | last.
        shapes: tensor shapes by name; needed to sum deltas of different forms.

    Raises:
        WrongBase: the patches were made for different models.
        BadRequest: an overlap and no rule, or one word with two meanings.
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
        words=united([p.words for p in patches]),
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


def _rule(hook: Hook, host: Any) -> HookRule:
    try:
        system = catalog.load(hook.id)
    except BadRequest as e:
        raise Damaged(f"The patch's hook is of a system that is not installed here: {shown(hook.id)}. {e}") from e
    if not hasattr(system, "attach"):
        raise Damaged(f"The patch has a hook of {shown(hook.id)}, a system that has no rule to attach.")
    if not isinstance(host, CAPABILITIES[system.card.needs]):
        raise Unsupported(f"The patch's hook {hook.id} needs a {system.card.needs}; {host.name} is none.")
    return system


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
    words = sorted(patch.words.items())
    for i, (_, word) in enumerate(words):
        for name, t in word.vectors.items():
            tensors[f"word|{i}|{name}"] = t.detach().cpu().contiguous()
    header: dict[str, Any] = {
        "format": patch.format,
        "base": patch.base,
        "deltas": {name: d.kind for name, d in patch.deltas.items()},
        "hooks": [{"id": h.id, "params": dict(h.params)} for h in patch.hooks],
        "provenance": dict(patch.provenance),
    }
    if words:  # so that a patch without any keeps its bytes
        header["words"] = [{"word": word, "reads_as": meant.reads_as} for word, meant in words]
    return tensors, json.loads(json.dumps(header))


def _unpack(header: sealed.Header, tensors: Mapping[str, Tensor], where: str) -> Patch:
    left = dict(tensors)

    def taken(key: str) -> Tensor:
        if key not in left:
            raise Damaged(f"{where} lacks the tensor {shown(key, 120)} that its header names; get a fresh copy.")
        return left.pop(key)

    deltas = {
        name: KINDS[kind](**{f.name: taken(f"delta|{name}|{f.name}") for f in fields(KINDS[kind])})
        for name, kind in header["deltas"].items()
    }

    def under(own: str) -> dict[str, Tensor]:
        return {k[len(own) :]: taken(k) for k in list(left) if k.startswith(own)}

    hooks = [Hook(**hook, tensors=under(f"hook|{i}|")) for i, hook in enumerate(header["hooks"])]
    told = header.get("words", [])
    words = {e["word"]: Word(vectors=under(f"word|{i}|"), reads_as=e["reads_as"]) for i, e in enumerate(told)}
    if len(words) < len(told):
        raise Damaged(f"{where} names one word twice; get a fresh copy.")
    if left:
        raise Damaged(f"{where} holds the tensor {shown(min(left), 120)}, which its header does not name.")
    for key, t in tensors.items():
        if t.dtype not in (*REAL, *WHOLE):
            raise Damaged(f"{where}: {shown(key, 120)} is {t.dtype}; no patch holds that.")
        if t.dtype in REAL and not bool(torch.isfinite(t).all()):
            raise Damaged(f"{where}: {shown(key, 120)} holds numbers that are not finite.")
    for delta in deltas.values():
        delta.fits()
    try:
        sound(words)
    except BadRequest as e:
        raise Damaged(f"{where}: {e}") from e
    made = dict(header["provenance"])
    return Patch(
        base=header["base"],
        deltas=deltas,
        hooks=tuple(hooks),
        words=words,
        provenance=made,
        cost={k: made[k] for k in COSTS if k in made},
        format=header["format"],
    )
