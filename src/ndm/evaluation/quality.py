r"""Sample quality: Fréchet and kernel distance between the features of real and generated images.

With m and S the mean and covariance of the features, and f the d features of one example:

    FID   |m_r - m_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^{1/2})           (Heusel et al., arXiv 1706.08500, equation 6)
    KID   the squared maximum mean discrepancy with (f.f' / d + 1)^3   (Binkowski et al., arXiv 1801.01401, section 3)

Both are computed by torchmetrics. The feature network is Inception v3 with the weights of the original FID (published
by torch-fidelity), or a custom network; values of different networks are not comparable. FID increases with decreasing
sample size, so report it with the numbers of examples.

``pip install torch-fidelity torchmetrics``. torch-fidelity requires torchvision, which must be built for the installed
torch (CPU or CUDA); otherwise neither it nor torchmetrics can be imported.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ndm.method.parts import Part
from ndm.storage.checkpoints import load_part
from ndm.storage.memory import require_unpacked

try:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.utilities.data import dim_zero_cat
    from torchmetrics.utilities.distributed import gather_all_tensors
except (ImportError, RuntimeError) as problem:  # RuntimeError: torchvision was built for another torch
    raise ImportError(
        f"FID and KID need torchmetrics, torch-fidelity and a torchvision that fits the installed torch: pip install "
        f"torch-fidelity torchmetrics ({' '.join(str(problem).split())[:120]})."
    ) from None

__all__ = ["QualityScores", "feature_network", "fid_kid"]

#: Default size of KID's subsets.
SUBSET_SIZE = 1000

#: Number of feature columns used as sort keys; ties do not matter.
ORDERING_COLUMNS = 8


@dataclass(frozen=True)
class QualityScores:
    """FID and KID. Lower is better; both are in units of the features.

    Attributes:
        fid: the Fréchet distance.
        kid: the kernel distance, averaged over random subsets; it may be slightly negative.
        kid_std: standard deviation over the subsets (not the error of the mean: subsets overlap).
        examples_real: number of real images.
        examples_generated: number of generated images.
        features: name of the feature network.
    """

    fid: float
    kid: float
    kid_std: float
    examples_real: int
    examples_generated: int
    features: str

    def to_dict(self) -> dict[str, Any]:
        """The fields, in JSON's types."""
        return asdict(self)


