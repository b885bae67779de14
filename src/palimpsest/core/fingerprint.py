"""Identity of tensors: a cryptographic one for provenance, a quick one for guarding against change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

HARMLESS = ("transformers.", "palimpsest.core.trace")  # modules whose hooks change nothing
PRECISIONS = ("float32", "float16", "bfloat16")
"""In which models are loaded."""


def tensors_of(root: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer, by name, in sorted order; shared tensors under each of their names."""
    return dict(sorted(root.state_dict(keep_vars=True).items()))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in C order, without a copy where it is already contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest(tensors: Mapping[str, Tensor], salt: str = "", dtype: torch.dtype | None = None) -> str:
    """sha256 over names, shapes, dtypes and bytes, in the order of names. Cost: one pass over the bytes.

    Args:
        dtype: that floating-point tensors are converted to, one at a time; None: as they are.
    """
    h = hashlib.sha256(salt.encode())
    for name in sorted(tensors):
        t = tensors[name]
        if dtype is not None and t.is_floating_point():
            t = t.detach().to(dtype)
        h.update(f"{name}|{tuple(t.shape)}|{t.dtype}|".encode())
        h.update(raw_bytes(t))
    return h.hexdigest()


def fingerprint(root: nn.Module) -> str:
    """sha256 of a model's tensors, equal for equal weights whatever file they came from."""
    return digest(tensors_of(root))


def precision(root: nn.Module) -> str:
    """The precision of most of a model's numbers: "float32"."""
    held: dict[str, int] = {}
    for t in tensors_of(root).values():
        if t.is_floating_point():
            name = str(t.dtype).removeprefix("torch.")
            held[name] = held.get(name, 0) + t.numel()
    return max(held, key=held.__getitem__, default="")


def precision_with(root: nn.Module, wanted: str) -> str:
    """The precision in which a model has a fingerprint that it does not have as it is; "" where none gives it.

    A conversion to more digits brings back none that were lost, so that a model in float32 is told from its copy in
    bfloat16, not the other way round. Cost: a hash of all bytes for each precision.
    """
    now, tensors = precision(root), tensors_of(root)
    others = [name for name in PRECISIONS if name != now]
    return next((name for name in others if digest(tensors, dtype=getattr(torch, name)) == wanted), "")


def holds(root: nn.Module, wanted: str) -> bool:
    """Whether a model is the one with this fingerprint in another precision, with not a digit lost between them: one
    file of half precision, loaded in that and in float32.

    Cost: a hash of all bytes for each other precision.
    """
    then = precision_with(root, wanted)
    if not then:
        return False
    kind = getattr(torch, then)
    real = [t.detach() for t in tensors_of(root).values() if t.is_floating_point()]
    return all(torch.equal(t.to(kind).to(t.dtype), t) for t in real)


def of_precision(root: nn.Module, base: str) -> str:
    """A sentence on what precision has to do with a model's not being the one that a patch was made for; or ""."""
    now = precision(root)
    if then := precision_with(root, base):
        return f" Precision is the difference: it is that model in {now}, not in {then} (--dtype {then})."
    if now in ("", "float32"):
        return ""
    return f" It is loaded in {now}; a patch fits the precision that it was made in, mostly float32 (--dtype float32)."


State = Mapping[str, tuple[int, int, int]]
"""(storage address, element count, wrapped sum of the raw words) of each tensor of a model."""

_still: dict[nn.Module, State] = {}


def quick_state(root: nn.Module) -> State:
    """What a model's tensors hold, told apart in one fast pass without a copy.

    It misses only changes that cancel in the sum, which no accident of a method produces.
    """
    return _still.get(root) or {
        name: (t.data_ptr(), t.numel(), _wrapped_sum(t)) for name, t in tensors_of(root).items()
    }


@contextmanager
def still(root: nn.Module) -> Iterator[None]:
    """Until the block ends nobody writes into the model: whoever asks for its quick state shares one pass."""
    _still[root] = quick_state(root)
    try:
        yield
    finally:
        del _still[root]


def hook_count(root: nn.Module) -> int:
    """How many hooks and instance-level forwards hang on a model's modules.

    Those of the model's own library are not counted: transformers hangs hooks that collect hidden states on a text
    encoder when it is first asked for them, and they change nothing. Nor are those that count forwards (`core.trace`).
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

    def ours(module: nn.Module) -> int:
        hooks = [hook for kind in kinds for hook in getattr(module, kind).values()]
        return sum(not str(getattr(hook, "__module__", "")).startswith(HARMLESS) for hook in hooks)

    return sum(ours(m) + ("forward" in m.__dict__) for m in root.modules())


def _wrapped_sum(t: Tensor) -> int:
    flat = t.detach().reshape(-1)
    if flat.numel() == 0:
        return 0
    size = flat.element_size()
    if flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        # As fast as memory is read; a sum of narrower words takes fifteen times as long.
        return int(flat.view(torch.int64).sum())
    word = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return int(flat.view(word).sum(dtype=torch.int64))
