"""The notebooks: what is kept of them is sound and small, and they run."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, v4
from PIL import Image

from ndm.cli import COMMANDS

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))

#: Of a computer: the places where files are.
A_PATH = re.compile(r"(?<![\w.~])/(?:home|root|tmp|usr|var|opt|mnt|work|Users|private)/|site-packages|[A-Z]:\\\\")


@pytest.fixture(scope="module")
def run() -> ModuleType:
    """examples/run.py."""
    return loaded(EXAMPLES / "run.py")


def loaded(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def python(notebook: NotebookNode) -> list[str]:
    """The cells of Python, without the lines for the notebook itself."""
    cells = [c.source for c in notebook.cells if c.cell_type == "code" and not c.source.startswith("%%")]
    return [re.sub(r"^%.*$", "", source, flags=re.MULTILINE) for source in cells]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def texts(notebook: NotebookNode) -> list[str]:
    """All that the outputs say."""
    found = []
    for output in outputs(notebook):
        data = output.get("data", {})
        found += [output.get("text", ""), *(text for kind, text in data.items() if kind.startswith("text/"))]
    return found


def test_there_are_eight() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "classes",
        "digits",
        "likelihood",
        "parts",
        "table",
        "tables",
        "tour-2d",
        "trained",
    ]
    assert all(path.name in (EXAMPLES / "README.md").read_text() for path in NOTEBOOKS)
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 800_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestWhatIsKept:
    def test_is_a_notebook(self, path: Path) -> None:
        nbformat.validate(nbformat.read(path, as_version=4))

    def test_was_executed_from_top_to_bottom_without_an_error(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
        assert not [output for output in outputs(notebook) if output.output_type == "error"]
        assert not [text for text in texts(notebook) if re.search(r"Warning|Traceback|[Ee]rror:", text)]

    def test_has_pictures_and_is_small(self, path: Path) -> None:
        pictures = [o.data["image/png"] for o in outputs(nbformat.read(path, as_version=4)) if "image/png" in o.get("data", {})]  # fmt: skip # noqa: E501
        assert pictures
        assert sum(len(base64.b64decode(picture)) for picture in pictures) < 200_000
        assert path.stat().st_size < 300_000

    def test_tells_nothing_of_a_computer(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        assert not [text for text in texts(notebook) if A_PATH.search(text)]
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert notebook.metadata.kernelspec.name == "python3"
        assert not [cell for cell in notebook.cells if cell.metadata]

    def test_imports_what_there_is(self, path: Path) -> None:
        tree = ast.parse("\n".join(python(nbformat.read(path, as_version=4))))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")

    def test_gives_commands_that_there_are(self, path: Path) -> None:
        cells = nbformat.read(path, as_version=4).cells
        scripts = [c.source for c in cells if c.cell_type == "code" and c.source.startswith("%%bash")]
        assert {name for script in scripts for name in re.findall(r"^ndm (\w+)", script, re.MULTILINE)} <= set(COMMANDS)

    def test_says_what_a_cell_is_for_before_it(self, path: Path) -> None:
        kinds = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
        assert kinds[0] == "markdown"
        assert ["code"] * 3 not in [kinds[i : i + 3] for i in range(len(kinds))]


def test_the_code_passes_ruff() -> None:
    for check in (["check"], ["format", "--check"]):
        found = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", EXAMPLES], capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout + found.stderr


class TestTheCommand:
    def test_executes_with_the_commands_of_this_python_in_a_folder_of_its_own(
        self, run: ModuleType, tmp_path: Path
    ) -> None:
        cells = [
            "%%bash\nndm --version; echo $0 > left-behind",
            "import os, sys; print(sys.executable, os.listdir())",
        ]
        path = tmp_path / "small.ipynb"
        nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells]), path)
        found = run.execute(path)
        first, second = (cell.outputs[0].text for cell in found.cells)
        assert first.startswith("ndm ")
        assert second.startswith(sys.executable)
        assert "left-behind" in second
        assert os.listdir(tmp_path) == ["small.ipynb"]

    def test_stops_at_a_cell_that_fails(self, run: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / "wrong.ipynb"
        nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("%%bash\nfalse")]), path)
        with pytest.raises(CellExecutionError, match="non-zero exit status"):
            run.execute(path)

    def test_makes_pictures_small(self, run: ModuleType) -> None:
        large = io.BytesIO()
        Image.effect_noise((1200, 720), 50).convert("RGB").save(large, "png")
        kept = base64.b64decode(run.smaller(base64.b64encode(large.getvalue()).decode()))
        image = Image.open(io.BytesIO(kept))
        assert image.size == (1000, 600)
        assert len(image.convert("RGB").getcolors() or []) <= 80
        assert len(kept) < large.tell() / 2

    def test_leaves_out_what_differs_between_executions(self, run: ModuleType) -> None:
        cell = v4.new_code_cell("1", metadata={"execution": {"iopub.status.busy": "2026-01-01T00:00:00"}})
        notebook = v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}})
        found = run.cleaned(notebook)
        assert not found.cells[0].metadata
        assert found.metadata.language_info == {"name": "python"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_fresh_kernel(path: Path, run: ModuleType) -> None:
    notebook = run.execute(path)  # raises an error if a cell does
    said = [output.text for output in outputs(notebook) if output.output_type == "stream" and output.name == "stderr"]
    assert not [text for text in said if re.search(r"[Ww]arning|[Ee]rror", text)]
    assert not [text for text in texts(notebook) if A_PATH.search(text)]


@pytest.mark.slow
def test_draws_the_pictures_of_the_readme(tmp_path: Path) -> None:
    import torch

    from ndm.demo import MODELS

    for name, folder in zip(MODELS, ("identity", "ndm"), strict=True):
        torch.manual_seed(0)
        MODELS[name]().save_pretrained(tmp_path / "demo" / folder / "model")
        (tmp_path / "demo" / folder / "data.json").write_text('{"shape": [1, 8, 8], "levels": 17}')
    command = [
        sys.executable,
        EXAMPLES / "pictures.py",
        tmp_path / "demo",
        "--out",
        tmp_path / "drawn",
        "--steps",
        "20",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("tour.png", "digits.png"):
        assert Image.open(tmp_path / "drawn" / name).width > 1000
        assert (tmp_path / "drawn" / name).stat().st_size < 250_000


def test_pictures_need_a_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        loaded(EXAMPLES / "pictures.py").main()
    assert "run `ndm demo" in capsys.readouterr().err
