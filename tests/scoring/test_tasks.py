"""Blocks that are scored one at a time by a function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.scoring import score, score_block
from tests.scoring.models import draw, small


@pytest.mark.usefixtures("unchecked")
def test_the_values_are_those_of_the_file(tmp_path: Path) -> None:
    x, out, folder = draw(40), tmp_path / "x.parquet", tmp_path / "run" / "model"
    small().save_pretrained(folder)
    score(small(), x, out, times=4, batch_size=16, tolerance=0.5, progress=False)
    blocks = [
        score_block(tmp_path / "run", x[16 * i : 16 * i + 16].numpy(), i, times=4, tolerance=0.5) for i in range(3)
    ]
    table = pandas.read_parquet(out)
    names = ["nelbo", "nelbo_stderr", "log_prob", "log_prob_stderr", "solver_error"]
    assert [list(block) for block in blocks] == [names] * 3
    for name in names:
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), table[name])
    bound = score_block(folder, x[:16], likelihood=False, times=4)
    assert list(bound) == names[:2]
    np.testing.assert_array_equal(bound["nelbo"], table["nelbo"][:16])


def test_a_model_that_has_changed_is_read_again(tmp_path: Path) -> None:
    x, options = draw(4), {"likelihood": False, "times": 2}
    small().save_pretrained(tmp_path / "model")
    before = score_block(tmp_path / "model", x, **options)["nelbo"]
    other = small()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.save_pretrained(tmp_path / "model")
    assert (score_block(tmp_path / "model", x, **options)["nelbo"] != before).all()


def test_classes_are_those_of_the_rows(tmp_path: Path) -> None:
    model, x = small(classes=3), draw(6)
    model.save_pretrained(tmp_path / "model")
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    found = score_block(tmp_path / "model", x, labels=labels, times=2, tolerance=0.1)
    expected = ndm.log_likelihood(model, x, labels=labels, tolerance=0.1).log_prob
    np.testing.assert_array_equal(found["log_prob"], expected.double())
    ones = score_block(tmp_path / "model", x, labels=1, times=2, tolerance=0.1)
    assert (ones["log_prob"] == found["log_prob"]).tolist() == (labels == 1).tolist()
    with pytest.raises(ValueError, match="the rows have no labels"):
        score_block(tmp_path / "model", x)
    with pytest.raises(ValueError, match=r"must be 0 \.\.\. 2"):
        score_block(tmp_path / "model", x, labels=3)
    with pytest.raises(ValueError, match="6 rows need one label each"):
        score_block(tmp_path / "model", x, labels=labels[:5])


def test_a_table_has_its_columns_in_any_order(tmp_path: Path) -> None:
    from ndm.data import Table

    frame = pandas.DataFrame({"a": np.linspace(-1, 1, 40), "b": np.linspace(3, 5, 40) ** 2})
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = Table(str(tmp_path / "x.csv"), kinds="auto")
    torch.manual_seed(0)
    net = ndm.networks.ResidualMLP(data.latent_shape[0], hidden=8, depth=1, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net), standardize=data.encoding)
    model.save_pretrained(tmp_path / "model")
    options = {"likelihood": False, "times": 2}
    expected = score_block(tmp_path / "model", frame.to_numpy(), **options)["nelbo"]
    np.testing.assert_array_equal(score_block(tmp_path / "model", frame[["b", "a"]], **options)["nelbo"], expected)
    with pytest.raises(ValueError, match="The block has no column 'b'"):
        score_block(tmp_path / "model", frame[["a"]], **options)
    small().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="does not know the names of its columns"):
        score_block(tmp_path / "other", frame, **options)
    with pytest.raises(ValueError, match="no rows"):
        score_block(tmp_path / "model", frame[:0], **options)
