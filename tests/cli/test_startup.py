"""What the commands import before their work begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ndm.configs.early import HELP

#: Packages that a table's scores and samples do not need, and that take longer to import than all of ndm.
HEAVY = [
    "datasets",
    "diffusers",
    "huggingface_hub",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "pandas",
    "sklearn",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "torchmetrics",
    "torchvision",
]

#: Run commands in a process of their own, and print whether they imported PyTorch, and the codes.
WITHOUT_TORCH = """
import contextlib, io, json, sys
from ndm.cli import main
told = io.StringIO()
with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
    codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps(["torch" in sys.modules, codes, told.getvalue()]))
"""

#: Run one command, and print what was imported at its end, and whether garbage was collected when the model was called.
WHOLE = """
import gc, json, sys, torch
own, collected = torch.nn.Module.__call__, set()
def call(self, *arguments, **options):
    if type(self).__module__.startswith("ndm.networks"):
        collected.add(gc.isenabled())
    return own(self, *arguments, **options)
torch.nn.Module.__call__ = call
from ndm.cli import main
code = main()
print(json.dumps([code, [name for name in {heavy} if name in sys.modules], list(collected)]))
"""


def without_torch(*commands: list[str]) -> str:
    """Check that the commands end with one code each without PyTorch, and return what they printed."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    torch, codes, told = json.loads(done.stdout)
    assert not torch, told
    assert len(set(codes)) == 1
    assert codes[0] in (0, 2)
    return str(told)


def test_no_help_imports_torch() -> None:
    names = ["train", "evaluate", "audit", "sample", "score", "impute", "predict", "report", "push", "demo"]
    told = without_torch(["--help"], *([name, "--help"] for name in names))
    assert all(f"usage: ndm {name}" in told for name in names)


def test_no_wrong_word_imports_torch(table: Path) -> None:
    run, data = str(table / "run"), str(table / "x.csv")
    out, taken, nowhere = str(table / "new.csv"), data, str(table / "nowhere")
    commands = [
        ["smple"],
        ["train", "nowhere"],
        ["train", "--nope", "3"],
        ["train", "digits", "--nope", "3"],
        ["train", "digits", "--trainer.nope=3"],
        ["train", "digits", "--training.ema", "x"],
        ["train", "digits", "--training.ema", "2"],
        ["train", "digits", "--out", run],
        ["train", "--resume", "--out", nowhere],
        *(["score", *words] for words in ([nowhere, data, "--out", out], [run, nowhere, "--out", out])),
        *(["score", run, data, *words] for words in (["--out", taken], ["--out", "x.txt"], ["--nope"])),
        *(["score", run, data, "--out", out, *words] for words in (["--times", "3"], ["--given", "d"])),
        *(["sample", *words] for words in ([nowhere, "--out", out], [run, "--out", taken], [run, "--out", "x.txt"])),
        ["sample", run, "--out", out, "--given", nowhere],
        *(["impute", *words] for words in ([nowhere, data, "--out", out], [run, nowhere, "--out", out])),
        *(["predict", run, data, "--out", out, *words] for words in ([], ["--column", "d"])),
        ["evaluate", nowhere],
        *(["audit", *words] for words in ([nowhere], [run, "--out", taken], [run, "--out", nowhere])),
        ["report", nowhere, "--out", str(table / "x.html")],
        ["push", nowhere, "me/x"],
    ]
    told = without_torch(*commands)
    assert told.count("ndm: error: ") == len(told.splitlines()) == len(commands)


@pytest.mark.parametrize("command", ["score", "sample"])
def test_a_table_needs_no_heavy_package(table: Path, command: str) -> None:
    words = [str(table / "x.csv")] if command == "score" else ["-n", "4"]
    arguments = [command, str(table / "run"), *words, "--out", str(table / f"{command}.csv"), "--device", "cpu"]
    program = WHOLE.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], [True]], done.stderr


def test_a_run_folder_and_the_options_are_read_without_torch(table: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ndm.training import Run, TrainerOptions; TrainerOptions();"
        "run = Run(Path(sys.argv[1])); run.require_model(); run.read_columns(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(table / "run")], check=True)


def test_the_data_of_a_run_are_read_without_libraries_of_networks(table: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ndm.training import Run; from ndm.configs.recorded import *;"
        "read_run_data(Run(Path(sys.argv[1])), [], []); sys.exit('diffusers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(table / "run")], check=True)


def test_the_stored_help_is_what_the_parser_prints() -> None:
    program = "from ndm.configs.helptext import text; print(text(), end='')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == HELP.read_text(encoding="utf-8"), "run `python -m ndm.configs.helptext`"


def test_pandas_is_kept_out_of_the_command_only() -> None:
    program = (
        "import sys; from ndm.cli.process import own, spare_pandas; spare_pandas();"
        "assert 'pyarrow' not in sys.modules; own(); spare_pandas();"
        "import pyarrow; pyarrow.array([1.5]).to_numpy(); assert 'pandas' not in sys.modules;"
        "import pandas; assert pandas.__version__"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
