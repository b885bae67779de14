"""Checks a receipt: hashes what it names, computes its numbers again, measures again where asked to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from palimpsest.core.change import diff
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.probes.evidence import PATCH, Evidence, norms
from palimpsest.probes.verdict import verdict
from palimpsest.receipt import pictures as shown
from palimpsest.receipt import remeasure as asked
from palimpsest.receipt import settings
from palimpsest.receipt.beside import Load, headers, model_of, patch_of, vectors_of
from palimpsest.receipt.document import evaluators_of, reading, seal
from palimpsest.receipt.finding import Finding, brief, differs, guarded, lacking, same
from palimpsest.receipt.make import HTML_FILE
from palimpsest.receipt.readings import compared
from palimpsest.receipt.schema import load as load_receipt
from palimpsest.receipt.sign import SUFFIX, signed_by
from palimpsest.receipt.subject import Subject, subject_of
from palimpsest.receipt.view import render

HOW = ("none", "sample", "all")
_PAGE = 16 * 2**20  # bytes of a page, at most
_NEEDS = {PATCH: "the patch and the model", "features": "the features beside the receipt"}


def verify(
    path: str | Path,
    *,
    remeasure: Literal["none", "sample", "all"] = "none",
    before: Any = None,
    after: Any = None,
    load: Load | None = None,
    subject: Subject | None = None,
    public_key: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Checks a receipt.json and what lies beside it, whatever it is about.

    Seal and signature; every reading, verdict and sentence from what is kept; the page and its pictures; features,
    patch, its header and the method's card; models and evaluators where they can be loaded. With `remeasure` a sample
    of the evidence is collected again, or all of it, and the readings are computed from that.

    Args:
        path: of receipt.json.
        before, after: the models, where `load` cannot load them by the names that the receipt keeps.
        load: loads a model by its name; by default `palimpsest.load`.
        subject: with what measuring again takes: `Generator(judges=..., oracle=...)`, where judges cannot be loaded
            from what the receipt says, or `Classifier(data=..., test=..., asked=..., retrained=...)`.
        public_key: of who is said to have signed it; a signature that is missing or another's is then a finding.

    Returns:
        All findings, of which every field of the receipt has one. `finding.exit_code` sums them up: 0 where all that
        was asked for held, 1 where something differs, 3 where something could not be checked.

    Raises:
        Damaged: the file is no receipt, or one of another schema or of a subject that is not installed.
        BadRequest: an unknown `remeasure`, or another subject than the receipt's.
    """
    if remeasure not in HOW:
        raise BadRequest(f"remeasure is {remeasure!r}; it must be none, sample or all.")
    path = Path(path)
    data = load_receipt(path)
    kind = subject_of(data)
    about = kind() if subject is None else subject
    if not isinstance(about, kind):
        raise BadRequest(f"{path} is about a {kind.name}; what was given is for a {about.name}.")
    found = [_seal(data), *_signature(path, public_key)]
    vectors, told = vectors_of(data, path.parent)
    try:
        kept, about = _kept(data, vectors, kind), about.at(data, path.parent)
    except Exception as e:  # whatever was altered, parts that do not fit together end in a finding, never in a crash
        text = f"the receipt's parts do not fit together ({type(e).__name__}: {e})"
        return [*found, *told, differs("the receipt's parts", text, *data)]
    found += told
    patch, told = patch_of(data, path.parent)
    host, named = model_of(data, "base", before, about.loader(load or _load), kind.sides[0])
    found += [*told, *named]
    edited: Any = patch
    if data["edited"]["kind"] != "patch":
        edited, more = model_of(data, "edited", after, about.loader(load or _load), kind.sides[1])
        named += more
        found += more
    kept = _with_change(kept, host, edited)
    found += guarded("headers", lambda: headers(data, patch), "method", "request", "command")
    found += guarded("readings", lambda: _readings(data, kind, kept), "readings")
    found += guarded("summary", lambda: _words(data, kind, kept), "headline", "summary")
    found += guarded(kind.name, lambda: kind.checks(data, kept, path.parent), "plan")
    page, told = _page(data, path.with_name(HTML_FILE))
    found += told
    ready, told = about.ready(data, kept, host)
    found += told or [same("evaluators", "there are none, as stated", "evaluators")]
    if remeasure == "none":
        return [*found, *_unasked(data), *_vouched(data)]
    if not all(f.ok for f in named):
        found.append(lacking("measuring again", "a model is not the receipt's", "measures", "pictures", "plan"))
        return [*found, *_vouched(data)]
    if host is None or edited is None or ready is None:
        found.append(lacking("measuring again", "a model or an evaluator is missing", "measures", "pictures", "plan"))
        return [*found, *_vouched(data)]
    trace, able = Trace(progress=progress), ready

    def again() -> list[Finding]:
        collected = able.again(kept, host, edited, remeasure, trace)
        return collected if isinstance(collected, list) else asked.held(data, kept, collected, able, page, remeasure)

    return [*found, *guarded("measuring again", again, "measures", "pictures", "plan"), *_vouched(data)]


def _kept(data: Mapping[str, Any], vectors: Mapping[str, Tensor], kind: type[Subject]) -> Evidence:
    if data["edited"]["kind"] not in kind.kinds:
        raise ValueError(f"a receipt about a {kind.name} compares no {data['edited']['kind']}")
    return kind.kept(data, vectors)


def _load(name: str) -> Any:
    from palimpsest.hosts.load import load

    return load(name)


