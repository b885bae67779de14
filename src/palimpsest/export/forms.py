"""What the tensors of one layer in another program's file say of its weight: each form's formula.

| form | tensors | change |
|---|---|---|
| LoRA | down, up | up down |
| with a core | down, mid, up | the three convolutions, one after the other |
| LoHa | w1_a, w1_b, w2_a, w2_b (t1, t2) | (w1_a w1_b) * (w2_a w2_b), entry by entry; with cores as above |
| LoKr | w1 or w1_a, w1_b; w2 or w2_a, w2_b (t2) | the Kronecker product of both |
| difference | diff, w_norm | itself |
| DoRA | magnitude or dora_scale, beside any of these | magnitude * (W + change) / norm(W + change) - W |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from palimpsest.core.declared import shown
from palimpsest.core.delta import REAL, Delta, Dense, LowRank
from palimpsest.core.errors import Damaged, Unsupported

Given = Mapping[str, Tensor]
LORA, LOHA, LOKR, DIFFERENCE = "LoRA", "LoHa", "LoKr", "difference"
BODIES: Mapping[str, tuple[str, ...]] = {
    LORA: ("down", "up", "mid"),
    LOHA: ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    LOKR: ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    DIFFERENCE: ("diff",),
}
"""Which tensors each form has, by the names that `read_lora` gives them; alpha and magnitude stand beside any."""


class Layer:
    """One layer's tensors in a file, held against the shape of the weight that they change.

    Args:
        given: its tensors by what they are.
        shape: of the weight.
        where: file and layer, for errors.
    """

    def __init__(self, given: Given, shape: torch.Size, where: str) -> None:
        self.given, self.shape, self.where = given, shape, where
        for role, tensor in given.items():
            _refuse_odd(role, tensor, where)
        self.form = self._form()

    def rank(self) -> int | None:
        """What alpha is divided by; None where the form has no thin side."""
        sides = {LORA: ("down",), LOHA: ("hada_w1_b",), LOKR: ("lokr_w2_b", "lokr_w1_b")}.get(self.form, ())
        return next((len(self.given[side]) for side in sides if side in self.given), None)

    def change(self, scale: float, base: Callable[[], Tensor] | None = None) -> Delta:
        """The change of the weight.

        Args:
            scale: what alpha says.
            base: gives the weight as it is, which DoRA needs.

        Raises:
            Damaged: tensors are missing or have other shapes than the layer.
        """
        delta = {LORA: self._lora, LOHA: self._loha, LOKR: self._lokr, DIFFERENCE: self._difference}[self.form]()
        delta = delta.scaled(scale)
        if base is not None and {"magnitude", "dora_scale"} & set(self.given):
            self._finite(delta)
            delta = self._decomposed(delta, base().float())
        self._finite(delta)
        delta.fits(self.shape)
        return delta

    # -- forms -------------------------------------------------------------------------------------------

    def _form(self) -> str:
        found = [form for form, roles in BODIES.items() if any(role in self.given for role in roles)]
        if len(found) != 1:
            raise Damaged(f"{self.where} has {' and '.join(found) or 'nothing that changes it'}; get a fresh copy.")
        return found[0]

    def _lora(self) -> Delta:
        up, down = self._matrix("up"), self._matrix("down")
        if "mid" not in self.given:
            self._joins(up, down)
            return _smaller(up, down, self.shape)
        mid = self.given["mid"].float()
        self._core(mid, up.shape[1], len(down))
        self._due(down.shape[1] * mid[0, 0].numel() == self.shape[1:].numel() and len(up) == self.shape[0])
        return _smaller(up, torch.einsum("ab...,bi->ai...", mid, down).flatten(1), self.shape)

    def _loha(self) -> Delta:
        both = []
        for n in "12":
            a, b = self._matrix(f"hada_w{n}_a"), self._matrix(f"hada_w{n}_b")
            if f"hada_t{n}" in self.given:  # a is (rank, out) here
                core = self.given[f"hada_t{n}"].float()
                self._core(core, len(a), len(b))
                self._due(a.shape[1] == self.shape[0] and b.shape[1] * core[0, 0].numel() == self.shape[1:].numel())
                a, b = a.T, torch.einsum("ab...,bi->ai...", core, b).flatten(1)
            self._joins(a, b)
            both.append((a, b))
        (a, b), (c, d) = both
        rank = a.shape[1] * c.shape[1]
        if rank * (self.shape[0] + self.shape[1:].numel()) < self.shape.numel():
            up = (a[:, :, None] * c[:, None, :]).flatten(1)
            return LowRank(up=up, down=(b[:, None] * d[None]).flatten(0, 1))
        return Dense(value=((a @ b) * (c @ d)).reshape(self.shape))

    def _lokr(self) -> Delta:
        first, second = self._pair("lokr_w1"), self._pair("lokr_w2")
        rank = first[0].shape[1] * second[0].shape[1]
        out = len(first[0]) * len(second[0])
        inner = first[1].shape[1] * second[1].shape[1]
        self._due(out == self.shape[0] and inner == self.shape[1:].numel())
        if rank * (out + inner) < out * inner:
            return LowRank(
                up=torch.kron(first[0].contiguous(), second[0].contiguous()),
                down=torch.kron(first[1].contiguous(), second[1].contiguous()),
            )
        return Dense(value=torch.kron(first[0] @ first[1], second[0] @ second[1]).reshape(self.shape))

    def _difference(self) -> Delta:
        value = self.given["diff"].float()
        self._due(value.numel() == self.shape.numel() and value.shape[0] == self.shape[0])
        return Dense(value=value.reshape(self.shape))

    def _decomposed(self, delta: Delta, base: Tensor) -> Delta:
        """DoRA: each row, or in files of some writers each column, is turned by the change and made as long as said.

        peft has one number a row. LyCORIS and OneTrainer have one a row or, with a first axis of one, one a column.
        """
        size = self.given["magnitude" if "magnitude" in self.given else "dora_scale"].float()
        rest = list(range(2, len(self.shape)))
        by_column = "magnitude" not in self.given and size.dim() > 1 and size.shape[0] == 1 != self.shape[0]
        self._due(len(self.shape) > 1 and size.numel() == self.shape[1 if by_column else 0])
        axes, form = ([0, *rest], [1, -1]) if by_column else ([1, *rest], [-1, 1])
        form += [1] * len(rest)
        new = (base + delta.dense(self.shape).float()).double()  # squares of its entries may be beyond float32
        length = torch.linalg.vector_norm(new, dim=axes, keepdim=True).clamp(min=torch.finfo(torch.float32).eps)
        return Dense(value=(size.reshape(form) * new / length - base).float())

    # -- parts of them -------------------------------------------------------------------------------------

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A factor of a Kronecker product as a product of two, of which one may be a unit matrix."""
        if name in self.given:
            whole = self._matrix(name)
            if len(whole) < whole.shape[1]:
                return torch.eye(len(whole)), whole
            return whole, torch.eye(whole.shape[1])
        a, b = self._matrix(f"{name}_a"), self._matrix(f"{name}_b")
        core = self.given.get(name.replace("w2", "t2")) if name.endswith("w2") else None
        if core is not None:  # a is (rank, out) here
            core = core.float()
            self._core(core, len(a), len(b))
            self._due(a.shape[1] <= self.shape[0] and b.shape[1] * core[0, 0].numel() <= self.shape[1:].numel())
            return a.T, torch.einsum("ab...,bi->ai...", core, b).flatten(1)
        self._due(a.shape[1] == len(b))
        return a, b

    def _matrix(self, role: str) -> Tensor:
        if role not in self.given:
            raise Damaged(f"{self.where} has some factors, but not the other ({role} is missing); get a fresh copy.")
        tensor = self.given[role]
        if tensor.dim() < 2 or not tensor.numel():
            raise Damaged(f"{self.where}: its factors are no matrices ({role} is {tuple(tensor.shape)}).")
        return tensor.float().flatten(1)

    def _core(self, core: Tensor, rows: int, columns: int) -> None:
        self._due(core.dim() >= 2 and tuple(core.shape[:2]) == (rows, columns))

    def _joins(self, up: Tensor, down: Tensor) -> None:
        self._due(up.shape[1] == len(down) and len(up) == self.shape[0] and down.shape[1] == self.shape[1:].numel())

    def _finite(self, delta: Delta) -> None:
        if not all(bool(t.isfinite().all()) for t in delta.tensors().values()):
            raise Damaged(f"{self.where} holds numbers that are not finite, or that are not when multiplied.")

    def _due(self, so: bool) -> None:
        """Raises Damaged where a shape is another than it must be, before anything of the weight's size is made."""
        if not so:
            held = ", ".join(f"{role} {tuple(t.shape)}" for role, t in sorted(self.given.items()))
            raise Damaged(
                f"{self.where}: {held} does not fit a weight of {tuple(self.shape)}. The file is damaged, or of a "
                "model of another size."
            )


def _smaller(up: Tensor, down: Tensor, shape: torch.Size) -> Delta:
    """The product, or its entries where they are fewer than those of the factors."""
    if up.numel() + down.numel() > shape.numel() and up.shape[1] > min(len(up), down.shape[1]):
        return Dense(value=(up @ down).reshape(shape))
    return LowRank(up=up, down=down)


def _refuse_odd(role: str, tensor: Tensor, where: str) -> None:
    if tensor.dtype in REAL:
        return
    if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool:
        raise Unsupported(
            f"{where}: {shown(role)} is stored as {str(tensor.dtype).removeprefix('torch.')}, numbers of 8 bits or "
            "fewer whose scale stands elsewhere. Take the file in float16 or bfloat16, or convert it with the program "
            "that wrote it."
        )
    raise Damaged(f"{where}: its factors are no matrices of real numbers ({role} is {tensor.dtype}).")
