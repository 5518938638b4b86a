"""What `import ndm` costs over `import torch`, and what it does not import.

Fresh interpreters, with and without ndm in turn so that both meet the same machine; medians. It fails if Lightning,
matplotlib, diffusers or another package that only a part of the library needs is imported.

    python benchmarks/import_time.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from bench import save, table

#: What only training, pictures or one of the backbones need.
HEAVY = (
    "diffusers",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "pandas",
    "sklearn",
    "torchode",
    "torchsde",
    "torchdiffeq",
)

PROGRAM = """
import json, sys, time
start = time.perf_counter()
{statement}
print(json.dumps([time.perf_counter() - start, [m for m in {heavy} if m in sys.modules]]))
"""


def run(statement: str) -> tuple[float, list[str]]:
    """The statement's seconds in a fresh interpreter, and which heavy packages it brought in."""
    program = PROGRAM.format(statement=statement, heavy=HEAVY)
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    seconds, loaded = json.loads(output.splitlines()[-1])
    return seconds, loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    statements = {
        "torch": "import torch",
        "torch, then ndm": "import torch, ndm",
        "torch, ndm and a ResidualMLP": "import torch, ndm; from ndm.networks import ResidualMLP",
    }
    run("import torch, ndm")  # fills the caches of the file system and of compiled modules
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    loaded: dict[str, list[str]] = {}
    for _ in range(options.repeats):
        for name, statement in statements.items():
            time, loaded[name] = run(statement)
            seconds[name].append(time)
    base = statistics.median(seconds["torch"])
    rows = [
        {
            "import": name,
            "median_s": statistics.median(times),
            "least_s": min(times),
            "over_torch_s": statistics.median(t - b for t, b in zip(times, seconds["torch"], strict=True)),
            "heavy": loaded[name],
        }
        for name, times in seconds.items()
    ]
    shown = [
        [r["import"], f"{r['median_s']:.2f} s", f"{r['over_torch_s']:+.3f} s", ", ".join(r["heavy"]) or "none"]
        for r in rows
    ]
    print(table(shown, ["import", "median", "over torch", "heavy packages imported"]))
    print(f"\n`import ndm` costs {rows[1]['over_torch_s'] / base:+.1%} over `import torch`.")
    print(save("import_time", rows, vars(options)))
    if any(r["heavy"] for r in rows):
        sys.exit("A heavy package is imported by `import ndm`.")


if __name__ == "__main__":
    main()
