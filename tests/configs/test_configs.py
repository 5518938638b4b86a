"""Every shipped configuration runs; and what a configuration means."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ndm
from ndm import configs
from ndm.cli import main
from ndm.configs.configuration import Configuration, read_data
from ndm.data import Digits, Pinwheel
from ndm.networks import ConvNet, ImageTransformer, UNet
from ndm.training import fit

SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.accelerator", "cpu"]


#: Of images that are not shipped: they have a small version of themselves, on images that are made.
IMAGES = [f"{data}{kind}" for data in ("mnist", "cifar10", "imagenet32", "imagenet64", "celebahq256")
          for kind in ("", "-identity", "-neural")]  # fmt: skip

#: Those that need data of the user's: they have a small version of themselves that does not.
TINY = ["table", "table-identity", "images", "images-ndm", *IMAGES]


def read(name: str, *overrides: str) -> Configuration:
    return Configuration.read(name, overrides, tiny=name in TINY)


@pytest.mark.slow
def test_every_data_set_has_its_three_configurations() -> None:
    assert set(configs.names()) == {"digits", "digits-identity", "toy", *TINY}
    kinds = {"": "Separable", "-identity": "Identity", "-neural": "Neural"}
    for name in IMAGES:
        kind = kinds[name[name.find("-") :] if "-" in name else ""]
        tree = yaml.safe_load(Configuration.read(name).text)
        assert tree["model"]["transform"]["class_path"].endswith(kind)
        baseline = yaml.safe_load(Configuration.read(f"{name.partition('-')[0]}-identity").text)
        del tree["model"]["transform"], baseline["model"]["transform"]
        if name == "mnist":
            make_indirect(tree["model"]["denoiser"])
            tree["model"]["schedule"]["init_args"]["gamma_min"] -= 3.0  # gamma_0 starts where its model wants it
            assert tree["training"].pop("transform_rate") == 0.3
            assert baseline["training"].pop("transform_rate") == 1.0
        assert tree == baseline  # they differ in one part, but for mnist, which is what was measured as the best


def test_a_table_and_its_baseline_differ_in_the_path_and_what_goes_with_it() -> None:
    tree, baseline = (yaml.safe_load(Configuration.read(name, tiny=True).text) for name in ("table", "table-identity"))
    make_indirect(tree["model"]["denoiser"])
    assert tree["model"].pop("transform")["init_args"]["gate"] == "sigma"  # log_prob is a density of the data
    assert baseline["model"].pop("transform")["class_path"].endswith("Identity")
    assert tree["training"].pop("transform_rate") < baseline["training"].pop("transform_rate")
    assert tree == baseline


def make_indirect(denoiser: dict) -> None:
    """Of a direct denoiser with an ODE, the other denoiser with the same network but for a head."""
    assert denoiser["class_path"].endswith("DirectDenoiser")
    assert denoiser["init_args"].pop("ode")
    assert denoiser["init_args"]["net"]["init_args"]["heads"] == 2
    denoiser["class_path"] = denoiser["class_path"].replace("Direct", "")
    denoiser["init_args"]["net"]["init_args"]["heads"] = 1
    denoiser["init_args"] |= {"time": "u", "path": "own", "clip": None, "clock": None}


SIZES = [
    ("mnist", 4.42),
    ("cifar10", 30.53),
    *(pytest.param(*size, marks=pytest.mark.slow) for size in (("imagenet32", 121.90), ("imagenet64", 237.39))),
    pytest.param("celebahq256", 113.61, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "millions"), SIZES)
def test_sizes_are_those_that_the_literature_and_the_texts_tell(name: str, millions: float) -> None:
    def size(kind: str) -> int:
        model = Configuration.read(name + kind, ["--data", "Patterns"]).build().model
        return sum(p.numel() for p in model.parameters())

    identity = size("-identity")
    assert identity / 1e6 == pytest.approx(millions, abs=0.005)
    for kind in ("", "-neural"):
        assert 0 < size(kind) - identity < 0.01 * identity


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_tiny_version_runs_end_to_end_within_a_minute(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    began = time.monotonic()
    assert main(["train", name, "--tiny", "--out", str(out), "--trainer.accelerator", "cpu"]) == 0
    assert main(["evaluate", str(out), "--steps", "3", "--max-examples", "8", "--no-likelihood"]) == 0
    assert main(["sample", str(out), "-n", "4", "--steps", "5", "--out", str(tmp_path / "samples.png")]) == 0
    assert time.monotonic() - began < 60
    assert list((out / "pictures").glob("*-samples.png"))


#: All of them run in the slow test above.
HEAVY = ("mnist", "images", "images-ndm")
SOME = [name for name in configs.names() if name not in IMAGES or name in ("images", "mnist")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in SOME])
def test_a_shipped_configuration_trains(name: str, tmp_path: Path) -> None:
    built = read(name, *SHORT).build()
    model = fit(
        built.model, built.data, tmp_path / "run", built.training, built.trainer, seed=built.seed, progress=False
    )
    x = built.data.test[:4]
    loaded = ndm.NDM.from_pretrained(tmp_path / "run" / "model").eval()
    torch.manual_seed(1)
    expected = model.bound(x).total
    torch.manual_seed(1)
    assert torch.equal(loaded.bound(x).total, expected)


def test_the_baseline_of_digits_is_as_large_and_differs_in_the_path_alone() -> None:
    neural, identity = (Configuration.read(name) for name in ("digits", "digits-identity"))
    sizes = [sum(p.numel() for p in c.build().model.parameters()) for c in (neural, identity)]
    assert abs(sizes[0] - sizes[1]) < 0.005 * sizes[1]
    trees = [yaml.safe_load(c.text) for c in (neural, identity)]
    assert trees[0]["model"].pop("transform") != trees[1]["model"].pop("transform")
    make_indirect(trees[0]["model"]["denoiser"])
    for tree in trees:  # F's parameters come from the denoiser's width
        tree["model"]["denoiser"]["init_args"]["net"]["init_args"].pop("multipliers")
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", SOME)
def test_the_text_is_the_whole_configuration(name: str, tmp_path: Path) -> None:
    first = read(name, "--training.learning_rate", "3e-4")
    (tmp_path / "again.yaml").write_text(first.text)
    assert Configuration.read(str(tmp_path / "again.yaml")).text == first.text
    tree = yaml.safe_load(first.text)
    assert tree["training"]["learning_rate"] == 3e-4
    assert tree["training"]["steps"] is None  # defaults are there, null ones too
    assert tree["trainer"]["max_time"] is None
    assert tree["model"]["denoiser"]["init_args"]["parameterization"] == "v"
    assert set(tree) == {"seed", "model", "data", "training", "trainer"}


def test_networks_get_the_number_of_features_of_the_data(tmp_path: Path) -> None:
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).tolist()
    lines = ["a,b,c,d,e", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    overrides = ["--data.path", str(tmp_path / "x.csv"), "--data.columns", "[e, b, c]"]
    configuration = Configuration.read("table", overrides)
    built = configuration.build()
    assert (built.model.transform.net.features, built.model.denoiser.net.features) == (3, 3)
    assert built.data.columns == ("e", "b", "c")
    (tmp_path / "again.yaml").write_text(configuration.text)
    tree = yaml.safe_load(configuration.text)
    assert tree["model"]["denoiser"]["init_args"]["net"]["init_args"]["features"] == 3
    assert read_data(tmp_path / "again.yaml").columns == ("e", "b", "c")
    given = Configuration.read("table", [*overrides, "--model.denoiser.net.features", "4"]).build()
    assert (given.model.transform.net.features, given.model.denoiser.net.features) == (3, 4)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_networks_get_the_number_of_channels_of_the_images(tmp_path: Path, mode: str, channels: int) -> None:
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        pixels = random.integers(0, 256, (8, 12, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze(), mode).save(folder / f"{i}.png")
    data = ["--data.path", str(folder), "--data.size", "8", "--data.cache", str(tmp_path / "cache")]
    small = ["--model.denoiser.net.width", "8", "--model.denoiser.net.groups", "4"]
    built = Configuration.read("images-ndm", [*data, *small]).build()
    assert (built.model.transform.net.channels, built.model.denoiser.net.channels) == (channels, channels)
    assert built.model.bound(built.data.test).total.isfinite().all()


def test_noise_gets_the_shape_of_the_data() -> None:
    built = Configuration.read("digits", ["--model.noise", "DimensionNoise"]).build()
    assert built.model.noise.coefficients.shape == (1, 5, 1, 8, 8)
    assert built.model.bound(built.data.test[:3]).total.isfinite().all()
    given = Configuration.read(
        "digits", ["--model.noise", "DimensionNoise", "--model.noise.shape", "[1, 1, 1]"]
    ).build()
    assert given.model.noise.coefficients.shape == (1, 5, 1, 1, 1)
    built = Configuration.read("digits", ["--model.noise", "FrequencyNoise", "--model.noise.bands", "4"]).build()
    assert built.model.noise.coefficients.shape == (1, 5, 1, 4)
    assert built.model.bound(built.data.test[:3]).total.isfinite().all()
    for part in (ndm.DimensionNoise, ndm.FrequencyNoise, lambda shape: ndm.LatentNoise(torch.nn.Identity(), shape)):
        with pytest.raises(ValueError, match="needs the shape of an example"):
            part(None)


@pytest.mark.parametrize("net", [UNet, ConvNet, ImageTransformer])
def test_a_network_that_is_not_told_its_channels_says_so(net: type) -> None:
    with pytest.raises(ValueError, match=f"{net.__name__} needs the number of channels"):
        net(None)


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
    with pytest.raises(ValueError, match="does not contain the data set"):
        read_data(tmp_path / "none.yaml")


# ---- a configuration that extends another, and its small version


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_configuration_can_extend_another(tmp_path: Path) -> None:
    middle = write(tmp_path / "middle.yaml", "extends: digits\ntraining: {ema: 0.5}\nseed: 3\n")
    last = write(
        tmp_path / "last.yaml",
        "extends: middle\nmodel:\n  transform:\n    class_path: Neural\n    init_args:\n"
        "      net: {class_path: ResidualMLP, init_args: {features: 64}}\n",
    )
    tree, digits = (yaml.safe_load(Configuration.read(name).text) for name in (last, "digits"))
    assert (tree["seed"], tree["training"]["ema"]) == (3, 0.5)
    assert tree["training"]["learning_rate"] == digits["training"]["learning_rate"]
    assert tree["model"]["denoiser"] == digits["model"]["denoiser"]
    transform = tree["model"]["transform"]["init_args"]
    assert transform["gate"] == "sigma2"  # Neural's own default, and not the gate of the transformation it replaces
    assert transform["net"]["init_args"]["hidden"] == 128
    assert (
        Configuration.read(write(tmp_path / "by-file.yaml", f"extends: {middle}\n")).text
        == Configuration.read(middle).text
    )


def test_a_part_of_the_same_class_is_changed_where_it_says_so(tmp_path: Path) -> None:
    over = write(tmp_path / "over.yaml", "extends: digits\nmodel: {transform: {init_args: {terms: 2, gate: sigma}}}\n")
    tree, digits = (yaml.safe_load(Configuration.read(name).text) for name in (over, "digits"))
    assert tree["model"]["transform"]["init_args"].pop("gate") == "sigma"
    digits["model"]["transform"]["init_args"].pop("gate")
    assert tree == digits


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends: digitz", "There is no configuration 'digitz'.*did you mean 'digits'"),
        ("extends: a.yaml", "extends itself"),
        ("tiny: 3", "tiny must be a section"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Configuration.read(write(tmp_path / "a.yaml", text))


def test_a_configuration_without_a_small_version() -> None:
    with pytest.raises(ValueError, match="digits has no section `tiny`"):
        Configuration.read("digits", tiny=True)


# ---- without a GPU


@pytest.mark.parametrize(("accelerator", "width", "said"), [("cpu", 16, True), ("gpu", 64, False)])
def test_images_get_a_small_network_on_a_cpu(accelerator: str, width: int, said: bool) -> None:
    configuration = Configuration.read("images", ["--data", "Patterns", "--trainer.accelerator", accelerator])
    assert configuration.values.model.denoiser.init_args.net.init_args.width == width
    assert configuration.values.trainer.precision == ("32-true" if accelerator == "cpu" else "bf16-mixed")
    assert [line for line in configuration.notes if "section cpu" in line] == list(configuration.notes)
    assert bool(configuration.notes) is said


def test_an_override_is_laid_over_the_section_cpu() -> None:
    options = ["--data", "Patterns", "--trainer.accelerator=cpu", "--model.denoiser.net.width", "24"]
    configuration = Configuration.read("images", options)
    assert configuration.values.model.denoiser.init_args.net.init_args.width == 24


def test_nothing_is_said_of_a_configuration_without_the_section() -> None:
    assert Configuration.read("table", ["--data.path", "x.csv", "--trainer.accelerator", "cpu"]).notes == ()


def test_numbers_take_the_place_of_auto(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(
        "a,b\n" + "".join(f"{(i * 37 % 101) / 7.3},{(i * i) % 11 + i / 100}\n" for i in range(120))
    )
    configuration = Configuration.read(
        "table", ["--data.path", str(tmp_path / "data.csv"), "--trainer.accelerator=cpu"]
    )
    built = configuration.build()
    text = yaml.safe_load(configuration.text)
    assert text["trainer"]["max_steps"] == built.trainer.max_steps == 1000
    assert text["training"]["batch_size"] == built.training.batch_size == len(built.data.train)
    assert text["training"]["base"] == "mixture"
    assert text["model"]["denoiser"]["init_args"]["net"]["init_args"]["hidden"] == 128
    assert "auto" not in {*map(str, text["training"].values()), *map(str, text["trainer"].values())} - {"cpu"}
