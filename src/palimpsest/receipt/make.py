"""One call from two models to a finished receipt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Request
from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.probes import plan as planning
from palimpsest.probes.attempt import Budget
from palimpsest.probes.evaluators import Judge, judges_for
from palimpsest.probes.evidence import Evidence, collect
from palimpsest.probes.gallery import FOLDER, Gallery, key
from palimpsest.probes.plan import Plan
from palimpsest.probes.resurfacing import resurfacing as bring_back
from palimpsest.probes.stopping import collect_until_clear
from palimpsest.probes.suite import readings as read
from palimpsest.receipt.build import build
from palimpsest.receipt.write import thumbnails, write
from palimpsest.worlds.concepts import world_of

PATCH_FILE = "patch.safetensors"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A finished audit.

    Args:
        data: the content of receipt.json.
        readings: what was measured.
        evidence: pictures and reads behind it.
        json, html: where it was written; None where it was not.
    """

    data: dict[str, Any]
    readings: tuple[Reading, ...]
    evidence: Evidence
    json: Path | None = None
    html: Path | None = None

    def summary(self) -> str:
        """The receipt's sentences, one a line."""
        return "\n".join(s["text"] for s in self.data["summary"])

    def presence(self, concept: str) -> Reading | None:
        """The first judge's reading of how often a concept is there; None where no judge knows it."""
        return next((r for r in self.readings if r.name == "presence" and r.concept == concept), None)


def audit(
    before: Any,
    after: Any,
    request: Request,
    *,
    plan: Plan | None = None,
    judges: Sequence[Judge] | None = None,
    oracle: Any = None,
    out: str | Path | None = None,
    command: str = "",
    resume: bool = False,
    stop_early: bool = False,
    resurfacing: Budget | None = None,
    trace: Trace | None = None,
) -> Receipt:
    """Measures what an edit changed and writes the receipt.

    Args:
        before: the untouched model (a Denoiser host).
        after: a Patch for it, or the edited model.
        request: what the edit was asked to do.
        plan: which pictures to draw; by default `probes.plan.plan(before, request)`.
        judges: who reads the pictures; by default the oracle of the drawn world that the model knows, else none.
        oracle: a model that never saw the target, to compare with.
        out: folder for receipt.json, receipt.html and, where `after` is a patch, patch.safetensors.
        command: what the user typed, for the receipt.
        resume: take the pictures that an interrupted audit left in `out`.
        stop_early: look four times, and stop drawing as soon as every answer is clear.
        resurfacing: also try to bring the targets back, at this budget; its readings are added.
        trace: takes cost and progress.

    Cost: the plan's pictures, see `Plan.describe`; reading and writing take seconds.
    """
    chosen = default_plan(before, request) if plan is None else plan
    used = judges_for(before) if judges is None else list(judges)
    of = key(before, after, chosen, oracle)
    gallery = None if out is None else Gallery(Path(out) / FOLDER, of, resume=resume)
    draw = collect_until_clear if stop_early else collect
    evidence = draw(before, after, chosen, used, oracle=oracle, gallery=gallery, trace=trace)
    found = tuple(read(evidence))
    if resurfacing is not None:
        found += tuple(bring_back(before, after, request, resurfacing, judges=used, oracle=oracle, trace=trace))
    data = build(
        evidence,
        found,
        base=before,
        edited=after,
        sources={j.evaluator.name: j.source for j in used},
        command=command,
        patch_file=PATCH_FILE if isinstance(after, Patch) and out is not None else "",
        resurfacing=None if resurfacing is None else asdict(resurfacing),
    )
    data, pictures = thumbnails(data, evidence)
    if out is None:
        return Receipt(data=data, readings=found, evidence=evidence)
    folder = Path(out)
    if isinstance(after, Patch):
        after.save(folder / PATCH_FILE)
    json_path, html_path = write(folder, data, pictures)
    if gallery is not None:
        gallery.clear()
    return Receipt(data=data, readings=found, evidence=evidence, json=json_path, html=html_path)


def default_plan(host: Any, request: Request) -> Plan:
    """The default plan: the world that the model knows, 20 prompts and 3 seeds a target."""
    return planning.plan(host, request, world=world_of(getattr(host, "folder", None)))
