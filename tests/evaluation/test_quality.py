"""FID and KID against numpy and scipy, over several processes, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import textwrap
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import torch
import torchmetrics.image.fid
from torch import Tensor, nn

from ndm.evaluation import quality
from ndm.evaluation.quality import QualityScores, feature_network, fid_kid
from ndm.networks import ResidualMLP
from ndm.storage.checkpoints import save_part

IMAGE = (1, 4, 4)


def network(dtype: torch.dtype = torch.float64) -> ResidualMLP:
    """A feature network of 16 features."""
    torch.manual_seed(3)
    return ResidualMLP(16, hidden=8, depth=1, level=False, zero_init=False).to(dtype)


def images(n: int, shift: float = 0.0, seed: int = 1) -> Tensor:
    noise = torch.randn(n, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.3 * noise + shift).clamp(-1, 1)


def features(x: Tensor) -> np.ndarray:
    return network()(x).flatten(1).detach().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate, by loops over pairs."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / len(x) + 1) ** 3

    same_a = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    same_b = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    return float(same_a + same_b - 2 * np.mean([k(x, y) for x in a for y in b]))


# ---- the distances


def test_both_distances_are_the_formulas() -> None:
    real, generated = images(60), images(60, 0.4, seed=2)
    scores = fid_kid(real.split(25), iter(generated.split(7)), network(), kid_subsets=3)
    assert scores.fid == pytest.approx(frechet(features(real), features(generated)), rel=1e-6)
    assert scores.kid == pytest.approx(mmd(features(real), features(generated)), rel=1e-8)
    assert scores.kid_std == pytest.approx(0, abs=1e-12)  # every subset is all of them
    assert (scores.examples_real, scores.examples_generated, scores.features) == (60, 60, "ResidualMLP")
    assert scores == QualityScores(**json.loads(json.dumps(scores.to_dict())))
    assert scores.fid > 0.1


def test_single_precision_is_enough_for_the_network_and_double_is_used_after_it() -> None:
    real, generated = images(60).float(), images(60, 0.4, seed=2).float()
    single = fid_kid([real], [generated], network(torch.float32))
    double = fid_kid([real.double()], [generated.double()], network())
    assert single.fid == pytest.approx(double.fid, rel=1e-4)
    assert single.kid == pytest.approx(double.kid, rel=1e-4)


def test_subsets_are_an_unbiased_estimate_that_the_seed_decides() -> None:
    real, generated = images(80), images(70, 0.4, seed=2)

    net = network()

    def scores(**options) -> QualityScores:
        return fid_kid([real], [generated], net, kid_subset_size=20, **options)

    state = torch.get_rng_state()
    many = scores(kid_subsets=400)
    assert scores(kid_subsets=5) == scores(kid_subsets=5)
    assert scores(kid_subsets=5).kid != scores(kid_subsets=5, seed=1).kid
    assert torch.equal(torch.get_rng_state(), state)
    whole = mmd(features(real), features(generated))
    assert many.kid == pytest.approx(whole, abs=4 * many.kid_std / 20)
    assert many.kid_std > 0.01 * whole


def test_neither_order_nor_batches_matter() -> None:
    real, generated = images(80), images(70, 0.4, seed=2)
    options = {"kid_subset_size": 20, "kid_subsets": 5}
    one = fid_kid([real], [generated], network(), **options)
    other = fid_kid(real.flip(0).split(9), generated[torch.randperm(70)].split(70), network(), **options)
    assert other.fid == pytest.approx(one.fid, rel=1e-6)
    assert other.kid == pytest.approx(one.kid, rel=1e-9)


def test_the_same_images_are_at_no_distance() -> None:
    scores = fid_kid([images(50)], [images(50)], network())
    assert scores.fid == pytest.approx(0, abs=1e-6)
    assert scores.kid < 0  # the estimate is unbiased, and leaves an image's likeness to itself out on one side only


def test_the_network_is_left_as_it_was() -> None:
    net = network().train()
    fid_kid([images(9)], [images(9, seed=2)], net)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.slow
def test_processes_that_share_the_work_agree_with_one(tmp_path: Path) -> None:
    """With unequal shares and unequal numbers of batches; and a process without images stops all of them."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import json, sys
            import torch
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from test_quality import images, network
            from ndm.evaluation.quality import fid_kid

            rank = int(sys.argv[1])
            torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
            real, generated = images(80).split(10), images(70, 0.4, seed=2).split(10)
            mine = (real[:3], generated[:6]) if rank == 0 else (real[3:], generated[6:])
            scores = fid_kid(*mine, network(), kid_subsets=5, kid_subset_size=20)
            try:
                fid_kid(mine[0], generated if rank == 0 else [], network())
            except ValueError as error:
                print(json.dumps([scores.to_dict(), str(error)]))
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, program, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
    alone = fid_kid(
        images(80).split(10), images(70, 0.4, seed=2).split(10), network(), kid_subsets=5, kid_subset_size=20
    )
    for scores, error in found:
        assert (scores["examples_real"], scores["examples_generated"]) == (80, 70)
        assert scores["fid"] == pytest.approx(alone.fid, rel=1e-6)  # roots of eigenvalues near zero
        assert scores["kid"] == pytest.approx(alone.kid, rel=1e-12)
        assert scores["kid_std"] == pytest.approx(alone.kid_std, rel=1e-12)
        assert "Every process must be given at least one batch" in error


