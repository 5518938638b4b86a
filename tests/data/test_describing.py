"""What is said about a data set, and what identifies it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ndm.data import Data, Digits, Patterns, Tensors, TwoMoons
from ndm.data.describing import digest, duplicate_lines, row_hashes


def test_classes_are_counted_by_the_largest_label() -> None:
    x = torch.randn(5, 2)
    labels = {"train": torch.tensor([0, 1, 1, 0, 1]), "validation": torch.tensor([0, 0, 6, 0, 0])}
    data = Tensors(x, x, labels=labels)
    assert (data.classes, data.class_names) == (7, None)
    assert Tensors(x).classes is None
    assert Digits().classes == 10
    assert Patterns(examples=8, classes=30).classes == 30  # also where not every class has an example


def test_a_fingerprint_tells_contents_apart() -> None:
    x, y = torch.arange(12.0).view(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    variants = [
        Tensors(x, x[:2]),
        Tensors(x[:5], x[:2]),
        Tensors(x, x[:3]),
        Tensors(x.flip(0), x[:2]),
        Tensors(x.view(6, 1, 2), x[:2].view(2, 1, 2)),
        Tensors(x, x[:2], labels={"train": y}),
        Tensors(x, x[:2], labels={"train": 1 - y}),
        Tensors(x, test=x[:2]),
    ]
    prints = [data.fingerprint() for data in variants]
    assert all(isinstance(p, str) and len(p) == 64 for p in prints)
    assert len(set(prints)) == len(prints)
    assert Tensors(x.clone(), x[:2].clone()).fingerprint() == prints[0]


def test_streamed_data_have_no_fingerprint() -> None:
    class Streamed(Tensors):
        def training_batches(self, batch_size: int, seed: int, first_step: int):
            return iter([(self.train[:batch_size], None)])

    assert Streamed(torch.randn(5, 2)).fingerprint() is None


def test_parts_of_a_digest_do_not_run_into_each_other() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest([np.zeros((2, 3))]) != digest([np.zeros((3, 2))])
    assert digest([np.zeros(2, np.int64)]) != digest([np.zeros(2)])


@pytest.mark.parametrize("data", [TwoMoons(train=50, validation=5, test=7), Digits(), Patterns(examples=8)])
def test_a_summary_tells_the_splits(data: Data) -> None:
    lines = data.summary()
    sizes = ", ".join(f"{split} {len(data.examples(split)):,}" for split in ("train", "validation", "test"))
    assert f"splits: {sizes}" in lines
    assert all("\n" not in line for line in lines)


def test_copies_are_counted_within_a_split_and_across() -> None:
    x = torch.arange(20.0).view(10, 2)
    lines = Tensors(torch.cat([x, x[:3]]), x[8:] + 100, torch.cat([x[:1], x[:1] + 200])).summary()
    assert "duplicates: 3 of 13 in train are exact copies of others in the same split" in lines
    assert any(
        line.startswith("warning: 1 of the 2 test examples are exact copies of train examples") for line in lines
    )
    assert not any("validation examples are" in line for line in lines)


def test_a_split_of_few_of_the_classes_is_spoken_of() -> None:
    def warnings(validation: list[int]) -> list[str]:
        x, y = torch.randn(100, 2), {"train": torch.arange(100) % 4, "validation": torch.tensor(validation)}
        data = Tensors(x, torch.randn(len(validation), 2), labels=y)
        return [line for line in data.summary() if line.startswith("warning: ")]

    (line,) = warnings([0] * 60 + [1] * 40)
    assert line.startswith("warning: the validation split has only 2 of 4 classes")
    assert warnings([0, 1, 2, 3] * 20) == []
    assert warnings([0] * 10) == []  # so few may lack classes by chance


def test_hashes_are_equal_where_rows_are() -> None:
    rows = np.random.default_rng(0).integers(0, 3, (500, 4)).astype(np.float32)
    hashes = row_hashes([rows[:100], rows[100:]])
    assert len(np.unique(hashes)) == len(np.unique(rows, axis=0))
    lines = duplicate_lines({"train": hashes[:400], "test": hashes[400:]})
    known = set(map(tuple, rows[:400]))
    assert f"{sum(tuple(r) in known for r in rows[400:])} of the 100 test examples" in lines[-1]
