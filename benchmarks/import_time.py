"""CPU seconds of `import ndm`, and of each command until its work begins, over those of `import torch`.

    python benchmarks/import_time.py [--repeats 7]

Medians over fresh interpreters, which take turns with `import torch`. Help and wrong arguments are measured until their
end; training until the first backward pass, and the other commands until the first call of the model's network. They
use runs of a few steps on a table of ten columns and on the digits. The command fails if `import ndm` imports a package
that only a part of the library needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from bench import save

#: What only training, pictures or one of the backbones need.
HEAVY = ["datasets", "diffusers", "jsonargparse", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "sympy"]
HEAVY += ["torch._dynamo", "torchode", "torchsde", "torchdiffeq"]

IMPORTS = {
    "import torch": "import torch",
    "import torch, ndm": "import torch, ndm",
    "import torch, ndm, and a ResidualMLP": "import torch, ndm; from ndm.networks import ResidualMLP",
}

ENDS = [
    "--help", "train --help", "train digits --trainer.nope 3", "train digits --model.transform Nope",
    "score nowhere x.csv --out y.csv", "score table nowhere.csv --out y.csv",
]  # fmt: skip

BEGINS = [
    "score table x.csv --out y.csv", "sample table --out y.csv", "evaluate table",
    "train table --data.path x.csv --out new", "sample digits --out y.png", "train digits --out new",
]  # fmt: skip

PROGRAM = """
import json, os, resource, sys
def told(*_, **__):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([used.ru_utime + used.ru_stime, [m for m in {heavy} if m in sys.modules]]), flush=True)
    os._exit(0)
{statement}
told()
"""

UNTIL_THE_WORK = """
import ndm.cli.process
ndm.cli.process.own()  # first, as in a command
import torch
own = torch.nn.Module.__call__
def call(self, *arguments, **options):
    return told() if type(self).__module__.startswith("ndm.networks") else own(self, *arguments, **options)
if sys.argv[1] == "train":
    torch.Tensor.backward = told
else:
    torch.nn.Module.__call__ = call
from ndm.cli import main
sys.exit(main())
"""


def run(statement: str, words: str) -> tuple[float, list[str]]:
    """The CPU seconds of a fresh interpreter for a statement or a command, and the heavy packages that it imported."""
    shutil.rmtree("new", ignore_errors=True)
    program = PROGRAM.format(heavy=HEAVY, statement=statement)
    done = subprocess.run([sys.executable, "-c", program, *words.split()], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def prepare() -> None:
    """Runs of a few steps, in the current folder."""
    rows = np.random.default_rng(0).normal(size=(2000, 10))
    np.savetxt("x.csv", rows, delimiter=",", header=",".join("abcdefghij"), comments="")
    for name, words in {"table": ["--data.path", "x.csv"], "digits": []}.items():
        command = [sys.executable, "-m", "ndm", "train", name, *words, "--trainer.max_steps", "4", "--out", name]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    programs = {name: (statement, "") for name, statement in IMPORTS.items()}
    programs |= {f"ndm {words}": ("from ndm.cli import main; main()", words) for words in ENDS}
    programs |= {f"ndm {words}": (UNTIL_THE_WORK, words) for words in BEGINS}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    loaded: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare()
        for _ in range(options.repeats):
            for name, (statement, words) in programs.items():
                time, loaded[name] = run(statement, words)
                seconds[name].append(time)
    rows = []
    for name, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, seconds["import torch"], strict=True))
        rows.append({"what": name, "cpu_s": statistics.median(times), "over_torch": ratio, "heavy": loaded[name]})
    print(*rows, sep="\n")
    print(save("import_time", rows, vars(options) | {"load": os.getloadavg()[0]}))
    if any(loaded[name] for name in IMPORTS):
        sys.exit("`import ndm` imports a heavy package.")


if __name__ == "__main__":
    main()
