"""Asks a classifier's receipt's models about its samples again and compares the answers with those it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest
from palimpsest.data.dataset import Dataset, aligned
from palimpsest.data.forget import ForgetRequest, record, split
from palimpsest.probes.classifier_evidence import collect_classifier, parts_of

NEEDS = "the samples are needed: give --data, what the model learned from"
_EXACT = ("label", "like", "class")
_ROUNDING = 1e-2  # of a number, or of 1 where it is smaller: what another machine's arithmetic may do to an answer
_POINTS = 1.0  # of an accuracy while relearning, where rounding adds up


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to ask about.

    Args:
        data: what the model learned from. test: held-out samples, where the receipt has any.
        forget: the request; needed where it lists single samples, whose names no receipt keeps.
    """

    data: Dataset
    test: Dataset | None = None
    forget: ForgetRequest | None = None


def again(data: Mapping[str, Any], before: Any, after: Any, asked: Asked, how_many: str) -> list[dict[str, Any]]:
    """Findings, as the fields of `verify.Finding`.

    Args:
        data: of the receipt. before, after: the untouched model; a Patch for it, or the changed model.
        how_many: "sample": every answer of both models; "all": relearning as well.

    Cost: as the audit, without retrained models; with "sample" without relearning.
    """
    request, known = _request(data["forget"], asked.forget), aligned(asked.data, before.labels, before.name)
    if request is None:
        why = "the receipt does not keep the names of single samples: give --forget samples:list.csv"
        return [_said("not checked", "answers", why)]
    mark = record(known, request)
    wrong = [f"{k} is {mark[k]}, the receipt says {data['forget'][k]}" for k in mark if mark[k] != data["forget"][k]]
    if wrong:
        return [_said("differs", "samples to forget", wrong[0])]
    found = [_said("same", "samples to forget", f"{mark['samples']} of {mark['of']}, {mark['content'][:12]}")]
    kept = {part: len(data["measures"].get(f"{part}/label", ())) for part in ("forget", "retain", "test")}
    if bool(kept["test"]) != (asked.test is not None):
        why = "give --test, the held-out samples" if kept["test"] else "it was made without held-out samples: no --test"
        return [*found, _said("not checked", "answers", why)]
    held = None if asked.test is None else aligned(asked.test, before.labels, before.name).samples
    parts = parts_of(
        split(known, request),
        held,
        len(before.labels),
        identities=request.items if request.kind == "identity" else (),
        forget=kept["forget"],
        retain=kept["retain"],
        tests=kept["test"],
    )
    measures = collect_classifier(before, after, parts, relearn=how_many == "all").measures
    told = [t for key, now in measures.items() if (t := _difference(key, data["measures"].get(key), now))]
    found += [_said("differs", key, text) for key, text in told]
    same = sum(map(len, measures.values())) if not told else 0
    if same:
        found.append(_said("same", f"{same} answers", f"{len(measures)} kinds, asked again"))
    left = sorted({k.split("/")[1] for k in data["measures"] if k not in measures})
    if left:
        why = f"{', '.join(left)}: other models than the two, or relearning, which --remeasure all repeats"
        found.append(_said("not checked", "answers of other models", why))
    return found


def _request(kept: Mapping[str, Any], given: ForgetRequest | None) -> ForgetRequest | None:
    """The request that a receipt states; for single samples the one that is given."""
    if given is not None:
        return given
    if kept["kind"] == "samples":
        return None
    try:
        return ForgetRequest(kind=kept["kind"], items=tuple(kept["items"]))
    except (BadRequest, TypeError) as e:
        raise ValueError(f"its forget request cannot be read: {e}") from e


def _difference(key: str, stated: list[float] | None, now: Tensor) -> tuple[str, str] | None:
    """(key, what differs) of one kind of answers; None where they agree up to rounding."""
    if stated is None:
        return key, "the receipt lacks it"
    mine = torch.tensor(stated, dtype=torch.float64)
    if len(mine) != len(now):
        return key, f"the receipt has {len(mine)} numbers, asked again there are {len(now)}"
    allowed = _ROUNDING * mine.abs().clamp(min=1)
    if key.startswith("relearn/"):
        allowed = torch.full_like(mine, _POINTS)
    elif key.rpartition("/")[2] in _EXACT:
        allowed = torch.zeros_like(mine)
    rows = ((mine - now).abs() > allowed).nonzero().flatten().tolist()
    if not rows:
        return None
    first = rows[0]
    return key, f"{len(rows)} of {len(now)} differ, first row {first}: {mine[first]:g}, asked again {now[first]:g}"


def _said(status: str, what: str, detail: str) -> dict[str, Any]:
    return {"status": status, "what": what, "detail": detail}
