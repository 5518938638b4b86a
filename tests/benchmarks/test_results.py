"""The scripts, their results, and the pages about them: each figure of the pages is one of benchmarks/results."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("results", "results-tables", "results-speed")]
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.name != "bench.py")
MODULES = sorted(BENCHMARKS.rglob("*.py"))
RESULTS = sorted((BENCHMARKS / "results").iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_help_names_the_script(script: Path) -> None:
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{script.name}" in done.stdout
    assert script.name in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_have_a_command_and_a_script(path: Path) -> None:
    assert path.suffix == ".jsonl"
    assert path.stat().st_size < 1_000_000
    assert (BENCHMARKS / f"{path.stem}.py").is_file()
    assert path.name in (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(found) > 1
    for environment in [line["environment"] for line in found if "environment" in line] or [{}]:
        assert {"command", "python", "torch", "commit", "date", "threads"} <= set(environment)


def text_of_pages() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def page_tables() -> list[str]:
    """The Markdown tables of the pages."""
    return re.findall(r"(?:^\|.*\n)+", text_of_pages(), re.MULTILINE)


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    from summary import TABLES

    printed = {name: table() for name, table in TABLES.items()}
    shown = [table.rstrip("\n") for table in page_tables()]
    assert len(shown) > 15
    assert [table.splitlines()[0] for table in shown if table not in printed.values()] == []
    # What the page leaves out for its length.
    assert {name for name, table in printed.items() if table not in shown} == {"cost-half"}


def test_every_figure_with_an_error_in_the_text_is_in_a_table() -> None:
    text, tables = text_of_pages(), "".join(page_tables())
    quoted = set(re.findall(r"[\d.]+ ± [\d.]*\d", re.sub(r"^\|.*\n", "", text, flags=re.MULTILINE)))
    assert len(quoted) > 5
    assert [figure for figure in sorted(quoted) if figure not in tables] == []


def test_commands_on_the_page_are_of_scripts_and_comparisons_that_are_there() -> None:
    text = text_of_pages()
    named = re.findall(r"python benchmarks/(\w+\.py)", text)
    assert len(named) > 15
    assert {name for name in named if not (BENCHMARKS / name).is_file()} == set()
    suite = (BENCHMARKS / "suite.yaml").read_text(encoding="utf-8")
    for given in re.findall(r"python benchmarks/(?:suite|samples)\.py ([\w -]+?)(?: --data FOLDER)?`", text):
        assert all(f"\n  {name}:" in suite for name in given.split())


def test_the_page_and_the_scripts_stay_short() -> None:
    assert all(len(page.read_text(encoding="utf-8").splitlines()) <= 300 for page in PAGES)
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert sum(lengths.values()) <= 5500
    assert max(lengths.values()) <= 400
    functions = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.FunctionDef)]  # fmt: skip
    assert max((node.end_lineno or 0) - node.lineno + 1 for node in functions) <= 60