def _with_change(kept: Evidence, host: Any, edited: Any) -> Evidence:
    """The kept evidence with the change itself, where both models are known."""
    if host is None or edited is None:
        return kept
    if not isinstance(edited, Patch) and not hasattr(edited, "root"):
        return kept
    try:
        patch = edited if isinstance(edited, Patch) else diff(host, edited)
    except Unsupported:
        return kept
    return replace(kept, patch=patch, base=norms(host, patch))


def _seal(data: Mapping[str, Any]) -> Finding:
    now = seal(data)
    if now == data["seal"]:
        return same("seal", now[:12], "seal", "schema", "subject")
    text = f"it says {brief(data['seal'][:12])}, the content gives {now[:12]}: altered"
    return differs("seal", text, "seal", "schema", "subject")


def _signature(path: Path, public: str | Path | None) -> list[Finding]:
    signature = path.with_name(path.name + SUFFIX)
    if public is None:
        why = f"{signature.name} is there: give the public key of who signed"
        return [lacking("signature", why)] if signature.is_file() else []
    if not signature.is_file():
        return [differs("signature", f"there is no {signature.name} beside the receipt")]
    name = Path(public).name
    try:
        good = signed_by(path, Path(public))
    except Damaged as e:
        return [differs("signature", str(e))]
    text = f"it was not made for these bytes by the key of {name}: the receipt was altered, or another signed it"
    return [same("signature", f"by the key of {name}") if good else differs("signature", text)]


def _readings(data: Mapping[str, Any], kind: type[Subject], kept: Evidence) -> list[Finding]:
    """Numbers from what is kept, verdicts from the numbers, and what stays uncomputed, with the reason."""
    computed = kind.readings(kept)
    found = compared(data["readings"], computed, "what the receipt keeps")
    evaluators = evaluators_of(data)
    for row in data["readings"]:
        if row["verdict"] != (due := verdict(reading(row, evaluators))):
            text = f"it says {row['verdict']!r}, its numbers give {due!r}"
            found.append(differs(f"verdict of {row['name']} {row['concept'] or row['role']}", text, "readings"))
    given = {r.name for r in computed} | set(kind.attempts)
    makers = {name: probe for probe in kind.readers() for name in probe.makes}
    for name in dict.fromkeys(r["name"] for r in data["readings"] if r["name"] not in given):
        lacks = [n for n in makers[name].needs if not kept.holds(n)] if name in makers else []
        if name not in makers:
            found.append(lacking(name, "no installed probe makes this reading", "readings"))
        elif lacks:
            found.append(lacking(name, f"it takes {_NEEDS.get(lacks[0], lacks[0])}", "readings"))
        else:
            found.append(differs(name, "what the receipt keeps does not give it", "readings"))
    return found


def _words(data: Mapping[str, Any], kind: type[Subject], kept: Evidence) -> list[Finding]:
    evaluators = evaluators_of(data)
    stated = [reading(row, evaluators) for row in data["readings"]]
    headline, summary = kind.words(stated, Request.from_plain(data["request"]), kept)
    due = headline, [*summary, *settings.sentences(data["base"], data["edited"])]
    if (data["headline"], data["summary"]) == due:
        return [same("summary", "from the readings", "headline", "summary")]
    return [differs("summary", "its sentences do not follow from the readings", "headline", "summary")]


def _page(data: Mapping[str, Any], path: Path) -> tuple[dict[str, bytes], list[Finding]]:
    """The page's pictures against what is stated, then the whole page against one made again from the JSON."""
    of = ("pictures", "shown", "size")
    if not path.is_file():
        return {}, [lacking("the page", f"there is no {path.name} beside the receipt", *of)]
    pictures: dict[str, bytes] = {}

    def check() -> list[Finding]:
        if path.stat().st_size > _PAGE:
            return [differs("the page", f"{path.name} has {path.stat().st_size:,} bytes, far more than a page", *of)]
        text = path.read_bytes().decode("utf-8")
        own, found = shown.check(data, text)
        if any(not f.ok for f in found):
            return found
        pictures.update(own)
        again = render(data, own)
        if again == text:
            return [*found, same("the page", "made again from receipt.json, letter by letter", *of)]
        return [*found, _first_difference(data, text, again)]

    return pictures, guarded("the page", check, *of)


def _first_difference(data: Mapping[str, Any], text: str, again: str) -> Finding:
    if data["versions"].get("palimpsest") != versions()["palimpsest"]:
        told = f"written by palimpsest {data['versions'].get('palimpsest')}, whose page may look different"
        return lacking("text of the page", told, "shown")
    pairs = zip(text.split("\n"), again.split("\n"), strict=False)
    line, (mine, due) = next(
        ((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1]), (0, ("its length", "another length"))
    )
    told = f"line {line} is {brief(mine.strip())}, receipt.json gives {brief(due.strip())}"
    return differs("text of the page", told, "shown")


def _unasked(data: Mapping[str, Any]) -> list[Finding]:
    """What only measuring again would check."""
    rows = sum(map(len, data["measures"].values()))
    pictures = sum(map(len, data["pictures"].values()))
    drawn = f" and {pictures} pictures" if pictures else ""
    text = "that the models give them: --remeasure sample, or all"
    of = ("measures", "pictures", "plan")
    return [Finding(status="not asked", what=f"{rows} numbers and reads{drawn}", detail=text, of=of)]


def _vouched(data: Mapping[str, Any]) -> list[Finding]:
    return [
        Finding(status="vouched", what="run", detail="when it was made, and what edit and audit cost", of=("run",)),
        Finding(status="vouched", what="versions", detail="of what was installed", of=("versions",)),
    ]
