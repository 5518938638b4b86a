"""Other implementations side by side with this one: of the method, of its successor, and of the samplers.

    python benchmarks/peers.py ndm --peer FOLDER        AlexanderNekrasov/NDM, here at e3cedcf
    python benchmarks/peers.py nfdm --peer FOLDER       GrigoryBartosh/neural_diffusion's notebook, here at a9617ea
    python benchmarks/peers.py samplers --peer FOLDER   probabilists/azula, here at bec12b8; diffusers is installed

FOLDER is a checkout. Each writes its part of results/peers.json, row by row, and keeps the others; with other --seeds
and the same settings it adds to its part. What is equal is told in peers/__init__.py, what the peers do in the module
of each part. Times are seconds of the processor.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from bench import RESULTS, environment, table
from peers import checkerboard, gaussians, samplers

PARTS = {"ndm": checkerboard, "nfdm": gaussians, "samplers": samplers}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    part = PARTS[options.part]
    try:
        found = earlier(options)
        for row in part.rows(options):
            found.append(row)
            print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            record(options, found)
        print(table(*part.shown(found)))
    except (ValueError, OSError) as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 2
    print(f"the same numbers are in {options.results}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, part in PARTS.items():
        one = parts.add_parser(name, help=(part.__doc__ or "").splitlines()[0])
        one.add_argument("--peer", type=Path, required=True, metavar="FOLDER", help="a checkout of the peer")
        one.add_argument("--results", type=Path, default=RESULTS / "peers.json", help="where the results go")
        part.options(one)
    return parser


def where(options: argparse.Namespace) -> dict[str, Any]:
    """bench.environment, with the part's plain command: its rows may have come from several, some seeds at a time."""
    return environment() | {"command": f"python benchmarks/peers.py {options.part} --peer PEER"}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What has to be the same for rows to stand together: all but where things are, which seeds, and which sizes."""
    return {k: v for k, v in vars(options).items() if k not in ("part", "peer", "results", "seeds", "sizes")}


def read(options: argparse.Namespace) -> dict[str, Any]:
    """All parts of the results so far."""
    path: Path = options.results
    return json.loads(path.read_text()) if path.exists() else {}


def earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that stay: those of the same settings and of other seeds, or other sizes."""
    part = read(options).get(options.part)
    if part is None or part["settings"] != settings(options) or not hasattr(options, "seeds"):
        return []
    sizes = getattr(options, "sizes", [None])
    return [r for r in part["rows"] if r["seed"] not in options.seeds or r.get("size") not in sizes]


def record(options: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """Put the part into the file of results, in one go."""
    result = {"environment": where(options), "settings": settings(options), "rows": found}
    scratch = options.results.with_suffix(".part")
    scratch.write_text(json.dumps(read(options) | {options.part: result}, indent=1) + "\n")
    scratch.replace(options.results)


if __name__ == "__main__":
    sys.exit(main())