@torch.no_grad()
def fid_kid(
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    features: str | nn.Module = "inception",
    *,
    kid_subsets: int = 100,
    kid_subset_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> QualityScores:
    r"""Compute FID and KID of generated images.

    Under torch.distributed every process passes its share of both, and all return the scores over all examples. For the
    same batches, the result does not depend on the number of processes, except for rounding. The features of all
    examples are kept in memory.

    Args:
        real: batches (B, C, H, W) of real images, C 1 or 3, values in [-1, 1] (or uint8, 0..255, for Inception). A
            custom network gets the batches unchanged, so they may be any valid input.
        generated: batches of generated images, likewise.
        features: ``inception``, a folder with a part of ndm, or a network x -> features, (B, ...), which are flattened.
        kid_subsets: number of random subsets for KID.
        kid_subset_size: their size; by default 1000, or the number of examples if smaller. KID is unbiased for any
            size.
        seed: seed of the subsets.
        device: device of the network; by default that of its parameters.

    Raises:
        ImportError: Inception is used and torch-fidelity is not installed.
        OSError: Inception's weights cannot be downloaded; the message says what to do.
        ValueError: fewer than two examples, images out of range or not finite, or subsets larger than the data.
    """
    network = feature_network(features) if isinstance(features, str) else features
    home = next(network.parameters(), torch.empty(0)).device
    device = home if device is None else torch.device(device)
    was_training = network.training
    network.to(device).eval()
    try:
        found = [_features(network, batches, device) for batches in (real, generated)]
    finally:
        network.to(home).train(was_training)
    counts = _counts(found, device)
    size = min(SUBSET_SIZE, *counts) if kid_subset_size is None else kid_subset_size
    if kid_subsets < 1 or not 2 <= size <= min(counts):
        raise ValueError(
            f"kid_subsets must be at least 1, and kid_subset_size from 2 to the number of examples, {min(counts)}; got "
            f"kid_subsets={kid_subsets}, kid_subset_size={size}."
        )
    width = found[0].shape[1]
    fid = FrechetInceptionDistance(_AsTheyAre(width)).to(device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")  # see above
        kid = _Kernel(_AsTheyAre(width), subsets=kid_subsets, subset_size=size).to(device)
    for rows, is_real in zip(found, (True, False), strict=True):
        kid.update(rows, real=is_real)
        for some in rows.split(SUBSET_SIZE):
            fid.update(some.double(), real=is_real)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.default_generator.manual_seed(seed)
        mean, spread = kid.compute()
    name = "inception" if isinstance(network, _Inception) else type(network).__name__
    if isinstance(features, str):
        name = features
    return QualityScores(float(fid.compute()), float(mean), float(spread), counts[0], counts[1], name)


class _AsTheyAre(nn.Module):
    """Identity network that passes precomputed features to torchmetrics, so that one pass serves both distances."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class _Kernel(KernelInceptionDistance):
    """KID in double precision on sorted examples, independent of the order of the processes."""

    def compute(self) -> tuple[Tensor, Tensor]:
        self.real_features = [_in_order(dim_zero_cat(self.real_features))]
        self.fake_features = [_in_order(dim_zero_cat(self.fake_features))]
        return super().compute()


def _in_order(rows: Tensor) -> Tensor:
    order = np.lexsort(rows[:, :ORDERING_COLUMNS].T.cpu().numpy())
    return rows[torch.from_numpy(order).to(rows.device)].double()


def _features(network: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return all features, (N, d), as one tensor: torchmetrics gathers lists by tensor, and batch counts may differ."""
    rows = []
    for x in batches:
        found = network(x.to(device)).flatten(1)
        if not torch.isfinite(found).all():
            raise ValueError("The features of some images are not finite: check the sampler.")
        rows.append(found)
    return torch.cat(rows) if rows else torch.empty(0, 0, device=device)


def _counts(found: list[Tensor], device: torch.device) -> list[int]:
    """Return the numbers of real and generated examples over all processes."""
    mine = torch.tensor([len(rows) for rows in found], device=device)
    everywhere = torch.stack(gather_all_tensors(mine) if torch.distributed.is_initialized() else [mine])
    # Checked on all processes together: an error on one process alone would cause a deadlock.
    if (everywhere == 0).any():
        raise ValueError("Every process must be given at least one batch of real and one of generated images.")
    counts = everywhere.sum(0).tolist()
    if min(counts) < 2:
        raise ValueError(f"FID and KID need at least two real and two generated examples, got {tuple(counts)}.")
    return counts


# ---- networks


def feature_network(spec: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Load a feature network.

    Args:
        spec: ``inception``, or a folder with a network x -> features by ``ndm.storage.checkpoints.save_part``.
        weights: file with Inception's weights, for offline use: torch-fidelity's
            ``weights-inception-2015-12-05-6726825d.pth`` or its tensors as safetensors. By default they are downloaded
            once to torch.hub's folder.

    Raises:
        ImportError: torch-fidelity is not installed.
        OSError: the weights cannot be downloaded, or the file does not exist.
        ValueError: the file does not contain these weights, or the folder does not contain a network.
    """
    if spec == "inception":
        return _Inception(weights)
    if weights is not None:
        raise ValueError(
            f"A file of weights can only be given for inception; {spec!r} is a folder with its own weights."
        )
    if not Path(spec).is_dir():
        raise FileNotFoundError(
            f"There is no feature network {spec!r}: give 'inception', or a folder written by "
            "ndm.storage.checkpoints.save_part."
        )
    return load_part(spec, Part)


class _Inception(nn.Module):
    """Inception v3 as in the original FID: TensorFlow 1 resizing, 2048 features after the last pooling."""

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise ImportError(
                f"Inception's features need torch-fidelity and torchvision (there is no {error.name}): pip install "
                "torch-fidelity torchmetrics, or give a feature network of your own."
            ) from None
        tensors = _fetched(URL_INCEPTION_V3) if weights is None else _from_file(Path(weights))
        # torch-fidelity unpickles its file, so it is given a copy that was read safely and written again.
        safe = io.BytesIO()
        torch.save(tensors, safe)
        safe.seek(0)
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], safe, antialias=False)  # type: ignore[arg-type]
        except RuntimeError:
            raise ValueError(f"{weights} does not hold the weights of FID's Inception v3.") from None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_as_bytes(x))


def _as_bytes(x: Tensor) -> Tensor:
    """Convert images to Inception's input, uint8 (B, 3, H, W): the value 2 (k + 1/2) / 256 - 1 becomes k."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"Inception needs images (B, C, H, W) with C 1 or 3, got shape {tuple(x.shape)}.")
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise ValueError(f"Inception needs images of uint8, 0..255, or floating point in [-1, 1], got {x.dtype}.")
        if not (x.abs() <= 1.001).all():  # false for NaN
            raise ValueError("Inception needs images with finite values in [-1, 1]: clamp them, or check the sampler.")
        x = ((x.float() + 1) * 128).floor().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, 3, -1, -1)


def _fetched(url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise OSError(
            f"Inception's weights could not be downloaded ({' '.join(str(error).split())[:99]}): download {url} on "
            f"another computer and copy it to {Path(torch.hub.get_dir()) / 'checkpoints'}, or give a feature network "
            "of your own."
        ) from None


def _from_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights of Inception at {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):  # the older format does not store sizes
            require_unpacked(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many exception types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} does not contain tensors only ({reason}); none of its code was executed.") from None
