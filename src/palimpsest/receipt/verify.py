"""Checks a receipt: hashes what it names, computes its numbers again, draws its pictures again."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Progress
from palimpsest.probes.evaluators import Judge, judge
from palimpsest.probes.evidence import Evidence, Seen, norms
from palimpsest.probes.plan import Plan
from palimpsest.probes.suite import readings as read
from palimpsest.probes.weights import Weights
from palimpsest.receipt import redraw, resurfaced, words
from palimpsest.receipt.build import alike, evaluator, look, picture_hash, plain, reading, seal
from palimpsest.receipt.reask import Asked
from palimpsest.receipt.schema import load
from palimpsest.receipt.sign import SUFFIX, signed_by
from palimpsest.receipt.write import HTML_FILE, LOSSLESS, decode, render

Status = Literal["same", "differs", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked.

    Args:
        status: same, differs, or not checked (and why).
        what: the thing.
        detail: what differs, what was expected, or why it was not checked.
    """

    status: Status
    what: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status != "differs"

    def __str__(self) -> str:
        return f"{self.status:12} {self.what}" + (f": {self.detail}" if self.detail else "")


def verify(
    path: str | Path,
    *,
    remeasure: Literal["none", "sample", "all"] = "none",
    before: Any = None,
    after: Any = None,
    judges: Sequence[Judge] | None = None,
    public_key: str | Path | None = None,
    asked: Asked | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Checks a receipt.json and what lies beside it.

    Seal; every reading that follows from the kept per-picture numbers; the summary; the page with its pictures; the
    patch; the untouched model, the edited model and the evaluators where they can be loaded. With `remeasure` the
    pictures are drawn and read again, 12 or all of them; with all of them every reading is computed from them. A
    classifier is asked about its samples again, with "all" relearning is repeated as well.

    Args:
        path: of receipt.json.
        before, after: the models, where they cannot be loaded by the names that the receipt keeps.
        judges: likewise; by default loaded by what the receipt says.
        public_key: of who is said to have signed it; a signature that is missing or another's is then a finding.
        asked: of a classifier's receipt, the samples to ask about again.

    Returns:
        All findings; `all(f.ok for f in findings)` is the verdict.

    Raises:
        Damaged: the file is no receipt, or one of another schema.
        BadRequest: an unknown `remeasure`, or samples for a generator.
    """
    if remeasure not in ("none", "sample", "all"):
        raise BadRequest(f"remeasure is {remeasure!r}; it must be none, sample or all.")
    path = Path(path)
    data = load(path)
    if data.get("subject") == "classifier":
        from palimpsest.receipt.verify_classifier import verify_classifier

        given = {"before": before, "after": after, "public_key": public_key}
        return verify_classifier(path, data, remeasure=remeasure, asked=asked, **given)
    if asked is not None:
        raise BadRequest(f"{path} is about a generator, which is asked with prompts; samples are a classifier's.")
    # Whatever was altered, a receipt whose parts do not fit together must end in a finding, never in a crash.
    found = [check_seal(data)]
    signature = path.with_name(path.name + SUFFIX)
    if public_key is not None:
        found.append(check_signature(path, Path(public_key)))
    elif signature.is_file():
        why = f"{signature.name} is there: give the public key of who signed"
        found.append(Finding(status="not checked", what="signature", detail=why))
    broken = guarded("the receipt's parts", lambda: evidence_of(data) and [])
    if broken:
        return [*found, *broken]
    found += guarded("readings", lambda: _readings(data))
    found += guarded("resurfacing", lambda: [Finding(**f) for f in resurfaced.check(data)])
    found += guarded("the page", lambda: _page(data, path.with_name(HTML_FILE)))
    patch, host, edited, told = check_models(data, path.parent, before, after)
    found += told
    if patch is not None and host is not None:
        found += guarded("changed weights", lambda: _weights(data, host, patch))
    used, told_of = _judges(data, judges)
    found += told_of
    if remeasure == "none":
        return found
    if host is None or edited is None or len(used) < len(data["evaluators"]):
        return [*found, Finding(status="not checked", what="pictures", detail="a model or an evaluator is missing")]
    return found + guarded(
        "pictures", lambda: [Finding(**f) for f in redraw.again(data, host, edited, used, remeasure, progress)]
    )


def evidence_of(data: Mapping[str, Any]) -> Evidence:
    """What a receipt keeps of its evidence: enough for every probe with `from_receipt`."""
    evaluators = {name: evaluator(e) for name, e in data["evaluators"].items()}
    seen = {
        name: {
            which: Seen(present=_flags(rows, len(evaluators[name].classes)), features=torch.zeros(len(rows), 0))
            for which, rows in sets.items()
        }
        for name, sets in data["reads"].items()
    }
    return Evidence(
        plan=Plan.from_plain({**data["plan"], "request": data["request"]}),
        pictures={},
        seen=seen,
        evaluators=evaluators,
        kept={k: torch.tensor(v, dtype=torch.float64) for k, v in data["measures"].items()},
        cost=data["cost"],
    )


def compare(stated: Sequence[Mapping[str, Any]], computed: Sequence[Reading], source: str) -> list[Finding]:
    """Readings of a receipt against the same computed again, one finding for each that differs."""
    told = {_key(r): r for r in stated}
    kinds, keys = {r.name for r in computed}, {_key(plain(r)) for r in computed}
    found = [
        Finding(status="differs", what=f"{r['name']} of {r['concept'] or r['role']}", detail=f"{source} do not give it")
        for r in stated
        if r["name"] in kinds and _key(r) not in keys
    ]
    same = 0
    for r in map(plain, computed):
        mine = told.get(_key(r))
        name = " ".join(filter(None, [r["name"], "of", r["concept"] or r["role"]]))
        if mine is None:
            found.append(
                Finding(status="differs", what=name, detail=f"the receipt lacks it; {source} give {r['value']:g}")
            )
        elif (field := _difference(mine, r)) is not None:
            text = f"{field} is {_brief(mine[field])} in the receipt, {_brief(r[field])} by {source}"
            found.append(Finding(status="differs", what=name, detail=text))
        else:
            same += 1
    return [*found, Finding(status="same", what=f"{same} readings", detail=f"computed again from {source}")]


def check_seal(data: Mapping[str, Any]) -> Finding:
    now = seal(data)
    if now == data["seal"]:
        return Finding(status="same", what="seal", detail=now[:12])
    return Finding(
        status="differs", what="seal", detail=f"it says {str(data['seal'])[:12]}, the content gives {now[:12]}: altered"
    )


def check_signature(path: Path, public: Path) -> Finding:
    if not path.with_name(path.name + SUFFIX).is_file():
        return Finding(status="differs", what="signature", detail=f"there is no {path.name}{SUFFIX} beside the receipt")
    try:
        good = signed_by(path, public)
    except Damaged as e:
        return Finding(status="differs", what="signature", detail=str(e))
    if good:
        return Finding(status="same", what="signature", detail=f"by the key of {public.name}")
    text = f"it was not made for these bytes by the key of {public.name}: the receipt was altered, or another signed it"
    return Finding(status="differs", what="signature", detail=text)


def _readings(data: Mapping[str, Any]) -> list[Finding]:
    """Numbers from the kept per-picture reads, verdicts and the summary from the numbers."""
    evidence = evidence_of(data)
    found = compare(data["readings"], read(evidence, from_receipt=True), "the kept reads of each picture")
    stated = [reading(r, evidence.evaluators) for r in data["readings"]]
    for row, r in zip(data["readings"], stated, strict=True):
        if row["verdict"] != (expected := plain(r)["verdict"]):
            what = f"verdict of {row['name']} {row['concept'] or row['role']}"
            text = f"it says {row['verdict']!r}, its numbers give {expected!r}"
            found.append(Finding(status="differs", what=what, detail=text))
    targets = [c["name"] for c in data["request"]["target"]]
    expected = (words.headline(stated, targets), words.sentences(stated, targets, data["cost"]))
    if (data["headline"], data["summary"]) == expected:
        return [*found, Finding(status="same", what="summary")]
    return [*found, Finding(status="differs", what="summary", detail="its sentences do not follow from the readings")]


def _page(data: Mapping[str, Any], path: Path) -> list[Finding]:
    """The page's pictures against their hashes, then the whole page against one made again from the JSON."""
    if not path.is_file():
        return [Finding(status="not checked", what="the page", detail=f"there is no {path.name} beside the receipt")]
    text = path.read_text(encoding="utf-8")
    bodies = [base64.b64decode(b) for b in re.findall(r'src="data:image/webp;base64,([A-Za-z0-9+/=]+)"', text)]
    by_hash = {hashlib.sha256(b).hexdigest(): b for b in bodies}
    known = {s["sha256"] for s in data["shown"]}
    missing = [s["picture"] for s in data["shown"] if s["sha256"] not in by_hash]
    if missing or set(by_hash) - known:
        text = f"{', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''} differ from the receipt's hashes"
        return [Finding(status="differs", what="pictures of the page", detail=text)]
    pictures = {s["picture"]: by_hash[s["sha256"]] for s in data["shown"]}
    exchanged = [k for k, v in pictures.items() if not _is_picture(v, _kept(data, k))]
    if exchanged:
        text = f"{', '.join(exchanged[:3])} of the page is not the picture that was judged"
        return [Finding(status="differs", what="pictures of the page", detail=text)]
    found = [Finding(status="same", what=f"{len(pictures)} pictures of the page")]
    again = render(data, pictures)
    if again == text:
        return [
            *found,
            Finding(status="same", what="the page", detail="made again from receipt.json, letter by letter"),
        ]
    return [*found, first_difference(data, text, again)]


def _kept(data: Mapping[str, Any], name: str) -> Mapping[str, str]:
    which, row = name.split("/")
    return data["pictures"][which][int(row)]


def _is_picture(encoded: bytes, kept: Mapping[str, str]) -> bool:
    """Whether bytes of the page show a picture: exactly where they are lossless, else by its 4 x 4 copy."""
    picture = decode(encoded)
    if max(picture.shape[1:]) <= LOSSLESS:
        return picture_hash(picture) == kept["sha256"]
    return alike(look(picture), kept["look"])


def _weights(data: Mapping[str, Any], host: Any, patch: Patch) -> list[Finding]:
    evidence = replace(evidence_of(data), patch=patch, base=norms(host, patch))
    return compare(data["readings"], Weights().run(evidence), "the patch and the model")


def first_difference(data: Mapping[str, Any], text: str, again: str) -> Finding:
    from palimpsest.core.method import versions

    if data["versions"]["palimpsest"] != versions()["palimpsest"]:
        text = f"written by palimpsest {data['versions']['palimpsest']}, whose page may look different"
        return Finding(status="not checked", what="text of the page", detail=text)
    pairs = zip(text.splitlines(), again.splitlines(), strict=False)
    line, (mine, expected) = next(
        ((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1]), (0, ("its length", "another length"))
    )
    return Finding(
        status="differs",
        what="text of the page",
        detail=f"line {line} is {_brief(mine.strip())}, receipt.json gives {_brief(expected.strip())}",
    )


def check_patch(data: Mapping[str, Any], folder: Path) -> tuple[Patch | None, Finding]:
    edited = data["edited"]
    if edited["kind"] != "patch":
        return None, Finding(status="not checked", what="patch", detail="two models were compared, there is none")
    if not edited["file"]:
        return None, Finding(status="not checked", what="patch", detail="it was not written with the receipt")
    file = folder / Path(edited["file"]).name  # never outside of the receipt's folder
    try:
        patch = Patch.load(file)
    except Damaged as e:
        return None, Finding(status="differs", what="patch", detail=str(e))
    if patch.sha256() != edited["sha256"]:
        text = f"{file.name} is {patch.sha256()[:12]}, the receipt is about {edited['sha256'][:12]}"
        return None, Finding(status="differs", what="patch", detail=text)
    if patch.base != data["base"]["fingerprint"]:
        text = f"it was made for {patch.base[:12]}, the receipt's model is {data['base']['fingerprint'][:12]}"
        return None, Finding(status="differs", what="patch", detail=text)
    return patch, Finding(status="same", what="patch", detail=patch.sha256()[:12])


def check_models(
    data: Mapping[str, Any], folder: Path, before: Any, after: Any
) -> tuple[Patch | None, Any, Any, list[Finding]]:
    """The patch, the untouched and the edited model (the patch, where there is one), and what was found of them."""
    patch, told = check_patch(data, folder)
    host, named = check_model(data["base"], before, "untouched model")
    found = [told, named]
    edited: Any = patch
    if data["edited"]["kind"] == "model":
        edited, named = check_model(data["edited"], after, "edited model")
        found.append(named)
    return patch, host, edited, found


def check_model(stated: Mapping[str, str], given: Any, what: str) -> tuple[Any, Finding]:
    host = given
    if host is None:
        from palimpsest.hosts.load import load as load_host

        try:
            host = load_host(stated["name"])
        except (PalimpsestError, OSError, ValueError) as e:
            return None, Finding(status="not checked", what=what, detail=f"{stated['name']} cannot be loaded: {e}")
    found = host.fingerprint()
    if found == stated["fingerprint"]:
        return host, Finding(status="same", what=what, detail=f"{stated['name']} {found[:12]}")
    text = f"{stated['name']} is now {found[:12]}, the receipt is about {stated['fingerprint'][:12]}"
    return None, Finding(status="differs", what=what, detail=text)


def _judges(data: Mapping[str, Any], given: Sequence[Judge] | None) -> tuple[list[Judge], list[Finding]]:
    own = {j.evaluator.name: j for j in given or ()}
    plan = Plan.from_plain({**data["plan"], "request": data["request"]})
    concepts = [g.concept for g in plan.groups if g.concept is not None]
    used, found = [], []
    for name, stated in data["evaluators"].items():
        what = f"evaluator {name}"
        try:
            if name not in own and not stated["source"]:
                raise BadRequest("the receipt does not say where to load it")
            known = own[name] if name in own else judge(stated["source"], concepts)
        except (PalimpsestError, OSError, ValueError) as e:
            found.append(Finding(status="not checked", what=what, detail=str(e)))
            continue
        if known.evaluator == evaluator(stated):
            used.append(known)
            found.append(Finding(status="same", what=what, detail=known.evaluator.sha256[:12]))
        else:
            text = f"it is now {known.evaluator.sha256[:12]}, the receipt used {stated['sha256'][:12]}"
            if known.evaluator.sha256 == stated["sha256"]:
                text = "its threshold, classes, version or licence are not those that the receipt states"
            found.append(Finding(status="differs", what=what, detail=text))
    return used, found


def guarded(what: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, PalimpsestError) as e:
        text = f"the receipt's parts do not fit together ({type(e).__name__}: {e})"
        return [Finding(status="differs", what=what, detail=text)]


def _flags(rows: Sequence[Sequence[int]], classes: int) -> torch.Tensor:
    flags = torch.zeros(len(rows), classes, dtype=torch.bool)
    for i, row in enumerate(rows):
        flags[i, list(row)] = True
    return flags


def _key(r: Mapping[str, Any]) -> tuple[Any, ...]:
    return r["name"], r["concept"], r["role"], r["evaluator"]


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first field that differs; numbers are equal up to one part in a million."""
    return next((k for k in b if k != "detail" and not _equal(a.get(k), b[k])), None) or (
        None if _equal(a.get("detail"), b["detail"]) else "detail"
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b))
    return a == b


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
