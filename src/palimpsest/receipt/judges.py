"""The judges of a receipt, loaded again from what it states of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palimpsest.core.errors import BadRequest, PalimpsestError
from palimpsest.core.reading import Evaluator
from palimpsest.probes.evaluators import Judge
from palimpsest.receipt.finding import Finding, differs, lacking, same


def loaded_again(
    evaluators: Mapping[str, Evaluator],
    stated: Mapping[str, Mapping[str, Any]],
    given: Sequence[Judge],
    load: Callable[[str], Judge],
) -> tuple[list[Judge] | None, list[Finding]]:
    """The judges that a receipt names, None where one is missing or another; and what was found of them.

    Args:
        evaluators: of the receipt's evidence. stated: the same as its JSON has them, with where each is loaded from.
        given: judges that the caller has. load: loads one from where it is said to be.
    """
    there = {j.evaluator.name: j for j in given}
    used, found = [], []
    for name, due in evaluators.items():
        what, source = f"evaluator {name}", stated[name]["source"]
        try:
            if name not in there and not source:
                raise BadRequest("the receipt does not say where to load it")
            judge = there[name] if name in there else load(source)
        except (PalimpsestError, OSError, ValueError) as e:
            found.append(lacking(what, str(e), "evaluators"))
            continue
        if judge.evaluator == due:
            used.append(judge)
            found.append(same(what, judge.evaluator.sha256[:12], "evaluators"))
            continue
        text = f"it is now {judge.evaluator.sha256[:12]}, the receipt used {due.sha256[:12]}"
        if judge.evaluator.sha256 == due.sha256:
            text = "its threshold, classes, version or licence are not those that the receipt states"
        found.append(differs(what, text, "evaluators"))
    return (used if len(used) == len(evaluators) else None), found
