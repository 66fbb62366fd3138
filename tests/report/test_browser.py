"""The page in a real browser: Chromium, driven by Playwright; without them there is nothing to run."""

import re
import shutil
from pathlib import Path

import pytest
from pages_by_hand import CONTRIBUTIONS
from tables_by_hand import TABLES
from traces_by_hand import trace_by_hand

import precision_probe as pp

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # pages are our own, and root has no sandbox
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page of a trace; at its end nothing was said on the console, nor asked of the network."""
    said, asked, pages = [], [], []

    def open_page(trace, width=1280, scheme="light"):
        path = pp.write_report(trace, tmp_path / f"{len(pages)}.html")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    for page in pages:
        page.close()


@pytest.fixture
def trace():
    """Two precisions, of which float32 is exact, and every table."""
    trace = trace_by_hand(precisions='["float64", "float16", "float32"]').with_tables(
        TABLES | {"contributions": CONTRIBUTIONS}
    )
    for mode in ("propagated", "isolated"):
        trace.tree[f"{mode}/float32"] = trace.tree[f"{mode}/float64"].copy()
    return trace


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen(opened, trace, width, scheme):
    page = opened(trace, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


def test_one_precision_is_shown_at_a_time(opened, trace):
    page = opened(trace)
    shown = page.locator("figure[data-precision]:visible")
    assert {each.get_attribute("data-precision") for each in shown.all()} == {"float16"}
    page.get_by_label("float32", exact=True).check(force=True)
    assert {each.get_attribute("data-precision") for each in shown.all()} == {"float32"}
    page.keyboard.press("ArrowLeft")
    assert {each.get_attribute("data-precision") for each in shown.all()} == {"float16"}


def test_blocks_tell_their_numbers(opened, trace):
    page = opened(trace)
    detail = page.locator("#network output:visible")
    first, second = page.locator("#network .node:visible").all()[:2]
    assert detail.text_content() == first.get_attribute("aria-label").replace("; ", " · ")
    first.focus()
    page.keyboard.press("ArrowDown")
    assert detail.text_content() == second.get_attribute("aria-label").replace("; ", " · ")
    first.click()
    assert detail.text_content() == first.get_attribute("aria-label").replace("; ", " · ")


def test_a_structure_is_turned(opened, trace):
    trace.tree["propagated/float16/forces"].values[0] += 1  # so that the structure of two atoms is shown
    page = opened(trace)
    picture = page.locator(".molecule:visible")

    def place():
        return [
            float(each) for each in re.findall(r"-?[\d.]+", picture.locator("[data-at='0']").get_attribute("transform"))
        ]

    before = place()
    picture.focus()
    page.keyboard.press("ArrowRight")
    assert abs(place()[0] - before[0]) > 1
    page.keyboard.press("ArrowLeft")
    assert place() == pytest.approx(before)
    picture.hover()
    page.mouse.down()
    page.mouse.move(0, 0)
    assert place() != pytest.approx(before)


@pytest.mark.slow
def test_it_is_accessible(browser, trace, tmp_path):
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-core (pip install axe-playwright-python)")
    rules = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    path = pp.write_report(trace, tmp_path / "page.html")
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, bypass_csp=True)  # which admits no rules from outside
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.evaluate(rules)
        assert [(each["id"], each["nodes"][0]["html"]) for each in page.evaluate("axe.run()")["violations"]] == []
        page.close()


def test_everything_is_open_on_paper(opened, trace):
    page = opened(trace)
    closed = page.locator("details:not([open])")
    assert closed.count() > 0
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert closed.count() == 0
