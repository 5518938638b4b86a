"""Samples as files, and the classes they are drawn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.data.tablefile import TableFile
from ndm.networks import ResidualMLP
from ndm.samples import class_turns, classes_in_turn, formula_warning, require_place, sample_file, save_samples


def model(classes: int) -> ndm.NDM:
    return ndm.NDM(
        ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=4, depth=1, classes=classes))
    )


def test_every_class_in_turn() -> None:
    chosen = classes_in_turn(model(3), 7)
    assert chosen is not None
    assert chosen.tolist() == [0, 1, 2, 0, 1, 2, 0]
    one = classes_in_turn(model(3), 2, 1)
    assert one is not None
    assert one.tolist() == [1, 1]
    trained = classes_in_turn(model(4), 5, counts=[3, 0, 9])
    assert trained is not None
    assert trained.tolist() == [0, 2, 0, 2, 0]
    assert classes_in_turn(model(0), 5) is None
    turns = class_turns(model(3))
    assert turns is not None
    assert turns(slice(10**12 - 1, 10**12 + 2)).tolist() == [0, 1, 2]  # 10^12 - 1 is divisible by 3


def test_classes_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"--label must be .* 0 \.\.\. 2, got 3"):
        classes_in_turn(model(3), 2, 3)
    with pytest.raises(ValueError, match=r"no training examples; choose one of 0, 2"):
        classes_in_turn(model(3), 2, 1, [4, 0, 4])
    with pytest.raises(ValueError, match="trained without"):
        classes_in_turn(model(0), 2, 0)


def test_labels_are_beside_the_samples(tmp_path: Path) -> None:
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    for name in ("a.csv", "a.parquet", "a.npz"):
        save_samples(x, tmp_path / name, columns=("b", "label"), labels=labels)
    for table in (pandas.read_csv(tmp_path / "a.csv"), pandas.read_parquet(tmp_path / "a.parquet")):
        assert list(table) == ["b", "label", "label_"]
        assert table["label_"].tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(table[["b", "label"]].to_numpy(np.float32), x.numpy())
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["labels"].tolist() == [0, 1, 0, 1]
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "a.parquet", "a.npz"}


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npz", "x.png"])
def test_a_file_does_not_depend_on_the_blocks_it_is_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("ndm.samples.sinks.ROWS", 4)  # row groups
    x, labels = torch.randn(11, 2), torch.arange(11) % 3
    for folder, sizes in (("one", [11]), ("several", [1, 3, 0, 7])):
        (tmp_path / folder).mkdir()
        with sample_file(tmp_path / folder / name, 11, (2,), labels=labels.__getitem__) as file:
            for block in x.split(sizes):
                file.write(block)
            assert not (tmp_path / folder / name).exists()
    found = [tmp_path / folder / name for folder in ("one", "several")]
    if name == "x.png":
        assert found[0].read_bytes() == found[1].read_bytes()
        return
    for path in found:
        if name == "x.npz":
            with np.load(path) as arrays:
                assert set(arrays) == {"x", "labels"}
                assert (arrays["x"].dtype, arrays["labels"].dtype) == (np.float32, np.int64)
                values, classes = arrays["x"], arrays["labels"]
        else:
            table = pandas.read_csv(path) if name == "x.csv" else pandas.read_parquet(path)
            assert list(table) == ["x0", "x1", "label"]
            values, classes = table[["x0", "x1"]].to_numpy(np.float32), table["label"].to_numpy()
        np.testing.assert_array_equal(values, x.numpy())
        np.testing.assert_array_equal(classes, labels.numpy())


def test_arrays_are_those_that_numpy_writes(tmp_path: Path) -> None:
    x, labels = torch.randn(300, 2, 3), torch.arange(300) % 3
    save_samples(x, tmp_path / "x.npz", labels=labels)
    np.savez_compressed(tmp_path / "numpy.npz", x=x.numpy(), labels=labels.numpy())
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npz"])
def test_a_stop_leaves_no_half_file(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("the old ones")

    def stopped(error: BaseException) -> None:
        with sample_file(out, 10, (2,)) as file:
            file.write(torch.randn(4, 2))
            raise error

    for error in (KeyboardInterrupt(), ConnectionError("of another matter")):
        with pytest.raises(type(error)) as raised:
            stopped(error)
        assert raised.value is error
        assert [p.name for p in tmp_path.iterdir()] == [name]
        assert out.read_text() == "the old ones"


def test_a_file_that_lacks_samples_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5 samples .* got 4"), sample_file(tmp_path / "x.npz", 5, (2,)) as file:
        file.write(torch.randn(4, 2))
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_a_file(tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    with sample_file(out, 3, (2,)) as file:
        with pytest.raises(FileExistsError, match="Another process is writing"):
            save_samples(torch.zeros(1, 2), out)
        file.write(torch.ones(3, 2))
    assert len(pandas.read_csv(out)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_a_picture_of_too_many_is_refused(tmp_path: Path) -> None:
    for n, shape, most in ((10_001, (2,), "10,000"), (700, (3, 256, 256), "682")):
        with (
            pytest.raises(ValueError, match=f"at most {most} .*, got {n:,}: .*ends in .npz"),
            sample_file(tmp_path / "x.png", n, shape),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_formulas_are_kept_and_told(tmp_path: Path) -> None:
    names = ("=cmd|' /C calc'!A0", "+a", "-b", "@c", "\ttab", "\rreturn", 'quote"d', "d, in m", "e", "-1", "f;=1")
    x = -torch.rand(4, len(names))
    save_samples(x, tmp_path / "x.csv", columns=names)
    file = TableFile(tmp_path / "x.csv")
    assert file.choose(names) == names
    read = np.concatenate(list(file.pieces(names)))
    np.testing.assert_array_equal(read.astype(np.float32), x.numpy())  # also negative numbers are as they were
    said = formula_warning(tmp_path / "x.csv", [*names[:4], *names[6:9]])
    assert said is not None
    assert "'+a', '-b', '@c'; open" in said
    for name in names:
        told = formula_warning(Path("x.csv"), [name])
        assert (told is None) == (name in ('quote"d', "d, in m", "e", "-1")), name
    assert formula_warning(Path("x.npz"), names) is None
    assert formula_warning(Path("x.csv"), None) is None


def test_a_place_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mine")
    require_place(tmp_path / "x.csv", overwrite=True)
    for name, error in (("x.csv", FileExistsError), ("x.txt", ValueError), ("no/x.csv", FileNotFoundError)):
        with pytest.raises(error):
            require_place(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        require_place(tmp_path / "folder.csv", overwrite=True)
