"""A change of a model that is a rule: which system knows it, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from palimpsest.core import catalog
from palimpsest.core.declared import fitted, shown
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.host import CAPABILITIES

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


def rule_of(hook: Hook, host: Any) -> HookRule:
    """What attaches a hook to a host.

    Raises:
        Damaged: no installed system knows such hooks. Unsupported: the host cannot do what it needs.
    """
    try:
        system = catalog.load(hook.id)
    except BadRequest as e:
        raise Damaged(f"The patch's hook is of a system that is not installed here: {shown(hook.id)}. {e}") from e
    if not hasattr(system, "attach"):
        raise Damaged(f"The patch has a hook of {shown(hook.id)}, a system that has no rule to attach.")
    if not isinstance(host, CAPABILITIES[system.card.needs]):
        raise Unsupported(f"The patch's hook {hook.id} needs a {system.card.needs}; {host.name} is none.")
    return system
