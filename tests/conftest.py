"""Which tests are slow is measured, not guessed: `make slow` runs all and writes their names to slow.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

LISTED = Path(__file__).with_name("slow.txt")
SECONDS = 5.0  # of one test's setup, call and teardown


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--note-slow", action="store_true", help=f"write the tests of {SECONDS:g} s or more to slow.txt")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--note-slow") and not hasattr(config, "workerinput"):  # with xdist, where reports meet
        config.pluginmanager.register(Stopwatch())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    listed = set(LISTED.read_text(encoding="utf-8").splitlines()) if LISTED.is_file() else set()
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


class Stopwatch:
    """Adds up what every test takes and writes the slow ones when all are done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        slow = sorted(name for name, seconds in self.seconds.items() if seconds >= SECONDS)
        LISTED.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")
