"""Every shipped configuration runs; and what a configuration means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import ndm
from ndm import configs
from ndm.configs.configuration import Configuration, read_data
from ndm.data import Digits, Pinwheel
from ndm.training import fit

SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.accelerator", "cpu"]


@pytest.mark.parametrize("name", configs.names())
def test_a_shipped_configuration_trains(name: str, tmp_path: Path) -> None:
    built = Configuration.read(name, SHORT).build()
    model = fit(
        built.model, built.data, tmp_path / "run", built.training, built.trainer, seed=built.seed, progress=False
    )
    x = built.data.test[:4]
    loaded = ndm.NDM.from_pretrained(tmp_path / "run" / "model").eval()
    torch.manual_seed(1)
    expected = model.bound(x).total
    torch.manual_seed(1)
    assert torch.equal(loaded.bound(x).total, expected)


def test_the_baseline_differs_from_digits_in_the_transformation_and_is_as_large() -> None:
    neural, identity = (Configuration.read(name) for name in ("digits", "digits-identity"))
    sizes = [sum(p.numel() for p in c.build().model.parameters()) for c in (neural, identity)]
    assert abs(sizes[0] - sizes[1]) < 0.005 * sizes[1]
    trees = [yaml.safe_load(c.text) for c in (neural, identity)]
    assert trees[0]["model"].pop("transform") != trees[1]["model"].pop("transform")
    for tree in trees:  # F's parameters come from the denoiser's width
        tree["model"]["denoiser"]["init_args"]["net"]["init_args"].pop("multipliers")
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", configs.names())
def test_the_text_is_the_whole_configuration(name: str, tmp_path: Path) -> None:
    first = Configuration.read(name, ["--training.learning_rate", "3e-4"])
    (tmp_path / "again.yaml").write_text(first.text)
    assert Configuration.read(str(tmp_path / "again.yaml")).text == first.text
    tree = yaml.safe_load(first.text)
    assert tree["training"]["learning_rate"] == 3e-4
    assert tree["training"]["steps"] is None  # defaults are there, null ones too
    assert tree["trainer"]["max_time"] is None
    assert tree["model"]["denoiser"]["init_args"]["parameterization"] == "v"
    assert set(tree) == {"seed", "model", "data", "training", "trainer"}


def test_the_seed_gives_the_initial_weights() -> None:
    def weights(*overrides: str) -> torch.Tensor:
        return torch.cat([p.flatten() for p in Configuration.read("toy", overrides).build().model.parameters()])

    torch.rand(3)
    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("--seed", "1"))


def test_a_part_of_another_class_takes_nothing_over() -> None:
    swap = [
        "--model.transform",
        "Neural",
        "--model.transform.net",
        "ResidualMLP",
        "--model.transform.net.features",
        "64",
    ]
    net = Configuration.read("digits", swap).build().model.transform.net
    assert isinstance(net, ndm.networks.ResidualMLP)
    assert net.heads == 1  # Separable's had four, and did not see the noise level
    assert net.level


def test_a_part_of_the_same_class_keeps_its_arguments() -> None:
    for key in ("--model.transform.terms", "--model.transform.init_args.terms"):
        overrides = ["--model.transform", "Separable", f"{key}=2", "--model.transform.net.heads=2"]
        transform = Configuration.read("digits", overrides).build().model.transform
        assert (transform.terms, transform.net.heads, transform.net.level) == (2, 2, False)


def test_a_network_within_a_part_is_swapped_alone() -> None:
    swap = ["--model.denoiser.net", "UNet", "--model.denoiser.net.channels", "1", "--model.denoiser.net.width", "8"]
    model = Configuration.read("digits-identity", swap).build().model
    assert isinstance(model.denoiser.net, ndm.networks.UNet)
    assert isinstance(model.denoiser, ndm.Denoiser)


def test_continuous_data_are_standardised_unless_told_otherwise() -> None:
    built = Configuration.read("toy").build()
    x = built.model.to_model(built.data.train)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(2), atol=1e-5, rtol=0)
    assert Configuration.read("toy", ["--training.standardize", "false"]).build().model.standardize is None
    assert Configuration.read("digits").build().model.standardize is None


def test_the_data_of_a_run_are_read_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(Configuration.read("toy", ["--data.train", "7", "--data.blades", "3"]).text)
    data = read_data(tmp_path / "config.yaml")
    assert isinstance(data, Pinwheel)
    assert (len(data.train), data.blades) == (7, 3)
    (tmp_path / "short.yaml").write_text("data: Digits")
    assert isinstance(read_data(tmp_path / "short.yaml"), Digits)
    (tmp_path / "none.yaml").write_text("seed: 3")
    with pytest.raises(ValueError, match="does not say what data"):
        read_data(tmp_path / "none.yaml")
