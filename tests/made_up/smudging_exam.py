"""The exam of smudging: how far the answers of a small classifier move."""

import torch

from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.exam import record
from palimpsest.exam.case import Exam
from palimpsest.exam.judged import Judged
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.tiny.resnet import resnet

COLUMNS = {"moved": lambda of: f"{of:.2f}"}


def examine(system, case, seed):
    torch.manual_seed(seed)
    host = ClassifierHost(resnet(classes=4, width=8), name="drawn", labels=tuple("abcd"), head="head")
    pictures = torch.rand(64, 3, 16, 16)
    before = host.logits(pictures)
    patch = catalog.load(system)()(host, Request(target=(Concept(name="everything"),)), seed=seed)
    with patch.applied(host):
        return {"moved": float((host.logits(pictures) - before).abs().mean())}


EXAM = Exam(name="smudge", verb="smudge", cases=({},), examine=examine, seeds=(0,), part="cases")


def summaries(results):
    return {s: {"": records[0]["moved"]} for s, records in record.complete(results, EXAM).items() if records}


def judge(system, main, studied):
    moved = main[system][""]
    return Judged(measured="answers move", found=f"{moved:.2f}", verdict="holds" if moved else "does not hold here")


def head():
    return "# Smudge\n"


def sections(main, results):
    return []
