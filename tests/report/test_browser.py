"""The page in a real browser: nothing is loaded or complained about; it fits, and can be read and used by keys."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="there is no Chromium with a chromedriver (Debian: chromium, chromium-driver)"
    ),
]

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip

PAGES = ["pair", "images", "mixed"]

#: The lowest contrast of text and its paper, and of everything drawn and its paper.
COLOURS = """
const drawn = [];
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const light = c => {
  const [r, g, b] = rgb(c).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (rgb(c).length < 4) return c;
  }
};
const contrast = (a, b) => {
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
let text = 99, line = 99;
for (const e of document.body.querySelectorAll('*')) {
  const style = getComputedStyle(e), svg = e.closest('svg');
  if (!svg && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    text = Math.min(text, contrast(style.color, paper(e)));
  if (svg && e.tagName === 'text') text = Math.min(text, contrast(style.fill, paper(e)));
  if (svg && e.tagName === 'path' && style.stroke !== 'none') line = Math.min(line, contrast(style.stroke, paper(e)));
}
return [text, line, getComputedStyle(document.body).backgroundColor];
"""

WHERE = """
const e = document.activeElement;
return [e.tagName, e.getAttribute('href') || e.id || e.getAttribute('role') || '',
        getComputedStyle(e).outlineStyle, e.getBoundingClientRect().top];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
            patch.delenv(name)  # the driver is on this computer
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield chrome
        chrome.quit()


def show(
    browser: webdriver.Chrome, page: Path, width: int = 1280, theme: str = "light", medium: str = "screen"
) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
    browser.get(page.as_uri())


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_and_nothing_is_complained_about(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str
) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, pages[name])
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [s["request"]["url"] for s in sent if s["documentURL"] == pages[name].as_uri()]  # not Chromium's own
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.execute_script("return document.scripts.length") == 0


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_never_scrolled_sideways(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, width: int
) -> None:
    show(browser, pages[name], width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide, room = browser.execute_script(
        "const e = document.documentElement; return [Math.max(e.scrollWidth, document.body.scrollWidth), e.clientWidth]"
    )
    assert room > width - 30
    assert wide <= room


@pytest.mark.parametrize("name", PAGES)
def test_both_papers_can_be_read(browser: webdriver.Chrome, pages: dict[str, Path], name: str) -> None:
    found = {}
    for theme in ("light", "dark"):
        show(browser, pages[name], theme=theme)
        text, line, found[theme] = browser.execute_script(COLOURS)
        assert text >= 4.5, theme  # WCAG 2, AA: text
        assert line >= 3, theme  # and graphics
    light, dark = (sum(map(int, re.findall(r"\d+", found[theme])[:3])) for theme in ("light", "dark"))
    assert light > 700
    assert dark < 150


def test_the_paper_can_be_chosen(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    show(browser, pages["pair"], theme="light")
    light = browser.execute_script(paper)
    browser.find_element("id", "dark").click()
    dark = browser.execute_script(paper)
    assert dark != light
    assert browser.execute_script(COLOURS)[0] >= 4.5
    show(browser, pages["pair"], theme="dark")
    assert browser.execute_script(paper) == dark
    browser.find_element("id", "light").click()
    assert browser.execute_script(paper) == light
    browser.find_element("id", "system").click()
    assert browser.execute_script(paper) == dark


def test_a_page_is_printed_on_white(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["pair"], theme="dark", medium="print")
    text, _, paper = browser.execute_script(COLOURS)
    assert text >= 4.5
    assert sum(map(int, re.findall(r"\d+", paper)[:3])) > 700
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"


def test_everything_is_reached_by_keys(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["pair"])
    body = browser.find_element("tag name", "body")
    seen = []
    for _ in range(60):
        active = browser.switch_to.active_element
        (active or body).send_keys("\ue004")  # Tab
        tag, what, outline, top = browser.execute_script(WHERE)
        if tag == "BODY":
            break
        assert outline != "none", (tag, what)
        seen.append((tag, what))
        if what == "#main":
            assert top >= 0  # the skip link is seen when it has the focus
    assert seen[0] == ("A", "#main")
    assert seen[1] == ("INPUT", "system")
    links = [what for tag, what in seen if tag == "A"]
    assert links[1:] == browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    closed = "return [...document.querySelectorAll('.scroll')].filter(e => !e.closest('details')).length"
    assert seen.count(("DIV", "region")) == browser.execute_script(closed) > 3
    assert [tag for tag, _ in seen].count("SUMMARY") == 4


def test_the_skip_link_and_the_boxes_work_by_keys(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    show(browser, pages["pair"], width=375)
    browser.find_element("tag name", "body").send_keys("\ue004")
    browser.switch_to.active_element.send_keys("\ue007")  # Enter
    assert browser.execute_script("return document.activeElement.id") == "main"
    box = browser.find_element("css selector", "#evaluation .scroll")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    box.send_keys("\ue014\ue014\ue014")  # right
    deadline = "const done = arguments[1]; setTimeout(() => done(arguments[0].scrollLeft), 400)"
    assert browser.execute_async_script(deadline, box) > 0
