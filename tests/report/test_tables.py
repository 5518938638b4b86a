"""Pages on tables with columns of any kind: bars, shares of the bound, unlikely rows, calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from ndm.method.columns import Column
from ndm.method.encoding import TableEncoding
from ndm.report import report, tables
from ndm.report.findings import measure
from ndm.report.sections import columns, samples, summary
from ndm.report.subjects import Subject, named_data, subjects
from ndm.report.tables import TableFindings, cells_as_text, coordinate_names
from tests.report.conftest import train
from tests.report.pages import SECTIONS, SVG, Only, parse, section, words
from tests.report.pages import tables as tables_of

RUN = """
extends: table
model:
  transform:
    init_args: {net: {init_args: {hidden: 8}}}
  denoiser:
    init_args: {net: {init_args: {hidden: 8, depth: 1}}}
training: {batch_size: 64, keep: last}
trainer: {max_steps: 4, val_check_interval: 2, accelerator: cpu}
"""
SMALL = {"examples": 12, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> object:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TIMES": 4, "ROWS": 10, "DRAWS": 6, "STEPS": 4}.items():
            patch.setattr(tables, name, value)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shops")


@pytest.fixture(scope="module")
def shop(folder: Path) -> Path:
    """240 rows: a category with holes, a price with many zeros, ratings, and a real column with holes."""
    random = np.random.default_rng(0)
    kind = random.choice(["<b>tea", "coffee", None], 240, p=[0.5, 0.3, 0.2])
    price = np.where(random.random(240) < 0.4, 0.0, random.gamma(2.0, 3.0, 240))
    weight = np.where(random.random(240) < 0.1, np.nan, random.normal(5, 2, 240))
    rows = {"kind": kind, "price": price, "stars": random.integers(1, 6, 240), "weight": weight}
    pandas.DataFrame(rows).to_csv(folder / "shop.csv", index=False)
    return folder / "shop.csv"


@pytest.fixture(scope="module")
def run(folder: Path, shop: Path) -> Path:
    return train(RUN, folder / "shop", "--data.path", str(shop), "--training.conditionals", "any")


@pytest.fixture(scope="module")
def conditional_run(folder: Path, shop: Path) -> Path:
    """The price given all other columns."""
    return train(RUN, folder / "priced", "--data.path", str(shop), "--data.given", "[kind, stars, weight]")


@pytest.fixture(scope="module")
def page(folder: Path, run: Path) -> Path:
    return report([run], folder / "shop.html", **SMALL)


def one(path: Path, n: int = 12) -> Subject:
    subject = subjects([path], torch.device("cpu"))[0]
    subject.take_examples(n, named_data)
    return subject


@pytest.fixture(scope="module")
def found(run: Path) -> TableFindings:
    table = measure(one(run), 0).table
    assert table is not None
    return table


@pytest.mark.slow
def test_a_page_of_a_mixed_table_is_right_html_with_all_sections(page: Path) -> None:
    root = parse(page)
    expected = [*SECTIONS[:3], "columns", *SECTIONS[3:]]
    assert [e.get("id") for e in root.iter("section")] == expected
    assert not list(root.iter("b"))
    assert "4 columns: 2 real, 1 whole, 1 categorical" in words(section(root, "summary"))
    drawn = " ".join(words(t) for t in section(root, "samples").iter(SVG + "text"))
    assert "missing" in drawn
    assert "<b>tea" in drawn
    assert "coffee" in drawn


@pytest.mark.slow
def test_the_shares_sum_to_the_bound(page: Path, found: TableFindings) -> None:
    assert found.shares is not None
    assert found.shares.shape == (12, 4)
    rows = tables_of(parse(page))["Shares of the bound by column, nats"]
    assert [row[:2] for row in rows[1:]] == [
        ["kind", "categorical"], ["price", "real"], ["stars", "whole"], ["weight", "real"], ["sum, the bound", ""]
    ]  # fmt: skip
    means = [float(row[2].split(" ")[0].replace("−", "-")) for row in rows[1:]]
    assert sum(means[:-1]) == pytest.approx(means[-1], abs=0.3)
    assert found.shares.sum(1).mean() == pytest.approx(means[-1], rel=0.05)


@pytest.mark.slow
def test_the_most_unlikely_rows_have_their_cells_as_in_the_file(page: Path, run: Path, shop: Path) -> None:
    head, *rows = tables_of(parse(page))["The most unlikely test rows of shop"]
    assert head[3:] == ["kind", "price", "stars", "weight"]
    assert len(rows) == columns.ROWS
    bounds = [float(row[1].replace("−", "-")) for row in rows]
    assert bounds == sorted(bounds, reverse=True)
    split = one(run).data.examples("test").double().numpy()
    file = pandas.read_csv(shop)
    for place, _, why, kind, price, stars, weight in rows:
        cells = split[int(place)]
        assert float(price) == pytest.approx(cells[1], rel=1e-4)
        assert int(stars) == cells[2]
        assert weight == "missing" if np.isnan(cells[3]) else float(weight) == pytest.approx(cells[3], rel=1e-4)
        assert kind in {"missing", *file["kind"].dropna()}
        assert why.split(",")[0] in head


@pytest.mark.slow
def test_calibration_is_shown_for_two_columns_of_a_model_with_conditionals(found: TableFindings, page: Path) -> None:
    assert list(found.pit) == ["price", "weight"]
    assert all(((v >= 0) & (v <= 1)).all() for v in found.pit.values())
    assert "price given the others" in words(section(parse(page), "columns"))


@pytest.mark.slow
def test_a_model_of_one_column_given_the_others_is_calibrated_and_sampled_given_them(conditional_run: Path) -> None:
    subject = one(conditional_run)
    found = measure(subject, 0)
    assert found.table is not None
    assert list(found.table.pit) == ["price"]
    assert np.allclose(found.table.shares[:, [0, 2, 3]], 0)
    known = subject.examples.double()[:, [0, 2, 3]]
    assert torch.equal(found.samples[:12, [0, 2, 3]].nan_to_num(-1), known.nan_to_num(-1))
    assert found.walk.z.shape[2] == 2  # the code and the value of the price
    subject.examples = None
    with pytest.raises(ValueError, match="needs the columns kind, stars, weight"):
        measure(subject, 0)


def test_without_the_data_the_samples_are_shown_alone(run: Path, folder: Path, only: Only) -> None:
    only(summary, columns, samples)
    (folder / "shop.csv").rename(folder / "moved.csv")
    try:
        root = parse(report([run], folder / "alone.html", **SMALL))
    finally:
        (folder / "moved.csv").rename(folder / "shop.csv")
    assert [e.get("id") for e in root.iter("section")] == ["summary", "samples"]
    assert "test rows" not in [words(e) for e in root.iter("figcaption")]


def test_levels_with_equal_chances_give_uniform_transforms(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = one(run)
    rows = subject.examples.double().repeat(200, 1)
    rows[:, 2] = torch.arange(len(rows)) % 5 + 1
    monkeypatch.setattr(tables, "class_probabilities", lambda *a, **k: torch.full((len(rows), 5), 0.2))
    found = tables._transform(subject.model, subject.encoding, rows, 2, 0, np.random.default_rng(0))
    assert np.histogram(found, 10, (0, 1))[0] / len(rows) == pytest.approx(0.1, abs=0.03)


def test_names_of_coordinates_and_cells_as_text() -> None:
    encoding = TableEncoding.of(
        [
            Column("a", "categorical", ("x", "y", "z"), (3, 2, 1), rest=None, storage="text"),
            Column("b", "real", (0.0,), (5, 5)),
            Column("c", "whole", (1.0, 2.0), (4, 4, 2), missing=True, rest=None, storage="int"),
        ]
    )
    assert coordinate_names(encoding, [0, 1, 2]) == [
        "a, code 1", "a, code 2", "b, code 1", "b", "c, code 1", "c, code 2"
    ]  # fmt: skip
    rows = np.array([[0, 0.25, np.nan], [2, 1e6 / 3, 2]])
    assert cells_as_text(encoding, rows) == [["x", "0.25", "missing"], ["z", "333333", "2"]]
