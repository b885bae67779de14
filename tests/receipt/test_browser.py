"""The receipt in headless Chromium: it loads nothing, runs nothing, fits every width, and can be used by keyboard."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_receipt_page import HOSTILE, hostile_receipt

from evidence_fixtures import Reader, Scribe, patch, receipt, request, small_plan
from palimpsest.core.change import diff
from palimpsest.core.delta import Dense
from palimpsest.receipt import audit
from palimpsest.receipt.compare import compare
from palimpsest.receipt.subjects.classifier import Classifier
from palimpsest.receipt.subjects.generator import Generator
from unlearn_fixtures import FORGET, TASK, base, oracle

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = receipt(tmp_path_factory.mktemp("browser"))
    assert made.html is not None
    return made.html


def visit(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The loaded page, and everything that went wrong or left the machine while it loaded."""
    trouble: list[str] = []
    page = browser.new_context(**options).new_page()
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(f"request {r.url}"))
    page.on("console", lambda m: trouble.append(f"console {m.type} {m.text}"))
    page.on("pageerror", lambda e: trouble.append(f"error {e}"))
    page.on("dialog", lambda d: (trouble.append(f"dialog {d.message}"), d.dismiss()))
    page.goto(path.resolve().as_uri())
    return page, trouble


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_width_and_loads_nothing(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page, trouble = visit(browser, page_file, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") > 20
    assert page.locator("h1").inner_text().startswith("“star” is gone")


def test_no_hostile_name_runs(browser: Any, tmp_path: Path) -> None:
    made = hostile_receipt(HOSTILE, tmp_path)
    assert made.html is not None
    page, trouble = visit(browser, made.html, viewport={"width": 390, "height": 900})
    assert trouble == []
    assert page.evaluate("document.querySelectorAll('script, [onerror]').length") == 0
    assert HOSTILE in page.locator("h1").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return {rgb: m.slice(0, 3), a: m[3] ?? 1}; };
  const linear = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = rgb => { const [r, g, b] = rgb.map(linear);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c.startsWith('rgb') && parse(c).a === 1) return parse(c).rgb; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('h1, h2, h3, p, li, th, dt, dd, td, span, summary, a, code, caption')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('.heat td, .hidden, .skip, svg') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), a = light(parse(style.color).rgb), b = light(ground(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const large = parseFloat(style.fontSize) >= 24;
    const said = e.textContent.trim().slice(0, 20);
    if (ratio < (large ? 3 : 4.5)) bad.push(`${e.tagName}.${e.className} ${said} ${ratio.toFixed(2)}`);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(browser: Any, page_file: Path, scheme: str) -> None:
    page, _ = visit(browser, page_file, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []


def test_the_keyboard_reaches_everything(browser: Any, page_file: Path) -> None:
    page, _ = visit(browser, page_file, viewport={"width": 390, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the summary"
    wanted = page.evaluate("document.querySelectorAll('a, summary, [tabindex]').length")
    reached = set()
    for _ in range(wanted + 5):
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        page.keyboard.press("Tab")
    assert len(reached) >= wanted
    first = page.locator("details summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_it_prints_to_pdf_with_everything_open(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page, _ = visit(browser, page_file)
    page.pdf(path=str(tmp_path / "receipt.pdf"), format="A4", print_background=True)
    content = (tmp_path / "receipt.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") <= 16
    assert len(content) < 6_000_000


def test_the_page_is_the_same_on_every_machine() -> None:
    """Nothing of this machine leaks into the page's style or template."""
    here = Path(__file__).resolve().parents[2] / "src" / "palimpsest" / "receipt"
    for name in ("receipt.css", "receipt.html.j2"):
        text = (here / name).read_text(encoding="utf-8")
        assert os.sep + "home" not in text
        assert "http:" not in text
        assert "https:" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_and_a_failed_edit_read_as_well(browser: Any, tmp_path: Path, scheme: str) -> None:
    one = receipt(tmp_path / "one")
    host = Scribe()
    idle = replace(patch(host), deltas={"unet.weight": Dense(value=torch.zeros(8, 8))})
    asked = request("star", keep=["moon"])
    about = Generator(plan=small_plan(host), judges=[Reader()])
    failed = audit(host, idle, asked, subject=about, out=tmp_path / "failed")
    assert one.html is not None
    assert failed.html is not None
    compared = compare([tmp_path / "one", tmp_path / "failed"], tmp_path / "both")[0]
    for file, images in ((failed.html, 8), (compared, 6)):
        for width in (1280, 390):
            page, trouble = visit(browser, file, viewport={"width": width, "height": 900}, color_scheme=scheme)
            assert trouble == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.images.length") >= images
            assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
        assert page.evaluate(CONTRAST) == []
    page, _ = visit(browser, failed.html)
    assert page.locator("h1").inner_text() == "“star” is still there"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_classifiers_receipt_reads_as_well(browser: Any, tmp_path: Path, scheme: str) -> None:
    edit = diff(base(), oracle(2))
    about = Classifier(data=TASK.train, asked=FORGET, test=TASK.test, retrained=[oracle(0)])
    made = audit(base(), edit, FORGET.concepts(), subject=about, out=tmp_path)
    assert made.html is not None
    for width in (1280, 390, 320):
        page, trouble = visit(browser, made.html, viewport={"width": width, "height": 900}, color_scheme=scheme)
        assert trouble == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    assert page.locator("h1").inner_text() == made.data["headline"]
    assert page.locator("svg[role=img][aria-label]").count() >= 1
    assert page.evaluate("document.querySelectorAll('script').length") == 0
    page.pdf(path=str(tmp_path / "receipt.pdf"), format="A4", print_background=True)
    assert 1 <= (tmp_path / "receipt.pdf").read_bytes().count(b"/Type /Page\n") <= 12


def test_the_receipt_can_be_saved_from_its_page(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page, trouble = visit(browser, page_file, accept_downloads=True)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="receipt.json").click()
    waiting.value.save_as(tmp_path / "receipt.json")
    saved = json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8"))
    assert saved == json.loads(page_file.with_name("receipt.json").read_text(encoding="utf-8"))
    assert trouble == []
