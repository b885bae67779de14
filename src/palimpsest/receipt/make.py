"""One call from two models to a finished receipt."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from palimpsest.core.concept import Request
from palimpsest.core.files import write_beside, write_text
from palimpsest.core.patch import Patch
from palimpsest.core.printable import printable
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.probes.evidence import Evidence
from palimpsest.probes.gallery import FOLDER
from palimpsest.receipt.document import VECTORS_FILE, build
from palimpsest.receipt.pictures import thumbnails
from palimpsest.receipt.subject import Subject
from palimpsest.receipt.view import render

JSON_FILE, HTML_FILE, PATCH_FILE = "receipt.json", "receipt.html", "patch.safetensors"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A finished audit.

    Args:
        data: the content of receipt.json.
        readings: what was measured.
        evidence: what is behind it.
        json, html: where it was written; None where it was not.
    """

    data: dict[str, Any]
    readings: tuple[Reading, ...]
    evidence: Evidence
    json: Path | None = None
    html: Path | None = None

    def summary(self) -> str:
        """The receipt's sentences, one a line."""
        return "\n".join(printable(s["text"]) for s in self.data["summary"])

    def presence(self, concept: str) -> Reading | None:
        """The first judge's reading of how often a concept is there; None where no judge knows it."""
        return next((r for r in self.readings if r.name == "presence" and r.concept == concept), None)


def audit(
    before: Any,
    after: Any,
    request: Request,
    *,
    subject: Subject | None = None,
    out: str | Path | None = None,
    command: str = "",
    resume: bool = False,
    trace: Trace | None = None,
) -> Receipt:
    """Measures what an edit changed, whoever made it, and writes the receipt.

    Args:
        before: the untouched model. after: a Patch for it, or the edited model.
        request: what the edit was asked to do.
        subject: what kind of model it is, with what measuring takes: `Generator(plan=..., judges=..., oracle=...)` or
            `Classifier(data=..., asked=..., test=..., retrained=...)`; by default a Generator with its default plan.
        out: folder for receipt.json, receipt.html, evidence.safetensors (features, where judges have any) and, where
            `after` is a patch, patch.safetensors.
        command: what the user typed, for the receipt.
        resume: take the pictures that an interrupted audit left in `out`.
        trace: takes cost and progress.

    Cost: that of the subject's `collect`; reading and writing take seconds.
    """
    about, trace = (subject or _default()).settled(before, request), trace or Trace()
    folder = None if out is None else Path(out)
    kept = None if folder is None else folder / FOLDER
    evidence = about.collect(before, after, request, folder=kept, resume=resume, trace=trace)
    readings = (*about.readings(evidence), *about.beyond(before, after, request, trace))
    data = build(
        about,
        evidence,
        readings,
        request,
        base=before,
        edited=after,
        sources=about.sources(before),
        command=command,
        patch_file=PATCH_FILE if isinstance(after, Patch) and folder is not None else "",
    )
    data, pictures = thumbnails(data, evidence, about.pairs(evidence))
    if folder is None:
        return Receipt(data=data, readings=readings, evidence=evidence)
    if isinstance(after, Patch):
        after.save(folder / PATCH_FILE)
    vectors = {k: v.contiguous() for k, v in evidence.vectors().items()}
    if vectors:
        write_beside(folder / VECTORS_FILE, lambda tmp: save_file(vectors, str(tmp)))
    html = write_text(folder / HTML_FILE, render(data, pictures))
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = write_text(folder / JSON_FILE, text)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # the audit is finished
    return Receipt(data=data, readings=readings, evidence=evidence, json=path, html=html)


def _default() -> Subject:
    from palimpsest.receipt.subjects.generator import Generator

    return Generator()
