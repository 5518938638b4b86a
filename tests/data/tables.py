"""Small tables, and the sentence that a bad one is refused with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from ndm.data.table import Table


def frame(n: int = 100, seed: int = 0) -> pandas.DataFrame:
    rng = np.random.default_rng(seed)
    return pandas.DataFrame({"a": rng.normal(size=n), "b": rng.normal(5, 2, n), "c": rng.integers(0, 10_000, n)})


def csv(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def says(path: str, *words: str, **arguments) -> str:
    """The one sentence that a table is refused with, which has these words in it."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        _ = Table(path, **arguments).train
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence
