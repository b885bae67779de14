"""A receipt's evidence against the same collected again: pictures by their hashes, measures number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.probes.evidence import Evidence, parts
from palimpsest.receipt.document import alike, look, picture_hash
from palimpsest.receipt.finding import Finding, differs, same
from palimpsest.receipt.pictures import LOSSLESS, resembles
from palimpsest.receipt.readings import compared
from palimpsest.receipt.subject import Again, Subject, said

_EXACT = ("label", "like", "class", "collapse")  # numbers that stand for kinds
_ROUNDING = 1e-2  # of a number, or of 1 where it is smaller: what another machine's arithmetic may do
_POINTS = 1.0  # of an accuracy while relearning, where rounding adds up


def held(
    data: Mapping[str, Any], kept: Evidence, again: Again, subject: Subject, page: Mapping[str, bytes], how: str
) -> list[Finding]:
    """What the evidence collected again says of the receipt.

    Args:
        data, kept: of the receipt. page: its page's pictures by "set/row". how: "sample" or "all".
    """
    found = [*again.found, *_pictures(data, again, subject, kept, page)]
    told = [f for key, now in again.evidence.measures.items() if (f := _measure(key, kept, now, again))]
    rows = sum(map(len, again.evidence.measures.values()))
    good = [same(f"{rows} numbers and reads", f"{len(again.evidence.measures)} kinds, asked again", "measures")]
    found += told or good
    if again.readings:
        found += compared(data["readings"], subject.readings(again.evidence), "what was measured again")
    if again.left:
        status = "not asked" if how == "sample" else "not checked"
        found.append(Finding(status=status, what="further answers", detail=again.left, of=("measures", "pictures")))
    return found


def _pictures(
    data: Mapping[str, Any], again: Again, subject: Subject, kept: Evidence, page: Mapping[str, bytes]
) -> list[Finding]:
    """One finding for each picture that is another one, and one for all that are the same."""
    captions = {p.row: f" ({said(p)})" for p in subject.pairs(kept)}
    found, exact, close, copies, total = [], 0, 0, 0, 0
    for which, pictures in again.evidence.gallery.items():
        stated = data["pictures"].get(which, [])
        for row, picture in zip(_rows(again, which, len(pictures)), pictures, strict=True):
            total += 1
            what = f"picture {which}/{row}{captions.get(row, '') if which != 'other' else ''}"
            if picture_hash(picture) == stated[row]["sha256"]:
                exact += 1
            elif alike(look(picture), stated[row]["look"]):
                close += 1
            else:
                found.append(differs(what, "drawn again it is another picture", "pictures"))
                continue
            copy = page.get(f"{which}/{row}")
            if copy is not None and max(picture.shape[1:]) > LOSSLESS:
                copies += 1
                if not resembles(copy, picture):
                    found.append(differs(what, "the page shows another one", "pictures", "shown"))
    if not total:
        return []
    rounding = (f", {close} up to rounding" if close else "") + (f", {copies} of them on the page" if copies else "")
    detail = f"drawn again, {exact} bit for bit{rounding}"
    return [*found, same(f"{exact + close} of {total} pictures", detail, "pictures", "shown", "plan")]


def _rows(again: Again, which: str, count: int) -> Sequence[int]:
    return range(count) if again.rows is None else again.rows[which]


def _measure(key: str, kept: Evidence, now: Tensor, again: Again) -> Finding | None:
    """A kind of measures that differs; None where all agree up to rounding, or where the receipt's file is gone."""
    which, model, name = parts(key)
    if key not in kept.measures:
        if now.dim() == 2 and now.is_floating_point():
            return None  # the file beside the receipt is gone, which has been told
        return differs(key, "the receipt lacks it", "measures")
    stated = kept.measures[key]
    rows = list(_rows(again, which, len(now))) if again.rows is not None else list(range(len(stated)))
    if len(rows) != len(now) or stated.shape[1:] != now.shape[1:]:
        return differs(key, f"the receipt has {len(stated)} rows, asked again there are {len(now)}", "measures")
    mine = stated[rows]
    if now.dtype == torch.bool:
        wrong = (mine != now).any(1).nonzero().flatten().tolist()
        said = [_seen(kept, model, mine[i], now[i]) for i in wrong[:3]]
        text = "; ".join(f"{which}/{rows[i]}: {what}" for i, what in zip(wrong, said, strict=False))
        return differs(key, f"{len(wrong)} of {len(now)} differ: {text}", "measures") if wrong else None
    allowed = _ROUNDING * mine.abs().clamp(min=1)
    if name in _EXACT:
        allowed = torch.zeros_like(mine)
    elif name == "relearnt":
        allowed = torch.full_like(mine, _POINTS)
    wrong = ((mine - now).abs() > allowed).reshape(len(now), -1).any(1).nonzero().flatten().tolist()
    if not wrong:
        return None
    first = wrong[0]
    told = f"first row {rows[first]}"
    if mine.dim() == 1:
        told += f": {float(mine[first]):g}, asked again {float(now[first]):g}"
    return differs(key, f"{len(wrong)} of {len(now)} differ, {told}", "measures")


def _seen(kept: Evidence, judge: str, stated: Tensor, now: Tensor) -> str:
    classes = kept.evaluators[judge].classes

    def names(bits: Tensor) -> str:
        return ", ".join(classes[i] for i in bits.nonzero().flatten().tolist()) or "nothing"

    return f"{judge} reads {names(now)}, the receipt says {names(stated)}"
