"""Receipts about a classifier: what did it forget of what it learned, what did it keep, and what betrays it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from palimpsest.core import declared
from palimpsest.core.concept import Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Classifier as ClassifierHost
from palimpsest.core.reading import Reading
from palimpsest.core.trace import Trace
from palimpsest.data.dataset import Dataset, aligned
from palimpsest.data.forget import ForgetRequest, record, resolved, split
from palimpsest.ops import statistics
from palimpsest.probes.accuracy import Accuracy, ClassAccuracy
from palimpsest.probes.answered import FORGET, RETAIN, TEST, Answered, Asked, Parts, collect, parts_of
from palimpsest.probes.confusion import Confusion
from palimpsest.probes.evidence import Probe, unkept
from palimpsest.probes.membership import Membership
from palimpsest.probes.overdone import Overdone
from palimpsest.probes.retrained import GAP, Agreement, Divergence, Gap
from palimpsest.probes.sampled import present
from palimpsest.probes.traces import FeatureTrace, RelearnTime
from palimpsest.probes.weights import Weights
from palimpsest.receipt import classifier_words
from palimpsest.receipt.finding import Finding, differs, lacking, same
from palimpsest.receipt.subject import Again, Rates, Section, Subject

RECORD_FILE = "forget.json"
MARK = ("kind", "items", "samples", "of", "request", "content")  # of a deletion record: which samples it means
NEEDS = "the samples are needed: give --data, what the model learned from"


@dataclass(frozen=True, kw_only=True)
class Classifier(Subject):
    """A model that names the class of a picture.

    Args:
        data: what it learned from. asked: what was to be forgotten of it.
        test: held-out samples; without them there is no membership, no confusion and no trace.
        retrained: classifiers that never saw what is forgotten; without them there is no gap.
    """

    data: Dataset | None = None
    asked: ForgetRequest | None = None
    test: Dataset | None = None
    retrained: Sequence[Any] = ()

    name: ClassVar[str] = "classifier"
    counted: ClassVar[str] = "samples"
    probes: ClassVar[tuple[Probe, ...]] = (
        Accuracy(), Gap(), Membership(), Agreement(), Divergence(), FeatureTrace(), RelearnTime(), Overdone(),
        ClassAccuracy(), Confusion(), Weights(),
    )  # fmt: skip
    sections: ClassVar[tuple[Section, ...]] = (
        Section(title="right", form="figures"),
        Section(
            title="Accuracy",
            readings=("accuracy",),
            note="Share of samples that get their label. The noise floor is the largest difference between two "
            "retrained models.",
        ),
        Section(
            title="Against retrained models",
            readings=(GAP, *Agreement.makes, *Divergence.makes),
            note="The gold standard of forgetting: the same recipe, trained without the forgotten samples.",
        ),
        Section(
            title="Membership",
            readings=("membership",),
            note="Area under the curve of attacks that tell forgotten samples from held-out ones of their kind: 0.5 is "
            "a coin, 1 is certain.",
        ),
        Section(
            title="Traces",
            readings=("trace in features", "relearn time", "overdone forgetting"),
            note="What is left inside, how fast it comes back, and whether the forgetting itself shows.",
        ),
        Section(title="Classes", readings=("accuracy of a class",), note="Held-out samples of each class."),
        Section(
            title="Confusion",
            readings=("confusion",),
            form="matrix",
            note="Each row holds the held-out samples of one class; each column says how many points more or fewer of "
            "them now get another class. Framed: the class that is right.",
        ),
        Section(title="Curves", form="curves"),
    )
    terms: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            "Retrained models",
            "Trained by the same recipe without the forgotten samples. What they answer is what forgetting should look "
            "like; forgetting more than they do is a failure too.",
        ),
        ("Noise floor", "The largest difference between two retrained models of different seeds."),
        (
            "Interval",
            "95 %: Wilson's for accuracies, Tango's score interval for their change, BCa bootstrap over samples for "
            "means, Newcombe's for areas.",
        ),
        (
            "p",
            "McNemar's exact test that as many samples became right as wrong; corrected over the classes (Benjamini "
            "and Hochberg).",
        ),
        (
            "Membership",
            "Confidence: the label's probability. Modified entropy: an entropy that knows the label. Likelihood ratio: "
            "confidence less what retrained models have on the same sample. Held-out samples are those of the "
            "forgotten classes or people.",
        ),
        (
            "Divergence of margins",
            "Kullback and Leibler's, between the log-odds of the label here and those of retrained models.",
        ),
        (
            "Relearn time",
            "Steps of fine-tuning on forgotten samples until 95 % of the untouched model's accuracy on them is back.",
        ),
    )
    compared: ClassVar[Mapping[str, str]] = {
        "before": "forgotten samples right before",
        "target": "forgotten samples still right",
        "neighbours": "retained, points",
        "unrelated": "held-out, points",
        "n": "samples",
        "y": "forgotten samples that it still gets right",
        "said": "forgotten samples right",
        "x": "points lost on retained or held-out samples, whichever is more",
    }

    def collect(
        self, before: Any, after: Any, request: Request, *, folder: Path | None, resume: bool, trace: Trace
    ) -> Answered:
        """Cost: one forward of up to 4,000 samples for each model, and relearning; seconds for small models."""
        if not isinstance(before, ClassifierHost):
            raise BadRequest(f"{getattr(before, 'name', 'The model')} is no classifier; audit it as a generator.")
        if self.data is None or self.asked is None:
            raise BadRequest("A classifier is audited with what it learned from (data) and what to forget (asked).")
        known = aligned(self.data, before.labels, before.name)
        looked = self._looked(before, known, self.asked, FORGET, RETAIN, TEST)
        mark = record(known, self.asked)
        return collect(before, after, looked, retrained=self.retrained, forget=mark, trace=trace)

    def _looked(self, host: Any, known: Dataset, asked: ForgetRequest, forget: int, retain: int, tests: int) -> Parts:
        return parts_of(
            split(known, asked),
            None if self.test is None else aligned(self.test, host.labels, host.name).samples,
            len(host.labels),
            identities=resolved(known, asked).items if asked.kind == "identity" else (),
            forget=forget,
            retain=retain,
            tests=tests,
        )

    @classmethod
    def kept(cls, data: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Answered:
        asked = declared.fitted(data["plan"], Asked, "the plan")
        return Answered(plan=asked, measures=unkept(data["measures"], {}), cost=data["run"]["audit"])

    def again(self, kept: Answered, before: Any, after: Any, how: str, trace: Trace) -> Again | list[Finding]:
        """Cost: as the audit; with "sample" without relearning."""
        asked = self.asked or _request(kept.plan.forget)
        if self.data is None:
            return [lacking("answers", NEEDS, "measures", "plan")]
        if asked is None:
            why = "the receipt does not keep the names of single samples: give --forget samples:list.csv"
            return [lacking("answers", why, "measures", "plan")]
        known = aligned(self.data, before.labels, before.name)
        mark, stated = record(known, asked), kept.plan.forget
        wrong = [f"{k} is {mark[k]}, the receipt says {stated.get(k)}" for k in MARK if mark[k] != stated.get(k)]
        if wrong:
            return [differs("samples to forget", wrong[0], "plan")]
        rows = {k: len(kept(k, "label")) if kept.has(k, "label") else 0 for k in ("forget", "retain", "test")}
        if bool(rows["test"]) != (self.test is not None):
            why = (
                "give --test, the held-out samples"
                if rows["test"]
                else "it was made without held-out samples: no --test"
            )
            return [lacking("answers", why, "measures")]
        looked = self._looked(before, known, asked, rows["forget"], rows["retain"], rows["test"])
        evidence = collect(
            before, after, looked, retrained=self.retrained, relearn=how == "all", forget=mark, trace=trace
        )
        left = sorted({key.partition("/")[2] for key in kept.measures if key not in evidence.measures})
        why = f"{', '.join(left[:4])}: other models than the two, or relearning, which --remeasure all repeats"
        told = same("samples to forget", f"{mark['samples']} of {mark['of']}, {mark['content'][:12]}", "plan")
        return Again(evidence=evidence, left=why if left else "", found=(told,))

    @classmethod
    def words(
        cls, readings: Sequence[Reading], request: Request, evidence: Answered
    ) -> tuple[str, list[dict[str, str]]]:
        names = [c.name for c in request.target]
        return classifier_words.headline(readings, names), classifier_words.sentences(readings, names)

    @classmethod
    def figures(cls, readings: Sequence[Reading]) -> list[tuple[str, Reading]]:
        return [(f"{r.concept},", r) for r in readings if r.name == "accuracy"]

    @classmethod
    def facts(cls, evidence: Answered) -> list[tuple[str, str]]:
        asked = evidence.plan.forget
        return [("Forgotten", f"{asked['samples']} of {asked['of']} training samples, by {asked['kind']}")]

    @classmethod
    def prints(cls, evidence: Answered) -> list[tuple[str, str, str]]:
        asked = evidence.plan.forget
        return [
            ("forget request", str(asked["kind"]), str(asked["request"])),
            ("forgotten samples", f"{asked['samples']} of {asked['of']}", str(asked["content"])),
        ]

    @classmethod
    def rates(cls, evidence: Answered) -> Rates:
        n = len(evidence("forget", "label"))
        before, after = (statistics.wilson(int(evidence.hits("forget", m).sum()), n) for m in ("before", "after"))
        moved = {}
        for which in present(evidence):
            was, now = (evidence.hits(which, m)[evidence.known(which)].numpy() for m in ("before", "after"))
            moved[which] = statistics.paired(was, now)
        retain, test = moved.get("retain"), moved.get("test")
        return Rates(target=after, before=before, neighbours=retain, unrelated=test, n=n)

    @classmethod
    def checks(cls, data: Mapping[str, Any], evidence: Answered, folder: Path) -> list[Finding]:
        """The deletion record beside the receipt, where there is one, must speak of the same request and samples."""
        path = folder / RECORD_FILE
        if not path.is_file():
            return []
        held: dict[str, Any] = declared.read(path, dict, "a deletion record")
        wrong = [k for k in MARK if held.get(k) != evidence.plan.forget.get(k)]
        if wrong:
            text = f"{', '.join(wrong)} differ between {path.name} and the receipt"
            return [differs("deletion record", text, "plan")]
        return [same("deletion record", f"{path.name} means {str(held['content'])[:12]} too", "plan")]


def _request(kept: Mapping[str, Any]) -> ForgetRequest | None:
    """The request that a receipt states; None where it lists single samples, whose names no receipt keeps."""
    if kept.get("kind") == "samples":
        return None
    return ForgetRequest(kind=kept["kind"], items=tuple(kept["items"]))
