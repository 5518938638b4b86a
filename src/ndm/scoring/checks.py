"""Checks before scoring starts, and the fingerprint of a model."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ndm.model import NDM

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "check_model",
    "check_options",
    "check_out",
    "fingerprint",
]

PRECISIONS = ("32", "bf16", "64")

#: Formats by file suffix.
FORMATS = (".parquet", ".csv")


def check_out(out: Path) -> None:
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"The output file {out} must end in {' or '.join(FORMATS)}.")
    if out.exists():
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in.")
    if out.suffix.lower() == ".parquet":
        try:
            importlib.import_module("pyarrow")
        except ModuleNotFoundError:
            raise ImportError("Parquet files need pyarrow: pip install pandas pyarrow.") from None


def check_options(
    times: int,
    tolerance: float | None,
    samples: int,
    probes: int,
    precision: str,
    size: int | None,
    rows: int | None,
    seed: int,
) -> None:
    if times < 2 or times % 2:
        raise ValueError(
            f"times must be an even number of at least 2, got {times}, because noise levels are used in pairs."
        )
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a positive number, not {tolerance}.")
    for name, value in {
        "samples": samples,
        "probes": probes,
        "batch_size": size,
        "max_rows": rows,
    }.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed must be from 0 to 2^63 - 1, got {seed}.")


def check_model(model: NDM, likelihood: bool) -> None:
    if likelihood and not model.has_ode:
        raise ValueError(
            "This model has a direct reverse process and no ODE, so only the bound can be computed: leave the "
            "likelihood out (--no-likelihood)."
        )


def fingerprint(model: NDM) -> str:
    """Return a checksum of the model's configuration and weights."""
    import torch  # here, so that the other checks need no PyTorch

    try:
        description = json.dumps(model.config())
    except TypeError:  # it contains a module that is not a part
        description = f"{model}{model.standardize and model.standardize.config()}"
    found = hashlib.sha256(description.encode())
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
