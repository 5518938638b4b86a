"""The time of `import ndm` over `import torch`, and the heavy packages that it must not import.

    python benchmarks/import_time.py [--repeats 15]

Medians over fresh interpreters, with and without ndm in turns. The command fails if `import ndm` imports a package that
only a part of the library needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from bench import save

#: What only training, pictures or one of the backbones need.
HEAVY = ["diffusers", "jsonargparse", "lightning", "matplotlib", "pandas", "sklearn"]
HEAVY += ["torchode", "torchsde", "torchdiffeq"]

STATEMENTS = {
    "torch": "import torch",
    "torch, then ndm": "import torch, ndm",
    "torch, ndm and a ResidualMLP": "import torch, ndm; from ndm.networks import ResidualMLP",
}

PROGRAM = """
import json, sys, time
start = time.perf_counter()
{statement}
print(json.dumps([time.perf_counter() - start, [m for m in {heavy} if m in sys.modules]]))
"""


def run(statement: str) -> tuple[float, list[str]]:
    """The statement's seconds in a fresh interpreter, and the heavy packages that it imported."""
    program = PROGRAM.format(statement=statement, heavy=HEAVY)
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    seconds, loaded = json.loads(output.splitlines()[-1])
    return seconds, loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    run("import torch, ndm")  # fills the caches of the file system and of compiled modules
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    loaded: dict[str, list[str]] = {}
    for _ in range(options.repeats):
        for name, statement in STATEMENTS.items():
            time, loaded[name] = run(statement)
            seconds[name].append(time)
    rows = []
    for name, times in seconds.items():
        over = statistics.median(t - b for t, b in zip(times, seconds["torch"], strict=True))
        row = {"import": name, "median_s": statistics.median(times), "least_s": min(times), "over_torch_s": over}
        rows.append(row | {"heavy": loaded[name]})
    print(*rows, sep="\n")
    print(save("import_time", rows, vars(options)))
    if any(r["heavy"] for r in rows):
        sys.exit("`import ndm` imports a heavy package.")


if __name__ == "__main__":
    main()
