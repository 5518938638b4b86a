"""The documentation, built with warnings taken for errors: its links, its formulas, its names, and how browsers see it.

The pages are read here with the standard library's parser, which shares nothing with what wrote them.
"""

from __future__ import annotations

import html
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache, cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.util.inventory import InventoryFile

import ndm
from ndm.cli import COMMANDS, main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MODULES = ["ndm", *(f"ndm.{name}" for name in (
    "data", "networks", "training", "evaluation", "scoring", "evaluation.quality", "plotting", "report",
))]  # fmt: skip
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "notebooks"]
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(out / "trees"), str(DOCS)]
    done = subprocess.run(
        [*command, str(out / "html")], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


class Page(HTMLParser):
    """What the tests look at in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.formulas = 0
        self.text = ""
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif tag == "link" and found.get("rel") not in ("index", "search", "next", "prev", "author"):
            self.resources.append(found.get("href") or "")
        self.resources += [value for name in ("src", "srcset", "poster", "data") if (value := found.get(name))]
        self.formulas += tag == "math"
        if tag in ("code", "pre", "script", "style", "math", "title"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text += data

    @cached_property
    def html(self) -> str:
        """The file itself."""
        return self.path.read_text(encoding="utf-8")


@cache
def read(path: Path) -> Page:
    return Page(path)


def pages(site: Path) -> list[Page]:
    found = [read(path) for path in sorted(site.rglob("*.html"))]
    assert len(found) > 60
    return found


def written(site: Path) -> list[Page]:
    """The pages but for those of the source code."""
    return [page for page in pages(site) if "source" not in page.path.parts]


# ---- links


def test_every_internal_link_and_anchor_resolves(site: Path) -> None:
    broken = []
    for page in pages(site):
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            anchor = unquote(parts.fragment) if target.suffix == ".html" else ""
            if not target.is_file() or (anchor and anchor not in read(target).ids):
                broken.append((page.path.name, link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        assert page.resources
        for resource in page.resources:
            parts = urlsplit(resource)
            assert parts.scheme in ("", "data"), f"{page.path.name} loads {resource}"
            assert not parts.netloc, f"{page.path.name} loads {resource}"
            if parts.scheme == "":
                assert (page.path.parent / unquote(parts.path)).is_file(), f"{page.path.name} lacks {resource}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", text), sheet
        assert "@import" not in text, sheet


def test_pages_name_the_repositorys_files_as_they_are() -> None:
    named = {
        path
        for page in PAGES
        for path in re.findall(r"`((?:tests|benchmarks|examples|src)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_figures_on_the_pages_are_those_that_were_measured() -> None:
    pages = (
        DOCS / name for name in ("results.md", "results-tables.md", "results-speed.md")
    )  # tests/benchmarks compares them with the results
    measured = "".join(page.read_text(encoding="utf-8") for page in pages)
    quoted = {
        figure
        for page in PAGES
        for figure in re.findall(
            r"-?[\d.]+ ± [\d.]+\d", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        )
    }
    assert len(quoted) > 5
    assert [figure for figure in sorted(quoted) if figure not in measured] == []


# ---- names


def documented(site: Path) -> set[str]:
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    return {name for role, names in inventory.items() if role.startswith("py:") for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(site: Path, module: str) -> None:
    there, home = documented(site), importlib.import_module(module)
    names = home.__all__
    assert names
    lacking = [
        name
        for name in names
        if f"{module}.{name}" not in there
        # ndm's own names are documented as ndm.X wherever else they are exported
        and not (getattr(ndm, name, None) is getattr(home, name) and f"ndm.{name}" in there)
    ]
    assert lacking == []


def test_classes_and_functions_are_linked_to_their_source(site: Path) -> None:
    links = {link.partition("source/")[2] for page in written(site) for link in page.links if "source/" in link}
    values = [getattr(ndm, name) for name in ndm.__all__] + [ndm.NDM.calibrate, ndm.Standardize.fit]
    for value in values:
        file = f"{value.__module__.replace('.', '/')}"
        lines = (ROOT / "src" / f"{file}.py").read_text(encoding="utf-8").splitlines()
        start = re.compile(rf"\s*(class|def) {value.__name__}\b")
        number = next(i for i, line in enumerate(lines, 1) if start.match(line))
        while lines[number - 2].strip().startswith("@"):  # a definition starts with its decorators
            number -= 1
        assert f"{file}.html#line-{number}" in links, value


def test_methods_and_attributes_are_documented_too(site: Path) -> None:
    there = documented(site)
    for name in (
        "NDM.bound",
        "NDM.from_pretrained",
        "method.process.Process.drift",
        "Standardize.fit",
        "LogLikelihood.kind",
    ):
        assert f"ndm.{name}" in there


# ---- what is on the pages


def test_formulas_and_markup_are_rendered(site: Path) -> None:
    source = (DOCS / "method.md").read_text(encoding="utf-8")
    source = re.sub(r"```.*?```|`[^`]*`", "", source, flags=re.DOTALL)
    count = len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", source, re.DOTALL))
    assert count > 100
    assert read(site / "method.html").formulas == count
    for page in written(site):
        assert not re.search(r"\$\$|\$[^\s$][^$\n]*\$", page.text), page.path
        assert not re.search(r":\w+:`|\\[a-z]{3}|``|\{py:", page.text), page.path


def test_the_command_line_reference_is_what_the_commands_say(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = read(site / "commands.html").html
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for command in (None, *COMMANDS):
        if command == "train":  # it lists the subclasses that are known, of which tests define some
            done = subprocess.run([sys.executable, "-m", "ndm", "train", "--help"], capture_output=True, text=True)
            said = done.stdout.strip()
        else:
            assert main([*([command] if command else []), "--help"]) == 0
            said = capsys.readouterr().out.strip()
        assert "usage" in said
        assert said in text, command
        assert f'id="ndm-{command}"' in page or command is None


def shell_lines() -> list[tuple[str, str]]:
    """Every line of every shell example, with its page."""
    return [
        (page.name, line)
        for page in PAGES
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_commands_on_the_pages_are_understood(
    page: str, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line.partition(" #")[0])
    start = words.index("ndm") + 1 if "ndm" in words else None
    if start is None:
        assert words[0] in ("make", "pip"), line
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    command, *arguments = words[start:]
    assert command in COMMANDS, line
    if command == "train" and "--resume" not in arguments:
        shutil.copytree(DOCS / "examples", tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        assert main(["train", *arguments, "--print_config"]) == 0, capsys.readouterr().err
        return
    main([command, "--help"])
    said = capsys.readouterr().out
    for option in (word for word in arguments if word.startswith("-")):
        assert re.search(rf"(^|[\s,\[]){re.escape(option)}\b", said), f"{option} in {line}"


# ---- in a browser


def browse(page: str, profile: Path, *options: str) -> tuple[str, list[str]]:
    """What a headless Chromium makes of a page, and what it writes on its console. It has no network."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
            "--virtual-time-budget=4000", "--dump-dom", *options, page,
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, re.findall(r'CONSOLE[^"]*"(.*)", source', done.stderr)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at the pages with")


@needs_chromium
def test_a_browser_says_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>nothingOfThatName()</script>")
    assert browse(bad.as_uri(), tmp_path / "profile")[1]


@needs_chromium
@pytest.mark.parametrize("name", ["index", "method", "api/transforms"])
def test_a_browser_shows_the_pages_without_complaint(site: Path, tmp_path: Path, name: str) -> None:
    seen, complaints = browse((site / f"{name}.html").as_uri(), tmp_path)
    assert complaints == []
    assert "</article>" in seen


@needs_chromium
def test_the_search_finds_pages_without_a_server(site: Path, tmp_path: Path) -> None:
    seen, _ = browse((site / "search.html").as_uri() + "?q=calibrate", tmp_path)
    assert 'href="api/model.html#ndm.NDM.calibrate"' in seen
    assert 'href="method.html" data-score' in seen  # found by its words
