"""Lengths, batches and bases that are chosen from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import ndm
from ndm.data import Pinwheel, Table, Tensors
from ndm.evaluation import bound_per_example
from ndm.evaluation.baselines import gaussian_mixture
from ndm.evaluation.table_mixtures import table_mixture
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP
from ndm.training import TrainerOptions, TrainingOptions
from ndm.training.automatic import add_base, resolve, width


def auto(data: Any, batch_size: Any = "auto", **limits: Any) -> tuple[TrainingOptions, TrainerOptions, str]:
    return resolve(TrainingOptions(batch_size=batch_size), TrainerOptions(accelerator="cpu", **limits), data)


def pixels(train: int, validation: int) -> Tensors:
    return Tensors(train=torch.zeros(train, 1, 4, 4), validation=torch.zeros(validation, 1, 4, 4))


@pytest.mark.parametrize(
    ("rows", "batch", "steps"), [(322, 322, 1000), (2671, 512, 1566), (15_125, 512, 8863), (100_000, 512, 20_000)]
)
def test_the_length_follows_the_number_of_rows(rows: int, batch: int, steps: int) -> None:
    training, trainer, said = auto(Pinwheel(train=rows, validation=50, test=1))
    assert (training.batch_size, trainer.max_steps) == (batch, steps)
    assert trainer.val_check_interval == max(1, steps // 50)  # the first validation is within a fiftieth of the run
    assert trainer.val_examples is None
    assert f"{rows:,}" in said
    assert f"trainer.max_steps {steps:,}" in said


def test_a_given_number_is_kept() -> None:
    training, trainer, said = auto(
        Pinwheel(train=322, validation=50, test=1), batch_size=64, max_steps=70, val_check_interval=7, val_examples=20
    )
    assert (training.batch_size, trainer.max_steps, trainer.val_check_interval, trainer.val_examples) == (64, 70, 7, 20)
    assert said == ""


def test_the_time_decides_where_it_alone_is_given() -> None:
    _, trainer, _ = auto(Pinwheel(train=322, validation=50, test=1), max_time=60.0)
    assert trainer.max_steps is None


def test_images_on_a_cpu_get_small_batches_and_short_validations() -> None:
    training, trainer, _ = auto(pixels(1000, 600))
    assert training.batch_size == 32
    assert trainer.max_steps == 3125  # a hundred passes
    assert trainer.val_examples == 256


@pytest.mark.parametrize(("features", "wanted"), [(2, 128), (32, 128), (33, 192), (64, 256), (1000, 512)])
def test_the_width_grows_with_the_number_of_features(features: int, wanted: int) -> None:
    assert width(Tensors(train=torch.zeros(2, features))) == wanted


def denoiser() -> ndm.Denoiser:
    return ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1))


@pytest.mark.slow
def test_the_start_is_the_mixture_that_the_validation_split_chooses() -> None:
    data, one = Pinwheel(train=900, validation=400, test=400), denoiser()
    standardize = ndm.Standardize.fit(data.train)
    training, said = add_base(TrainingOptions(base="mixture"), one, data, standardize, seed=0)
    assert training.base == "mixture"
    assert one.base is not None
    assert f"{one.base.components} component" in said
    model = ndm.NDM(ndm.LinearSchedule(-10.0, 8.0), ndm.Identity(), one, standardize=standardize)
    want = gaussian_mixture(standardize(data.train), standardize(data.validation)).log_prob(standardize(data.test))
    want = want - standardize._scale.log().sum()  # scikit-learn's own density, in the data's units
    found = ndm.log_likelihood(model, data.test).log_prob.double()
    assert abs((found - want).mean()) < 0.02


@pytest.mark.parametrize(("rows", "base", "word"), [(1000, "auto", "none"), (900, "none", "none")])
def test_more_rows_start_from_nothing(rows: int, base: Any, word: str) -> None:
    one = denoiser()
    training, said = add_base(
        TrainingOptions(base=base), one, Pinwheel(train=rows, validation=40, test=1), None, seed=0
    )
    assert (training.base, said, one.base) == (word, "", None)


def mixed_table(path: Path, rows: int) -> Table:
    """A table whose categories tell a number that is zero in a third of the rows."""
    random = np.random.default_rng(0)
    kind = random.integers(0, 2, rows)
    value = np.where(random.random(rows) < 1 / 3, 0.0, random.normal(4.0 * kind, 1.0))
    frame = pandas.DataFrame(
        {"kind": np.array(["a", "b"])[kind], "value": value, "other": value + random.normal(size=rows)}
    )
    frame.to_csv(path / "t.csv", index=False)
    return Table(str(path / "t.csv"), kinds="auto")


def denoiser_of(data: Table, **options: Any) -> ndm.MixedDenoiser:
    assert data.encoding is not None
    layouts, (d,) = data.encoding.layouts(), data.encoding.latent_shape
    net = ResidualMLP(d, 8, 1, outputs=outputs_for(layouts), context=6 if options.get("conditionals") == "any" else 0)
    return ndm.MixedDenoiser(net, layouts, **options)


def test_few_rows_of_several_kinds_start_from_a_mixture(tmp_path: Path) -> None:
    data = mixed_table(tmp_path, 600)
    one = denoiser_of(data)
    training, said = add_base(TrainingOptions(), one, data, data.encoding, seed=0)
    assert training.base == "mixture"
    assert one.base is not None
    assert f"a mixture of {one.base.components} component" in said
    assert data.encoding is not None
    layouts = data.encoding.layouts()
    model = ndm.NDM(
        ndm.LinearSchedule(-9.0, 10.0), ndm.Identity(), one, ndm.MixedDecoder(layouts), standardize=data.encoding
    )
    mixture = table_mixture(data.encoding, data.train, data.validation)
    gap = mixture.log_prob(data.test) + bound_per_example(model, data.test, None)["total"]
    assert abs(gap.mean()) < 0.1 + 3 * gap.std() / len(gap) ** 0.5


@pytest.mark.slow
def test_a_mixture_of_many_components_is_no_start(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.normal(size=(800, 2)) / 20 + 3 * random.integers(0, 5, (800, 2)))
    data = Tensors(train=rows[:700].float(), validation=rows[700:].float())
    one = denoiser()
    training, said = add_base(TrainingOptions(), one, data, None, seed=0)
    assert (training.base, one.base) == ("none", None)
    assert said.startswith("the denoiser does not start from a Gaussian mixture of ")
    training, said = add_base(TrainingOptions(base="mixture"), one, data, None, seed=0)
    assert one.base is not None
    assert one.base.components > 4


@pytest.mark.parametrize(("rows", "options"), [(2000, {}), (300, {"conditionals": "any"}), (300, {"given": [0]})])
def test_a_conditional_or_a_long_table_starts_from_nothing(rows: int, options: dict[str, Any], tmp_path: Path) -> None:
    data = mixed_table(tmp_path, rows)
    one = denoiser_of(data, **options)
    training, said = add_base(TrainingOptions(), one, data, data.encoding, seed=0)
    assert (training.base, said, one.base) == ("none", "", None)
    if options:
        with pytest.raises(ValueError, match=r"no conditionals or given columns; set training\.base=none"):
            add_base(TrainingOptions(base="mixture"), one, data, data.encoding, seed=0)


def test_a_mixture_of_images_is_refused() -> None:
    data = pixels(100, 60)
    with pytest.raises(ValueError, match=r"training\.base=none"):
        add_base(TrainingOptions(base="mixture"), denoiser(), data, None, seed=0)