@pytest.mark.parametrize(
    ("real", "generated", "options", "sentence"),
    [
        ([], [images(5)], {}, "at least one batch"),
        ([images(5)], [], {}, "at least one batch"),
        ([images(1)], [images(5)], {}, r"at least two real and two generated examples, got \(1, 5\)"),
        ([images(5)], [images(5) * torch.nan], {}, "not finite"),
        ([images(5)], [images(4)], {"kid_subset_size": 5}, "to the number of examples, 4"),
        ([images(5)], [images(4)], {"kid_subset_size": 1}, "from 2 to"),
        ([images(5)], [images(4)], {"kid_subsets": 0}, "kid_subsets=0"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(real, generated, options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fid_kid(real, generated, network(), **options)


# ---- feature networks


def test_a_saved_part_is_a_feature_network(tmp_path: Path) -> None:
    path = save_part(network(), tmp_path / "features")
    by_path = fid_kid([images(20)], [images(20, 0.1, seed=2)], str(path))
    assert by_path.features == str(path)
    assert by_path.fid == fid_kid([images(20)], [images(20, 0.1, seed=2)], network()).fid


def test_names_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no feature network 'vgg'"):
        feature_network("vgg")
    with pytest.raises(FileNotFoundError, match="no saved model"):
        feature_network(str(tmp_path))
    with pytest.raises(ValueError, match="only be given for inception"):
        feature_network(str(tmp_path), weights="file.pth")


# ---- Inception; its weights are not here, so a network with torchmetrics' and torch-fidelity's manners plays it


class Extractor(nn.Module):
    """Loads a file as torch-fidelity does, with whatever code is in it; the features are the corners of the image."""

    def __init__(self, name: str, features_list: list[str], path: io.BytesIO, antialias: bool) -> None:
        super().__init__()
        assert (name, features_list, antialias) == ("inception-v3-compat", ["2048"], False)
        self.fc = nn.Linear(3, 2)
        self.load_state_dict(torch.load(path, weights_only=False))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        self.seen = x
        return self.fc(x[:, :, 0, 0].float())


@pytest.fixture
def inception(monkeypatch) -> dict[str, Tensor]:
    """The right weights; torch-fidelity seems to be installed."""
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.URL_INCEPTION_V3 = "https://nowhere.invalid/weights-00000000.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", Extractor)
    return nn.Linear(3, 2).state_dict(prefix="fc.")


def test_inceptions_weights_from_a_file(inception, tmp_path: Path) -> None:
    torch.save(inception, tmp_path / "w.pth")
    safetensors.torch.save_file(inception, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        net = feature_network("inception", weights=tmp_path / name)
        assert torch.equal(net.net.fc.weight, inception["fc.weight"])
    scores = fid_kid([images(9)], [images(9, seed=2)], net)
    assert scores.fid > 0
    assert scores.features == "inception"
    with pytest.raises(FileNotFoundError, match="no weights of Inception"):
        feature_network("inception", weights=tmp_path / "none.pth")
    torch.save({"fc.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights"):
        feature_network("inception", weights=tmp_path / "other.pth")


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_nothing_in_a_file_of_weights_is_executed(inception, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**inception, "bomb": Bomb()}, "w.pth")
    torch.load("w.pth", weights_only=False)
    assert Path("exploded").exists()  # it would
    Path("exploded").unlink()
    for content in (Path("w.pth").read_bytes(), b"", b"text", Path("w.pth").read_bytes()[:100]):
        for name in ("bad.pth", "bad.safetensors"):
            Path(name).write_bytes(content)
            with pytest.raises(ValueError, match="none of its code was executed") as caught:
                feature_network("inception", weights=name)
            assert "\n" not in str(caught.value)
    assert not Path("exploded").exists()


def test_inceptions_weights_are_fetched_safely(inception, monkeypatch) -> None:
    asked = {}

    def load(url: str, **options) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return inception

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    assert feature_network("inception").net.fc.weight.shape == (2, 3)
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True

    def fail(url: str, **options) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(OSError, match=r"could not be downloaded.*no route.*nowhere\.invalid.*network of your own"):
        fid_kid([images(5)], [images(5)])


def test_without_torch_fidelity_a_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install torch-fidelity torchmetrics, or give a feature network"):
        feature_network("inception")


def test_without_torchmetrics_too(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    spec = importlib.util.spec_from_file_location("another_quality", quality.__file__)
    with pytest.raises(ImportError, match=r"FID and KID need torchmetrics.*pip install torch-fidelity torchmetrics"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_images_reach_inception_as_the_bytes_they_were(inception, tmp_path: Path) -> None:
    torch.save(inception, tmp_path / "w.pth")
    net = feature_network("inception", weights=tmp_path / "w.pth")
    k = torch.arange(256, dtype=torch.uint8)
    levels = (2 * k.double() + 1) / 256 - 1  # where DiscretizedDecoder(256) puts them
    for dtype in (torch.float32, torch.float64):
        net(levels.to(dtype).reshape(256, 1, 1, 1))
        assert torch.equal(net.net.seen, k.reshape(256, 1, 1, 1).expand(-1, 3, -1, -1))  # grey in three channels
    net(k.reshape(64, 1, 2, 2))
    assert torch.equal(net.net.seen[:, 1].flatten(), k)
    net(torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1))
    assert net.net.seen.flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(5, 2), "C 1 or 3"),
        (torch.zeros(5, 2, 4, 4), "C 1 or 3"),
        (torch.full((5, 1, 4, 4), 1.1), r"finite values in \[-1, 1\]"),
        (torch.full((5, 1, 4, 4), torch.nan), r"finite values in \[-1, 1\]"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.int64), "uint8"),
    ],
)
def test_what_are_no_images_is_refused(x: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        quality._as_bytes(x)
