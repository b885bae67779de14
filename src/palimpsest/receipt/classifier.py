"""The receipt of a classifier: the same file and the same page as of a generator, with other evidence inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Request
from palimpsest.core.files import write_text
from palimpsest.core.method import versions
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.data.forget import ForgetRequest, record, split
from palimpsest.data.read import Dataset
from palimpsest.probes.classifier_evidence import ClassifierEvidence, collect_classifier, parts_of
from palimpsest.probes.classifier_readings import classifier_readings
from palimpsest.probes.weights import weights_of
from palimpsest.receipt import charts, classifier_words
from palimpsest.receipt.build import finite, method_plain, model_plain, patch_plain, plain, sealed
from palimpsest.receipt.downloads import files, link
from palimpsest.receipt.make import PATCH_FILE
from palimpsest.receipt.page import fill
from palimpsest.receipt.schema import SCHEMA
from palimpsest.receipt.view import cost_rows, matrices, method_of, number, prints_of, table
from palimpsest.receipt.write import HTML_FILE, JSON_FILE

SUBJECT = "classifier"
_TABLES = (
    ("Accuracy", ("accuracy",), "Share of samples that get their label. The noise floor is the largest difference "
     "between two retrained models."),
    ("Against retrained models",
     ("gap to retrained models", "agreement with retrained models", "divergence of margins"),
     "The gold standard of forgetting: the same recipe, trained without the forgotten samples."),
    ("Membership", ("membership",), "Area under the curve of attacks that tell forgotten samples from held-out ones of "
     "their kind: 0.5 is a coin, 1 is certain."),
    ("Traces", ("trace in features", "relearn time", "overdone forgetting"), "What is left inside, how fast it comes "
     "back, and whether the forgetting itself shows."),
    ("Classes", ("accuracy of a class",), "Held-out samples of each class."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassifierReceipt:
    """A finished audit of a classifier.

    Args:
        data: the content of receipt.json. readings: what was measured. evidence: what is behind it.
        json, html: where it was written; None where it was not.
    """

    data: dict[str, Any]
    readings: tuple[Reading, ...]
    evidence: ClassifierEvidence
    json: Path | None = None
    html: Path | None = None

    def summary(self) -> str:
        """The receipt's sentences, one a line."""
        return "\n".join(s["text"] for s in self.data["summary"])


def classifier_receipt(
    evidence: ClassifierEvidence,
    request: Request,
    record: Mapping[str, Any],
    *,
    base: Any,
    edited: Any,
    out: str | Path | None = None,
    command: str = "",
) -> ClassifierReceipt:
    """Computes the readings and writes receipt.json, receipt.html and, where `edited` is a patch, patch.safetensors.

    Args:
        record: of the forget request, with its hashes (`palimpsest.data.forget.record`).
        base, edited: the untouched host, and the patch or the edited host.
    """
    readings = classifier_readings(evidence)
    readings += [] if evidence.patch is None else weights_of(evidence.patch, evidence.base)
    patch = isinstance(edited, Patch)
    targets = [c.name for c in request.target]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "subject": SUBJECT,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "headline": classifier_words.headline(readings, targets),
        "summary": classifier_words.sentences(readings, targets),
        "request": request.plain(),
        "forget": dict(record),
        "base": model_plain(base),
        "edited": patch_plain(edited, PATCH_FILE if out is not None else "")
        if patch
        else {"kind": "model", **model_plain(edited)},
        "method": method_plain(evidence.patch),
        "plan": {"classes": list(evidence.classes), "gone": list(evidence.gone)},
        "evaluators": {},
        "reads": {},
        "measures": {k: v.tolist() for k, v in evidence.measures.items()},
        "readings": [plain(r) for r in readings],
        "cost": dict(evidence.cost),
        "versions": versions(),
        "shown": [],
    }
    data = sealed(json.loads(json.dumps(finite(data))))
    if out is None:
        return ClassifierReceipt(data=data, readings=tuple(readings), evidence=evidence)
    folder = Path(out)
    if isinstance(edited, Patch):
        edited.save(folder / PATCH_FILE)
    page = write_text(folder / HTML_FILE, render_classifier(data))
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = write_text(folder / JSON_FILE, text)
    return ClassifierReceipt(data=data, readings=tuple(readings), evidence=evidence, json=path, html=page)


def render_classifier(data: Mapping[str, Any]) -> str:
    """The page as HTML text: a pure function of receipt.json; one file, no script, no network."""
    readings = data["readings"]
    weights = next((r for r in readings if r["name"] == "relative weight change"), None)
    confusion = [{**r, "name": "leakage", "evaluator": "the labels"} for r in readings if r["name"] == "confusion"]
    values = {
        "saved": [(name, link(name, text)) for name, text in files(data).items()],
        "data": data,
        "title": data["headline"],
        "figures": _figures(readings),
        "tables": [t for t in (table(readings, *entry) for entry in _TABLES) if t["rows"]],
        "matrices": matrices(confusion),
        "curves": [
            {"title": f"{r['name']} {r['concept']}".strip(), "svg": charts.curves(r["detail"]["curve"], r["name"])}
            for r in readings
            if "curve" in r["detail"]
        ],
        "tensors": weights["detail"]["tensors"] if weights else [],
        "method": method_of(data["method"]),
        "cost": cost_rows(data),
        "prints": [*prints_of(data), *_forget_prints(data["forget"])],
    }
    return fill("classifier.html.j2", values)


def _figures(readings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Accuracies at the top, before and after."""
    return [
        {
            "name": f"{r['concept']}, right",
            "before": number(r["before"], "points"),
            "after": number(r["value"], "%"),
            "interval": f"{r['low']:.0f}–{r['high']:.0f}",
            "n": str(r["n"]),
            "mood": "wanted" if r["role"] == "target" else "",
        }
        for r in readings
        if r["name"] == "accuracy"
    ]


def _forget_prints(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        ("forget request", str(record["kind"]), str(record["request"])),
        ("forgotten samples", f"{record['samples']} of {record['of']}", str(record["content"])),
    ]


def audit_classifier(
    before: Any,
    after: Any,
    data: Dataset,
    asked: ForgetRequest,
    *,
    test: Dataset | None = None,
    retrained: Sequence[Any] = (),
    out: str | Path | None = None,
    command: str = "",
    trace: Trace | None = None,
) -> ClassifierReceipt:
    """Measures what a classifier forgot and what it kept, whoever changed it, and writes the receipt.

    Args:
        before: the untouched classifier. after: a Patch for it, or the changed classifier.
        data: what it learned from, with the model's classes. asked: what was to be forgotten.
        test: held-out samples; without them there is no membership, no confusion and no trace.
        retrained: classifiers that never saw what is forgotten; without them there is no gap.
        out: folder for receipt.json, receipt.html and, where `after` is a patch, patch.safetensors.

    Cost: one forward of up to 4,000 samples for each model, and relearning; seconds for small models.
    """
    held = None if test is None else test.samples
    named = asked.items if asked.kind == "identity" else ()
    parts = parts_of(split(data, asked), held, len(before.labels), identities=named)
    evidence = collect_classifier(before, after, parts, retrained=retrained, trace=trace)
    mark = record(data, asked)
    return classifier_receipt(evidence, asked.concepts(), mark, base=before, edited=after, out=out, command=command)
