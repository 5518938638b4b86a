"""What every data set offers, by default."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ndm.data import SPLITS, Data, TwoMoons


class Counting(Data):
    shape = (2,)
    levels = None

    def _split(self, name: str):
        return torch.arange(8.0).view(4, 2), torch.arange(4)


def test_a_tensor_serves_as_examples() -> None:
    data = TwoMoons(train=10, validation=6, test=4)
    rows = torch.tensor([3, 0, 3])
    for name in SPLITS:
        e, x = data.examples(name), data.split(name)
        assert len(e) == len(x)
        assert torch.equal(e[rows], x[rows])
        assert torch.equal(e[1:3], x[1:3])


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split 'dev': the splits are train, validation, test"):
        Counting().examples("dev")


def test_by_default_nothing_is_varied_or_streamed() -> None:
    x = torch.randn(5, 2)
    assert torch.equal(Counting().augment(x, torch.rand(5)), x)
    assert Counting().training_batches(2, 0, 0) is None


def test_importing_costs_no_package_that_reads_files() -> None:
    """Who trains on points does not wait for, or need, the packages of images."""
    code = "import sys, ndm.data; print(*(m for m in ('datasets', 'PIL', 'filelock', 'sklearn') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
