"""A small classifier of a data set's images, whose features the Fréchet distances of the suite are made of.

It is trained here on the training split, with one seed and one thread, so that the same machine and PyTorch give the
same weights. Distances of other features, Inception's among them, cannot be compared with these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bench import parameters
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ndm.data import Data, Examples
from suite.jobs import write

#: The training: AdamW with a learning rate that falls as a cosine.
SETTINGS: dict[str, Any] = {"steps": 1500, "batch_size": 128, "learning_rate": 3e-3, "seed": 0, "features": 64}

#: Images that are looked at together when nothing is learned.
BLOCK = 500


class Classifier(nn.Module):
    """Three convolutions, halving the side twice, and a linear layer on the means of their 64 channels, the features.

    Args:
        channels: of an image.
        classes: how many there are.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, SETTINGS["features"], 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(SETTINGS["features"], classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64)."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (B, C, H, W) -> (B, classes)."""
        return self.head(self.features(x))

    @torch.no_grad()
    def features_of(self, examples: Examples) -> Tensor:
        """The features of all examples, (N, 64), a block at a time."""
        blocks = range(0, len(examples), BLOCK)
        return torch.cat([self.features(examples[i : min(i + BLOCK, len(examples))]) for i in blocks])


def classifier(
    name: str, data: Data, work: Path, say: Callable[[str], None] = print
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a data set, trained if it is not kept in the work folder yet, and facts about it.

    Args:
        name: of the data set, and so of the file.
        data: the data set.
        work: where the weights are kept.
        say: what is told of the progress.

    Returns:
        The classifier, and its ``settings``, ``parameters``, ``accuracy`` on the test split and the ``digest`` of its
        weights.

    Raises:
        ValueError: the data have no labels.
    """
    labels = data.labels("train")
    if labels is None:
        raise ValueError(f"{name} has no labels, and the features for its Fréchet distance come from a classifier.")
    file, wanted = work / f"classifier--{name}.safetensors", json.dumps(SETTINGS | {"shape": list(data.shape)})
    if _about(file).get("settings") != wanted:
        say(f"{name}: training the classifier whose features the Fréchet distance is of")
        net = _trained(_new(data, labels), data, labels)
        about = {"settings": wanted, "accuracy": str(_accuracy(net, data))}
        write(file, lambda path: save_file(net.state_dict(), path, metadata=about))
    net = _new(data, labels)
    net.load_state_dict(load_file(file))
    facts = {
        "settings": SETTINGS,
        "parameters": parameters(net),
        "accuracy": float(_about(file)["accuracy"]),
        "digest": digest(net.state_dict()),
    }
    return net.eval().requires_grad_(False), facts


def digest(weights: Mapping[str, Tensor]) -> str:
    """Sixteen characters that stand for these weights."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + weights[name].numpy().tobytes())
    return found.hexdigest()[:16]


def _about(file: Path) -> dict[str, str]:
    """What is written down in a file of weights; nothing if there is none, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            return stored.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _new(data: Data, labels: Tensor) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn from torch's own generator
        torch.manual_seed(SETTINGS["seed"])
        return Classifier(data.shape[0], int(labels.max()) + 1)


def _trained(net: Classifier, data: Data, labels: Tensor) -> Classifier:
    steps, examples = SETTINGS["steps"], data.examples("train")
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=SETTINGS["learning_rate"])
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(examples), (SETTINGS["batch_size"],), generator=generator)
        loss = functional.cross_entropy(net(examples[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net.eval()


@torch.no_grad()
def _accuracy(net: Classifier, data: Data) -> float:
    labels = data.labels("test")
    assert labels is not None
    found = net.head(net.features_of(data.examples("test"))).argmax(1)
    return round((found == labels).double().mean().item(), 4)
