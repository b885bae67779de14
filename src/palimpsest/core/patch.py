"""A change of a model as data: named deltas and hooks that can be applied, reverted, scaled, composed and saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from palimpsest.core import delta as deltas_of
from palimpsest.core import sealed
from palimpsest.core.declared import parsed, shown
from palimpsest.core.delta import Delta
from palimpsest.core.errors import BadRequest, Damaged, Unsupported, WrongBase
from palimpsest.core.files import refuse_pickle as refuse_pickle
from palimpsest.core.fingerprint import holds, of_precision, tensors_of
from palimpsest.core.hook import Hook as Hook
from palimpsest.core.hook import rule_of
from palimpsest.core.streams import Hashes, Stream, write
from palimpsest.core.words import Word, sound, united

COSTS = ("seconds", "forwards", "peak_bytes")
"""Keys of `Patch.cost`; format 1 had them in the provenance."""
Overlap = Literal["refuse", "sum", "first", "last"]
Form = tuple[type[Delta], Mapping[str, Stream]]
"""A delta that is about to be written: its kind, and its tensors by field."""


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
        rules = [(rule_of(hook, host), hook) for hook in self.hooks]
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
        found = "" if force else host.fingerprint()
        if not force and self.base != found and not holds(host.root, self.base):
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
        """Both patches; tensors that both change are refused (name a rule with `compose`)."""
        return compose(self, other)

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, streamed: Mapping[str, Form] | None = None) -> Path:
        """Writes one safetensors file: tensors, and JSON in its header. Written beside and renamed.

        Args:
            streamed: further deltas, by the tensor's name their form and its tensors, which are computed as they are
                written.

        Raises:
            BadRequest: hooks, words or provenance hold what a file cannot say (NaN, half characters, 8 MiB of text).
        """
        sound(self.words)
        header = _header(self)
        header["deltas"] |= {name: cls.kind for name, (cls, _) in (streamed or {}).items()}
        try:
            parsed(text := sealed.text(header), sealed.Header, "Its header")
        except Damaged as e:
            raise BadRequest(f"The patch cannot be saved: {e}") from e
        if len(text) > sealed.MOST_HEADER:
            raise BadRequest(f"The patch cannot be saved: its header is longer than {sealed.MOST_HEADER:,} bytes.")
        old = {"palimpsest_sha256": self.sha256()} if header["format"] == 1 else {}

        def metadata(each: Hashes) -> dict[str, str]:
            return {"palimpsest": sealed.text({**header, "sha256": sealed.seal_of(header, each)})}

        streams = {key: Stream.of(t) for key, t in _tensors(self)}
        for name, (_, held) in (streamed or {}).items():
            streams |= {f"delta|{name}|{k}": sealed.held_finite(t, name) for k, t in held.items()}
        return write(Path(path), streams, (lambda _: {"palimpsest": text, **old}) if old else metadata)

    @staticmethod
    def load(path: str | Path) -> Patch:
        """Reads what `save` wrote.

        Raises:
            Damaged: no such file, not a patch, truncated, changed since it was saved, or not what a patch may hold.
        """
        header, seal, tensors = sealed.read(Path(path))
        if seal != sealed.seal(header, tensors.items()):
            raise Damaged(f"{path} was changed or damaged after it was saved; get a fresh copy.")
        return _of(header, sealed.contents(header, tensors, str(path)))

    @staticmethod
    def open(path: str | Path) -> Patch:
        """Reads what `save` wrote, and leaves the deltas in the file until one is asked for: a patch of any size takes
        the memory of its largest tensor.

        Raises:
            Damaged: as `load`, once every byte was looked at; a delta that is none when it is asked for.
        """
        header, seal, held = sealed.opened(Path(path))
        if header["format"] == 1:
            return Patch.load(path)
        if seal != sealed.seal(header, ((key, sealed.fit(held.whole(key), key, str(path))) for key in held.names())):
            raise Damaged(f"{path} was changed or damaged after it was saved; get a fresh copy.")
        return in_file(path)

    def sha256(self) -> str:
        """Identity of the whole patch, as the receipt records it."""
        return sealed.seal(_header(self), _tensors(self))

    # -- as one of several ---------------------------------------------------------------------------------

    def names(self) -> Collection[str]:
        """The tensors that it changes."""
        return self.deltas.keys()

    def delta(self, name: str) -> Delta | None:
        """The change of a tensor; None where it stays."""
        return self.deltas.get(name)

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> Tensor:
        """(stop - start, ...) of the change of a tensor of this shape, in float32; zeros where it stays.

        Raises:
            Damaged: the delta does not fit the tensor.
        """
        delta = self.deltas.get(name)
        if delta is None:
            return torch.zeros((stop - start, *shape[1:]))
        delta.fits(shape)
        return delta.rows(shape, start, stop).float()

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        in_file = self.deltas if isinstance(self.deltas, sealed.Deltas) else None
        held = [] if in_file else [t for d in self.deltas.values() for t in d.tensors().values()]
        held += [t for h in self.hooks for t in h.tensors.values()]
        held += [t for word in self.words.values() for t in word.vectors.values()]
        return sum(t.numel() * t.element_size() for t in held) + (in_file.nbytes if in_file else 0)


def in_file(path: str | Path) -> Patch:
    """A patch whose deltas stay in its file, which this process just wrote or read to its end: nobody looks again.

    Raises:
        Damaged: it is none.
    """
    header, _, held = sealed.opened(Path(path))
    deltas = sealed.Deltas(header["deltas"], held)
    rest = {key: held.whole(key) for key in held.names() if key not in deltas.keys_in_file}
    return _of(header, sealed.contents({**header, "deltas": {}}, rest, str(path))._replace(deltas=deltas))


def compose(*patches: Patch, overlap: Overlap = "refuse", shapes: Mapping[str, torch.Size] | None = None) -> Patch:
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
                    f"Both patches change {name!r}; say how to resolve it: "
                    "compose(..., overlap='sum' | 'first' | 'last')"
                )
    hooks = tuple(h for p in patches for h in p.hooks)
    return Patch(
        base=bases.pop(),
        deltas=deltas,
        hooks=hooks,
        words=united([p.words for p in patches]),
        provenance={"merged": [dict(p.provenance) for p in patches]},
    )


def _restore(host: Any, old: Mapping[str, Tensor]) -> None:
    tensors = tensors_of(host.root)
    with torch.no_grad():
        for name, value in old.items():
            tensors[name].detach().copy_(value)


def _shape_of(a: Delta, b: Delta, name: str) -> torch.Size:
    for d in (a, b):
        if d.kind == "dense":
            return d.tensors()["value"].shape
    if a.kind == b.kind:
        return torch.Size(())  # same-form sums never need it
    raise BadRequest(f"Summing a {a.kind} and a {b.kind} delta of {name!r} needs its shape: pass `shapes`.")


def _tensors(patch: Patch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a patch under the name that it has in a file."""
    for name, d in patch.deltas.items():
        for field_name, t in d.tensors().items():
            yield f"delta|{name}|{field_name}", t.detach().cpu().contiguous()
    for i, hook in enumerate(patch.hooks):
        for name, t in hook.tensors.items():
            yield f"hook|{i}|{name}", t.detach().cpu().contiguous()
    for i, (_, word) in enumerate(sorted(patch.words.items())):
        for name, t in word.vectors.items():
            yield f"word|{i}|{name}", t.detach().cpu().contiguous()


def _header(patch: Patch) -> dict[str, Any]:
    """What a file says of a patch beside its tensors."""
    header: dict[str, Any] = {
        "format": patch.format,
        "base": patch.base,
        "deltas": _kinds(patch.deltas),
        "hooks": [{"id": h.id, "params": dict(h.params)} for h in patch.hooks],
        "provenance": dict(patch.provenance),
    }
    if patch.words:  # so that a patch without any keeps its bytes
        words = sorted(patch.words.items())
        header["words"] = [{"word": word, "reads_as": meant.reads_as} for word, meant in words]
    return json.loads(json.dumps(header))


def _kinds(deltas: Mapping[str, Delta]) -> dict[str, str]:
    """What form each is of; of those that lie in a file none is read for it."""
    return dict(deltas.kinds) if isinstance(deltas, sealed.Deltas) else {name: d.kind for name, d in deltas.items()}


def _of(header: sealed.Header, found: sealed.Contents) -> Patch:
    made = dict(header["provenance"])
    return Patch(
        base=header["base"],
        deltas=found.deltas,
        hooks=found.hooks,
        words=found.words,
        provenance=made,
        cost={k: made[k] for k in COSTS if k in made},
        format=header["format"],
    )
