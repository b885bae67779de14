"""Checks a classifier's receipt: hashes, the seal, every number that follows from the kept answers, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.probes.classifier_evidence import ClassifierEvidence
from palimpsest.probes.classifier_readings import classifier_readings
from palimpsest.probes.evidence import norms
from palimpsest.probes.weights import weights_of
from palimpsest.receipt import classifier_words, reask
from palimpsest.receipt.build import plain, reading
from palimpsest.receipt.classifier import render_classifier
from palimpsest.receipt.reask import Asked
from palimpsest.receipt.sign import SUFFIX
from palimpsest.receipt.verify import (
    Finding,
    check_models,
    check_seal,
    check_signature,
    compare,
    first_difference,
    guarded,
)
from palimpsest.receipt.write import HTML_FILE

RECORD_FILE = "forget.json"


def verify_classifier(
    path: Path,
    data: Mapping[str, Any],
    *,
    before: Any = None,
    after: Any = None,
    public_key: str | Path | None = None,
    remeasure: str = "none",
    asked: Asked | None = None,
) -> list[Finding]:
    """All findings about a classifier's receipt.

    Args:
        path: of receipt.json. data: its content. before, after: the models, where their names do not load them.
        public_key: of who is said to have signed it. remeasure, asked: as `reask.again`.
    """
    found = [check_seal(data)]
    if public_key is not None:
        found.append(check_signature(path, Path(public_key)))
    elif path.with_name(path.name + SUFFIX).is_file():
        found.append(Finding(status="not checked", what="signature", detail="give the public key of who signed"))
    found += guarded("readings", lambda: _readings(data))
    found += guarded("the page", lambda: _page(data, path.with_name(HTML_FILE)))
    found += guarded("deletion record", lambda: _record(data, path.with_name(RECORD_FILE)))
    patch, host, edited, told = check_models(data, path.parent, before, after)
    found += told
    if isinstance(patch, Patch) and host is not None:
        known: Patch = patch
        found += guarded(
            "changed weights",
            lambda: compare(data["readings"], weights_of(known, norms(host, known)), "the patch and the model"),
        )
    if remeasure == "none":
        return found
    if host is None or edited is None or asked is None:
        why = reask.NEEDS if asked is None else "a model is missing"
        return [*found, Finding(status="not checked", what="answers", detail=why)]
    return found + guarded("answers", lambda: [Finding(**f) for f in reask.again(data, host, edited, asked, remeasure)])


def kept_evidence(data: Mapping[str, Any]) -> ClassifierEvidence:
    """What a receipt keeps of its evidence: enough for every reading but those of weights."""
    return ClassifierEvidence(
        measures={k: torch.tensor(v, dtype=torch.float64) for k, v in data["measures"].items()},
        classes=tuple(data["plan"]["classes"]),
        gone=tuple(data["plan"]["gone"]),
        cost=data["cost"],
    )


def _readings(data: Mapping[str, Any]) -> list[Finding]:
    computed = classifier_readings(kept_evidence(data))
    found = compare(data["readings"], computed, "the kept answers")
    stated: list[Reading] = [reading(r, {}) for r in data["readings"]]
    for row, r in zip(data["readings"], stated, strict=True):
        if row["verdict"] != (expected := plain(r)["verdict"]):
            text = f"it says {row['verdict']!r}, its numbers give {expected!r}"
            found.append(Finding(status="differs", what=f"verdict of {row['name']} {row['concept']}", detail=text))
    targets = [c["name"] for c in data["request"]["target"]]
    expected_words = (classifier_words.headline(stated, targets), classifier_words.sentences(stated, targets))
    if (data["headline"], data["summary"]) == expected_words:
        return [*found, Finding(status="same", what="summary")]
    return [*found, Finding(status="differs", what="summary", detail="its sentences do not follow from the readings")]


def _page(data: Mapping[str, Any], path: Path) -> list[Finding]:
    if not path.is_file():
        return [Finding(status="not checked", what="the page", detail=f"there is no {path.name} beside the receipt")]
    text, again = path.read_text(encoding="utf-8"), render_classifier(data)
    if again == text:
        return [Finding(status="same", what="the page", detail="made again from receipt.json, letter by letter")]
    return [first_difference(data, text, again)]


def _record(data: Mapping[str, Any], path: Path) -> list[Finding]:
    """The deletion record beside the receipt, where there is one, must speak of the same request and samples."""
    if not path.is_file():
        return [Finding(status="not checked", what="deletion record", detail=f"there is no {path.name}")]
    held = json.loads(path.read_text(encoding="utf-8"))
    wrong = [k for k in ("request", "content", "samples", "of", "kind") if held.get(k) != data["forget"][k]]
    if wrong:
        text = f"{', '.join(wrong)} differ between {path.name} and the receipt"
        return [Finding(status="differs", what="deletion record", detail=text)]
    return [Finding(status="same", what="deletion record", detail=str(held["content"])[:12])]
