"""The tensors that a run trains, swapped into the host's modules while the student runs.

Student and teacher are one model: only the trained tensors exist twice. A swap moves pointers, so the originals are
never written and are back, bit for bit, when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from palimpsest.core.delta import Delta, Dense, LowRank
from palimpsest.core.errors import BadRequest
from palimpsest.train.factored import Factored
from palimpsest.train.randomness import generator


class Trained:
    """Float32 leaves for some parameters of a model.

    Args:
        root: owns the parameters.
        names: which to train, as in `root.named_parameters()`. In low rank, those with fewer than two axes stay.
        rank: 0 trains the tensors themselves; r > 0 trains `W + up @ down` with up (out, r), down (r, in), where in
            is the product of all axes but the first.
        seed: of the first `down`; `up` starts at zero, so training starts at the model as it is.
        speak: a context in which the student speaks words that are trained; then there may be no parameter.

    Raises:
        BadRequest: nothing to train, or a name that the model lacks.
    """

    def __init__(
        self,
        root: nn.Module,
        names: Sequence[str],
        *,
        rank: int = 0,
        seed: int = 0,
        speak: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        known = dict(root.named_parameters(remove_duplicate=False))
        unknown = [n for n in names if n not in known]
        if unknown:
            raise BadRequest(f"There is no parameter {unknown[0]!r} to train in this model.")
        chosen = {n: known[n] for n in dict.fromkeys(names) if rank == 0 or known[n].ndim >= 2}
        if not chosen and speak is None:
            raise BadRequest("The method found no parameter to train in this model; choose other parts of it.")
        self.root, self.rank = root, rank
        self.old: dict[str, nn.Parameter] = _once(chosen)
        self.leaves: dict[str, Tensor] = {}
        for name, old in self.old.items():
            self._add(name, old.detach(), seed)
        self._holders = _holders(root, self.old)
        # What is swapped in, outermost first, {} for the originals; and whether it is the student, who speaks.
        self._in: list[tuple[Mapping[str, Tensor | Factored], bool]] = []
        self._speak, self._aloud = speak, ExitStack()

    def _add(self, name: str, old: Tensor, seed: int) -> None:
        if self.rank == 0:
            self.leaves[name] = old.float().clone().requires_grad_(True)
            return
        out, inner = old.shape[0], old[0].numel()
        rank = min(self.rank, out, inner)
        down = torch.randn(rank, inner, generator=generator(seed, "down", name)) / inner**0.5
        self.leaves[name + "|up"] = torch.zeros(out, rank, device=old.device).requires_grad_(True)
        self.leaves[name + "|down"] = down.to(old.device).requires_grad_(True)

    def current(self) -> dict[str, Tensor | Factored]:
        """The student's tensors, in the model's dtype, as functions of the leaves."""
        if self.rank == 0:
            return {n: self.leaves[n].to(old.dtype) for n, old in self.old.items()}
        leaves = self.leaves
        return {n: Factored(old.detach(), leaves[n + "|up"], leaves[n + "|down"]) for n, old in self.old.items()}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No parameter of the model itself takes gradients until the context ends."""
        asked = [p for p in self.root.parameters() if p.requires_grad]
        for p in asked:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in asked:
                p.requires_grad_(True)

    @contextmanager
    def student(self) -> Iterator[None]:
        """The model with the trained tensors and words."""
        with self._swapped(self.current(), student=True):
            yield

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """The model as it was, without gradients; usable inside `student`."""
        with self._swapped({}), torch.no_grad():
            yield

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """The model as it was but for these tensors, in its own dtype; gradients flow through all of it.

        Raises:
            BadRequest: a name that is not trained, since only trained tensors are swapped.
        """
        odd = [name for name in tensors if name not in self.old]
        if odd:
            raise BadRequest(f"{odd[0]!r} is not among the trained tensors, so that none can stand in for it.")
        with self._swapped({name: t.to(self.old[name].dtype) for name, t in tensors.items()}):
            yield

    @contextmanager
    def _swapped(self, new: Mapping[str, Tensor | Factored], *, student: bool = False) -> Iterator[None]:
        self._in.append((new, student))
        try:
            self._turn()
            yield
        finally:
            self._in.pop()
            self._turn()

    def _turn(self) -> None:
        """Makes the model what was swapped in last."""
        new, student = self._in[-1] if self._in else ({}, False)
        self._aloud.close()
        if student and self._speak is not None:
            self._aloud.enter_context(self._speak())
        for name, holders in self._holders.items():
            for module, key in holders:
                module._parameters[key] = new.get(name, self.old[name])  # type: ignore[assignment]

    def deltas(self) -> dict[str, Delta]:
        """What training changed: exact factors in low rank, else new - old."""
        with torch.no_grad():
            if self.rank:
                pairs = {n: (self.leaves[n + "|up"], self.leaves[n + "|down"]) for n in self.old}
                return {n: LowRank(up=u.detach().cpu(), down=d.detach().cpu()) for n, (u, d) in pairs.items()}
            changes = {n: (self.leaves[n] - old.float()).cpu() for n, old in self.old.items()}
            return {n: Dense(value=c) for n, c in changes.items() if bool(c.any())}


def _once(named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """One name for each tensor, since a tensor that is shared under several is trained once."""
    first: dict[int, str] = {}
    for name, parameter in named.items():
        first.setdefault(id(parameter), name)
    return {name: named[name] for name in first.values()}


def _holders(root: nn.Module, old: dict[str, nn.Parameter]) -> dict[str, list[tuple[nn.Module, str]]]:
    name_of = {id(p): n for n, p in old.items()}
    found: dict[str, list[tuple[nn.Module, str]]] = {n: [] for n in old}
    for module in root.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in name_of:
                found[name_of[id(parameter)]].append((module, key))
    return found
