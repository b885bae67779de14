"""Several processes draw an audit: to the bit what one draws, whoever is killed or interrupted meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts_fixtures import folder_of
from palimpsest import machine
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Trace
from palimpsest.hosts.load import load
from palimpsest.probes import crew as crews
from palimpsest.probes.crew import Crew, Loadable, crew_for
from palimpsest.probes.drawn import Drawn, collect
from palimpsest.probes.gallery import Gallery, key
from palimpsest.probes.groups import Group
from palimpsest.probes.plan import Plan
from palimpsest.processes import _Task

STAR = Concept(name="star")
PROMPTS = ("a star", "a red star", "two stars", "a star at night", "my star", "the star")
PLAN = Plan(
    request=Request(target=(STAR,)),
    groups=(Group(role="target", concept=STAR, prompts=PROMPTS, seeds=3),),
    steps=2,
    guidance=3.0,
)


def patch_for(host: Any) -> Patch:
    name = "unet.conv_in.weight"
    weight = dict(host.root.named_parameters())[name].detach()
    return Patch(base=host.fingerprint(), deltas={name: Dense(value=-2 * weight)})


@dataclass
class Watch:
    """Keeps this process slow until others have drawn, and tells what they drew.

    Args:
        crew: whose other processes are watched. kills: how often they are killed while they draw.
    """

    crew: Crew = field(default_factory=Crew)
    kills: int = 0
    others: list[Any] = field(default_factory=list)

    def told(self, what: str, done: int, total: int) -> None:
        if self.kills and self.crew.workers._busy:
            self.kills -= 1
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)
        time.sleep(0.1 * (not self.others))

    def add(self, trace: Trace, drawn: Any) -> None:
        self.others += [drawn] if drawn.forwards else []
        add_account(trace, drawn)


add_account = crews.add_account


def ready(crew: Crew) -> Crew:
    """The crew, once its other processes could be given work or take no part."""
    crew.start()
    task = _Task(work=print, items=[], waiting=deque())
    while crew.workers._left and not crew.workers._idle:
        crew.workers._turn(task, 1)
    return crew


def drawn(host: Any, after: Any, crew: Crew | None = None, *, watch: Watch | None = None, **more: Any) -> Drawn:
    trace = Trace(progress=watch.told if watch is not None else None)
    return collect(host, after, PLAN, batch=2, trace=trace, crew=crew, **more)


def assert_same(one: Drawn, other: Drawn) -> None:
    assert one.gallery.keys() == other.gallery.keys()
    for which, pictures in one.gallery.items():
        assert torch.equal(pictures, other.gallery[which]), which
    assert one.measures.keys() == other.measures.keys()
    assert all(torch.equal(one.measures[k], other.measures[k]) for k in one.measures)
    assert one.cost["forwards"] == other.cost["forwards"], "the account is of all processes"


@pytest.mark.parametrize("kills", [0, 1])
def test_two_processes_draw_what_one_draws(kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = load(folder_of("sd"))
    patch = patch_for(host)
    alone = drawn(host, patch)
    gallery = Gallery(tmp_path / "kept", key(host, patch, PLAN))
    with crew_for([host], workers=2) as crew:
        assert "2 processes" in crew.words
        watch = Watch(ready(crew), kills)
        monkeypatch.setattr(crews, "add_account", watch.add)
        both = drawn(host, patch, crew, watch=watch, gallery=gallery)
    assert watch.others or kills, "another process drew"
    assert watch.kills == 0
    assert_same(alone, both)
    again = Gallery(tmp_path / "kept", key(host, patch, PLAN), resume=True)
    assert len(again) == PLAN.pictures(), "every picture was kept as soon as it was there"


def test_an_interrupted_audit_of_several_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = load(folder_of("sd"))
    patch = patch_for(host)
    of = key(host, patch, PLAN)

    class Interrupted(Watch):
        def told(self, what: str, done: int, total: int) -> None:
            if self.others:
                raise KeyboardInterrupt
            super().told(what, done, total)

    with crew_for([host], workers=2) as crew:
        watch = Interrupted(ready(crew))
        monkeypatch.setattr(crews, "add_account", watch.add)
        with pytest.raises(KeyboardInterrupt):
            drawn(host, patch, crew, watch=watch, gallery=Gallery(tmp_path, of))
    assert not multiprocessing.active_children()
    kept = Gallery(tmp_path, of, resume=True)
    assert 2 <= len(kept) < PLAN.pictures(), "what others drew is kept as well"
    resumed, whole = drawn(host, patch, gallery=kept), drawn(host, patch)
    assert all(torch.equal(resumed.gallery[which], whole.gallery[which]) for which in whole.gallery)


def test_what_others_cannot_load_is_drawn_here(monkeypatch: pytest.MonkeyPatch) -> None:
    host, edited = load(folder_of("sd")), load(folder_of("sd"))
    patch_for(host).fuse(edited)
    assert Loadable.of(edited) is not None, "it does not know by itself that it was changed"
    assert Loadable.of(object()) is None
    alone = drawn(host, edited)
    del edited.origin
    assert Loadable.of(edited) is None
    with crew_for([host, edited], workers=2) as crew:
        watch = Watch(ready(crew))
        monkeypatch.setattr(crews, "add_account", watch.add)
        assert_same(alone, drawn(host, edited, crew, watch=watch))
    assert watch.others
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Loadable.of(host) is None, "others would draw in another precision"
    host.guide = lambda: lambda step: step.x
    assert Loadable.of(host) is None, "others would not be guided"


def test_a_model_that_changed_since_it_was_loaded_is_drawn_here() -> None:
    host, edited = load(folder_of("sd")), load(folder_of("sd"))
    patch_for(host).fuse(edited)
    alone = drawn(edited, host)
    with crew_for([edited], workers=2) as crew:
        with pytest.warns(UserWarning, match="is not the model of this audit"):
            ready(crew)
        assert_same(alone, drawn(edited, host, crew))
    with crew_for([host], workers=2) as crew:
        watch = Watch(ready(crew))
        assert_same(drawn(host, edited), drawn(host, edited, crew, watch=watch))


def test_how_many_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    host = load(folder_of("sd"))
    monkeypatch.setattr(crews, "cores", lambda: 4)
    monkeypatch.setattr(machine, "available", lambda device: 100 * 2**30)

    def chosen(**how: Any) -> tuple[int, str]:
        crew = crew_for([host], **how)
        return crew.count, crew.words

    assert chosen() == (4, "Drawn by 4 processes, one a core.")
    assert chosen(workers=0) == chosen()
    assert chosen(work=1e6) == (1, ""), "done before another has started"
    assert chosen(work=1e6, workers=0)[0] == 4
    assert chosen(workers=3, work=1e6) == (3, "Drawn by 3 processes.")
    monkeypatch.setattr(machine, "available", lambda device: int(1.5 * crews.PROCESS))
    assert chosen()[0] == 2
    assert "not one a core, as memory allows (700 MiB each, 1.0 GiB are free)" in chosen()[1]
    assert chosen(workers=3)[0] == 3
    assert "may not fit into memory" in chosen(workers=3)[1]
    monkeypatch.setattr(machine, "available", lambda device: 0)
    assert chosen()[0] == 1
    monkeypatch.setattr(machine, "available", lambda device: None)
    assert chosen()[0] == 4
    del host.origin
    assert chosen(workers=4) == (1, "Drawn by this process, since no other can load the model by itself.")
    with pytest.raises(BadRequest, match="workers is -1"):
        crew_for([host], workers=-1)


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    host = load(folder_of("sd"))
    host.origin = replace(host.origin, device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(machine, "available", lambda device: 0)
    crew = crew_for([host])
    assert (crew.count, crew.words) == (3, "Drawn by 3 processes, one a CUDA device.")
    assert crew.workers.gpu
    loaded: list[str] = []

    def noted(model: str, *, device: str, **how: Any) -> Any:
        loaded.append(device)
        return host

    monkeypatch.setattr(crews, "load", noted)
    model = Loadable.of(host)
    assert model is not None
    for number in (1, 2):
        crews.loaded.cache_clear()
        crews.prepare([model], number)
    crews.loaded.cache_clear()
    monkeypatch.setattr(crews, "_number", 0)
    assert loaded == ["cuda:1", "cuda:2"]
    host.origin = replace(host.origin, device="cuda:1")
    assert crew_for([host]).count == 1, "one device was named"


def test_totals_of_progress_are_of_all() -> None:
    host = load(folder_of("sd"))
    seen: dict[str, list[int]] = {}

    def told(what: str, done: int, total: int) -> None:
        seen.setdefault(what, []).append(done)
        assert done <= total

    collect(host, patch_for(host), PLAN, batch=4, trace=Trace(progress=told))
    ends: Mapping[str, int] = {what: done[-1] for what, done in seen.items()}
    assert ends["drawing: untouched model"] == ends["drawing: edited model"] == len(PLAN.shots)
    assert all(done == sorted(done) for done in seen.values())
