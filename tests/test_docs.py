"""Every code block of the README and the docs runs, in order, in one folder for each document."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from palimpsest import tiny
from palimpsest.cli import main
from palimpsest.core.sampling import Sampling
from palimpsest.train import training

ROOT = Path(__file__).resolve().parent.parent
PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if "```python" in p.read_text()]
QUICK = ["--prompts", "2", "--seeds", "1", "--sample-steps", "3"]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of every fenced block that is a command or Python."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures in three steps and trainings of two: an example must run; what comes of it is for other tests."""
    over, minimise = Sampling.over, training.minimise
    monkeypatch.setattr(Sampling, "over", lambda how, defaults: over(how, replace(defaults, steps=3)))
    monkeypatch.setattr(training, "minimise", lambda *args, **more: minimise(*args, **{**more, "steps": 2}))


@pytest.mark.skipif("sd" not in tiny.names(), reason="the tiny models are not installed")
@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    assert found
    module = ModuleType("example")  # later blocks of a page use what earlier ones define
    monkeypatch.setitem(sys.modules, "example", module)
    for language, code in found:
        if language == "python":
            exec(compile(code, str(page), "exec", dont_inherit=True), module.__dict__)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] == "palimpsest", f"{page.name}: {line}"
                read = words[1] == "audit" and Path(words[words.index("--before") + 1]).is_dir()  # nothing is drawn
                look = QUICK if words[1] in ("erase", "insert", "merge", "audit") and not read else []
                assert main([*words[1:], *look]) == 0, f"{page.name}: {line}"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_page_of_support_is_made_of_the_table_that_tests_assert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    page = import_module("support_page").page()
    assert (ROOT / "docs" / "support.md").read_text(encoding="utf-8") == page, "run scripts/support_page.py"
