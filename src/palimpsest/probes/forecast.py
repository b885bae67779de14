"""What an audit will take and what it will be able to show, told before it runs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from palimpsest.core.sampling import Sampling
from palimpsest.ops import statistics
from palimpsest.probes.attempt import Budget
from palimpsest.probes.plan import Plan

WOBBLE = 0.02  # share of pictures that flip either way around a small change; planned for, not measured
CHANGE = 0.02  # the change that a thorough audit should see
_QUICK = 2.0  # seconds for one short picture below which a whole batch is timed


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a host draws: seconds a picture = fixed + steps x step, measured in batches of `batch`."""

    fixed: float
    step: float
    batch: int

    def seconds(self, pictures: int, steps: int) -> float:
        return pictures * (self.fixed + steps * self.step)


def needed(change: float, tests: int = 1) -> int:
    """Same-seed pictures of a concept with which a change of its rate is seen 9 times of 10.

    Args:
        change: of the rate, 0..1; `WOBBLE` of the pictures more flip, half of them each way.
        tests: concepts that are corrected for together.
    """
    return statistics.pictures_needed(change, disagree=min(1.0, change + WOBBLE), tests=tests)


def time_host(host: Any, plan: Plan, batch: int = 16) -> Speed:
    """Draws a few pictures of few steps and takes the time.

    Cost: one picture of 1 and 3 steps, and a batch of the same where one took less than 2 seconds.
    """
    prompt = plan.shots[0].prompt

    def timed(pictures: int, steps: int) -> float:
        start = time.perf_counter()
        host.sample(
            [prompt] * pictures,
            list(range(pictures)),
            Sampling(steps=steps, guidance=plan.guidance, size=plan.size),
            batch=batch,
        )
        return (time.perf_counter() - start) / pictures

    timed(1, 1)  # the first one also warms caches
    n = batch if timed(1, 3) < _QUICK else 1
    few, many = timed(n, 1), timed(n, 3)
    step = max(0.0, (many - few) / 2)
    return Speed(fixed=max(0.0, few - step), step=step, batch=n)


def minutes(plan: Plan, speed: Speed, *, oracle: bool = False) -> float:
    """Expected minutes of an audit's drawing; reading and writing add seconds."""
    return speed.seconds(plan.pictures(3 if oracle else 2), plan.steps or 50) / 60


def bringing_back(plan: Plan, speed: Speed, budget: Budget, *, oracle: bool = False) -> float:
    """Expected minutes of `probes.resurfacing`: its drawing, and its training at three forwards a row."""
    targets, steps = len(plan.request.target), budget.sample_steps or plan.steps or 50
    drawn = speed.seconds(budget.drawn(targets=targets, oracle=oracle), steps)
    # A step of sampling takes two forwards, one with the prompt and one without.
    return (drawn + 1.5 * speed.step * budget.trained(targets=targets, oracle=oracle)) / 60


def judging(plan: Plan, speed: Speed, forwards: int, rows: int, *, oracle: bool = False) -> str:
    """What reading the pictures takes where the untouched model itself judges, in plain words.

    Args:
        forwards: for each picture, at most. rows: forwards in a step of drawing.
    """
    about = plan.pictures(3 if oracle else 2) * forwards * speed.step / rows / 60
    text = f"Judging: the untouched model reads each picture itself, by at most {forwards} forwards of its denoiser"
    return f"{text}; {_minutes(about)} at most."


def lines(
    plan: Plan,
    speed: Speed | None = None,
    *,
    oracle: bool = False,
    change: float = CHANGE,
    resurfacing: Budget | None = None,
    at_once: int = 1,
) -> list[str]:
    """The plan in plain words: pictures, what they can show, what a small change would need, minutes.

    Args:
        at_once: processes that draw.
    """
    found = plan.describe().splitlines()
    prompts = {r: max((len(g.prompts) for g in plan.groups if g.role == r), default=0) for r in ("target", "neighbour")}
    tests = {r: sum(g.role == r for g in plan.groups) for r in prompts}
    for role, n in prompts.items():
        if n:
            one = needed(change, tests[role])
            whole = math.ceil(needed(change) / tests[role])
            text = f"To see a change of {100 * change:g} points in one {role}: {one} pictures of each"
            text += f" (say {n} prompts x {math.ceil(one / n)} seeds)"
            if tests[role] > 1:
                text += f"; in all {tests[role]} together: {whole} of each"
            found.append(text + ".")
    if speed is not None:
        steps = plan.steps or 50
        each, about = speed.seconds(1, steps), minutes(plan, speed, oracle=oracle) / at_once
        found.append(
            f"Expected: {_minutes(about)} of drawing, {1000 * each:.0f} ms a picture of {steps} steps (just measured)."
        )
    if resurfacing is not None:
        found.append(resurfacing.describe(targets=len(plan.request.target), oracle=oracle))
        if speed is not None:
            found.append(
                f"Expected besides: {_minutes(bringing_back(plan, speed, resurfacing, oracle=oracle))} for it."
            )
    return found


def _minutes(about: float) -> str:
    return "less than a minute" if about < 1 else f"{about:.0f} minute{'' if round(about) == 1 else 's'}"
