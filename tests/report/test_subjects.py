"""What is read of a run's folder, and what is said where something is missing or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ndm.data import Pinwheel, part_of
from ndm.evaluation import row_name
from ndm.report.grouping import groups, same_data
from ndm.report.subjects import Subject, named_data, subjects

CPU = torch.device("cpu")


def one(path: Path, n: int = 8, data=named_data) -> Subject:
    subject = subjects([path], CPU)[0]
    subject.take_examples(n, data)
    return subject


@pytest.fixture
def copied(points: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(points, tmp_path / "copy"))


def test_a_run_is_read(points: Path, images: Path, table: Path) -> None:
    plane, picture, rows = (one(path) for path in (points, images, table))
    assert [s.kind for s in (plane, picture, rows)] == ["plane", "image", "columns"]
    assert [s.unit for s in (plane, picture, rows)] == ["nats", "bits/dim", "nats"]
    assert [s.classes for s in (plane, picture, rows)] == [0, 3, 0]
    assert picture.nat == pytest.approx(1 / (3 * 8 * 8 * 0.6931471805599453))
    assert plane.training_steps_of_bound() is None
    assert picture.training_steps_of_bound() == 5
    assert plane.steps == 12
    assert rows.column_names()[1] == "<i>$b_{$, in m"
    assert plane.column_names() == ["x1", "x2"]
    assert plane.parameters("transform") == sum(p.numel() for p in plane.model.transform.parameters())
    assert rows.parameters("transform") == 0
    assert picture.labels is not None
    assert picture.sample_labels(4).tolist() == [0, 1, 2, 0]


def test_examples_are_a_random_part_of_the_test_split(points: Path) -> None:
    data = named_data(points / "config.yaml")
    torch.testing.assert_close(one(points, 4).examples, data.test[part_of(40, 4, seed=0)], rtol=0, atol=0)
    torch.testing.assert_close(one(points, 400).examples, data.test)
    subject = one(points, 4)
    torch.testing.assert_close(subject.model.from_model(subject.x), subject.examples)


def test_names_are_as_short_as_they_can_be(points: Path, tmp_path: Path) -> None:
    paths = [shutil.copytree(points, tmp_path / a / b) for a, b in (("p", "run"), ("q", "run"), ("q", "other"))]
    assert [s.name for s in subjects(paths[1:], CPU)] == ["run", "other"]
    assert [s.name for s in subjects(paths, CPU)] == ["p/run", "q/run", "q/other"]
    with pytest.raises(ValueError, match="given twice"):
        subjects([paths[0], tmp_path / "p" / ".." / "p" / "run"], CPU)
    with pytest.raises(ValueError, match="at least one"):
        subjects([], CPU)


def test_seconds_are_those_of_the_steps(copied: Path) -> None:
    (copied / "metrics.csv").write_text(
        "step,train/total,train/ms_per_step,val/total\n10,3.0,100,\n10,,,2.5\n30,2.0,50,\n40,nan,,1.5\n"
    )
    subject = one(copied)
    assert subject.clock == [(0.0, 0.0), (10.0, 1.0), (30.0, 2.0)]
    assert subject.seconds_at(20) == pytest.approx(1.5)
    curve = subject.curve("val/total")
    assert (curve.steps, curve.seconds, curve.values) == ([10.0, 40.0], [1.0, 2.0], [2.5, 1.5])
    assert subject.curve("train/total").values == [3.0, 2.0]
    assert subject.curve("train/prior") is None
    assert subject.steps == 40
    assert subject.last_validation == "1.5"


def test_the_errors_are_those_of_their_steps(copied: Path) -> None:
    (copied / "metrics.csv").write_text("step,val/total,val/total_stderr\n1,3,0.2\n2,nan,0.1\n3,2,\n4,1,0.3\n")
    subject = one(copied)
    curve = subject.curve("val/total")
    assert curve.values == [3.0, 2.0, 1.0]
    assert str(subject.errors(curve)) == "[0.2, nan, 0.3]"
    assert subject.last_validation == "1.00 ± 0.30"


def test_what_is_missing_is_done_without(copied: Path) -> None:
    for name in ("metrics.csv", "evaluation.json", "config.yaml"):
        (copied / name).unlink()
    subject = one(copied)
    assert subject.logged == []
    assert subject.evaluation is None
    assert subject.config == {}
    assert subject.steps == 0
    assert subject.x is None
    assert "no config.yaml" in subject.lacking


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("evaluation.npz", "PK", "evaluate the run again"),
        ("config.yaml", "a: [", "not a configuration"),
        ("config.yaml", "- a\n", "not a configuration"),
        ("evaluation.json", "{", "evaluate the run again"),
        ("evaluation.json", '{"rows": [{"quantity": "bound"}]}', "evaluate the run again"),
        ("evaluation.json", '{"rows": [], "about": 3}', "evaluate the run again"),
        ("metrics.csv", "step,val/total\n1,a\n", "damaged"),
        ("environment.json", "[1]", "damaged"),
        ("data.json", "{}", "damaged"),
    ],
)
def test_a_damaged_file_is_refused(copied: Path, name: str, text: str, message: str) -> None:
    (copied / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        subjects([copied], CPU)


def test_values_of_examples_belong_to_their_figures(copied: Path) -> None:
    written = json.loads((copied / "evaluation.json").read_text())
    values = one(copied).per_example
    assert {name: x.mean().item() for name, x in values.items()} == {
        row_name(row): pytest.approx(row["value"], rel=1e-12) for row in written["rows"]
    }
    written["rows"][0]["value"] *= 1.001
    written["rows"][1]["examples"] += 1
    (copied / "evaluation.json").write_text(json.dumps(written))
    assert list(one(copied).per_example) == [row_name(row) for row in written["rows"][2:]]
    (copied / "evaluation.npz").unlink()
    assert one(copied).per_example == {}


def test_a_folder_that_is_no_run_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run"):
        subjects([copied, tmp_path / "none"], CPU)
    shutil.rmtree(copied / "model")
    with pytest.raises(FileNotFoundError, match="no trained model"):
        subjects([copied], CPU)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("data: {class_path: os.path}", "not one of ndm.data"),
        ("data: {class_path: ndm.data.Examples}", "not one of ndm.data"),
        ("data: {class_path: ndm.data.Pinwheel, init_args: {size: 3}}", "do not fit"),
        ("data: 3", "does not contain"),
        ("seed: 3", "does not contain"),
        ("data: {class_path: ndm.data.Digits}", "shape"),
        ("data: {class_path: ndm.data.Table, init_args: {path: nowhere.csv}}", "nowhere.csv"),
    ],
)
def test_data_that_cannot_be_read_are_said_to_be_so(copied: Path, section: str, message: str) -> None:
    (copied / "config.yaml").write_text(section + "\n")
    subject = one(copied)
    assert subject.examples is None
    assert message in subject.lacking
    assert "\n" not in subject.lacking


def test_a_data_set_of_the_users_own(copied: Path) -> None:
    (copied / "config.yaml").write_text("data: {class_path: mine.Own}\n")
    assert one(copied, data=lambda path: Pinwheel(train=4, validation=4, test=6)).examples.shape == (6, 2)


def test_runs_of_the_same_data_are_grouped(points: Path, baseline: Path, table: Path) -> None:
    found = subjects([points, table, baseline], CPU)
    assert [[s.index for s in group] for group in groups(found)] == [[0, 2], [1]]
    for subject in found:
        subject.take_examples(8, named_data)
    assert same_data(found[0], found[2])
    found[2].examples = found[2].examples + 1
    assert not same_data(found[0], found[2])
    found[2].examples, found[0].config = None, {}
    assert not same_data(found[0], found[2])


def test_the_environment_is_what_was_written(copied: Path) -> None:
    assert one(copied).environment["torch"] == torch.__version__
    (copied / "environment.json").write_text(json.dumps({"torch": "2.9", "threads": 2}))
    assert one(copied).environment == {"torch": "2.9", "threads": 2}
