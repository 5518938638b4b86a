"""Small synthetic images for experiments, generated on demand."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ndm.data.base import SPLITS, Data
from ndm.data.pixels import Pixels
from ndm.storage.memory import require

__all__ = ["Patterns"]


class Patterns(Data):
    """Synthetic images of gratings with a blob, with 256 levels and classes, generated from a seed.

    The class determines the direction of the grating and the colour and approximate position of the blob. The phase,
    spacing and contrast of the grating, and the exact position and width of the blob, vary between images. A little
    noise is added. The labels are the classes, which are about equally frequent.

    Args:
        size: height and width in pixels.
        channels: 1 for grey, 3 for colour.
        examples: size of the training split; validation and test have a quarter of it each, at least one.
        classes: number of classes.
        seed: the random seed.

    Raises:
        ValueError: a size is not positive, ``channels`` is neither 1 nor 3, or the seed is negative.
    """

    levels = 256
    classes: int

    def __init__(
        self, size: int = 32, channels: int = 3, examples: int = 512, classes: int = 10, seed: int = 0
    ) -> None:
        for name, value in {"size": size, "examples": examples, "classes": classes}.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}.")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {channels}.")
        if seed < 0:
            raise ValueError(f"The seed must not be negative, got {seed}.")
        self.shape = (channels, size, size)
        self.classes = classes
        self.seed = seed
        self.sizes = dict(zip(SPLITS, (examples, max(1, examples // 4), max(1, examples // 4)), strict=True))

    def _contents(self) -> Iterator[str]:
        # The parameters instead of the images, since pixels may differ by one level between machines.
        yield repr([type(self).__name__, self.shape, self.classes, self.seed, self.sizes])

    def _split(self, name: str) -> tuple[Pixels, Tensor]:
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, tuple[Pixels, Tensor]]:
        size = sum(self.sizes.values()) * math.prod(self.shape) + 100 * self.shape[1] ** 2
        require(size, "The data set", "give a smaller size, or fewer examples")
        # One random stream per split, so that a split does not depend on the sizes of the others.
        return {
            name: self._draw(n, np.random.RandomState([self.seed, i])) for i, (name, n) in enumerate(self.sizes.items())
        }

    def _draw(self, n: int, random: np.random.RandomState) -> tuple[Pixels, Tensor]:
        images = np.empty((n, *self.shape), np.uint8)
        labels = random.permutation(np.arange(n) % self.classes)
        for image, label in zip(images, labels, strict=True):
            image[:] = self._image(int(label), random)
        return Pixels(images), torch.from_numpy(labels).long()

    def _image(self, label: int, random: np.random.RandomState) -> np.ndarray:
        """One image of a class on the square [-1, 1]^2, uint8 (C, H, W)."""
        channels, size, _ = self.shape
        x, y = np.meshgrid(*[(np.arange(size) + 0.5) * 2 / size - 1] * 2)
        share = label / self.classes

        direction = math.pi * share
        phase, cycles, contrast = random.uniform((0, 1.5, 0.2), (2 * math.pi, 3, 0.5))
        wave = np.sin(math.pi * cycles * (x * math.cos(direction) + y * math.sin(direction)) + phase)
        tint = np.array([1.0, 0.8, 0.6])[:channels, None, None]
        image = 0.4 + contrast * tint * wave / 2

        angle = 2 * math.pi * share + random.uniform(-0.3, 0.3)
        distance, width = random.uniform((0.3, 0.2), (0.6, 0.35))
        blob = np.exp(-((x - distance * math.cos(angle)) ** 2 + (y - distance * math.sin(angle)) ** 2) / (2 * width**2))
        colour = np.array(colorsys.hsv_to_rgb(share, 0.8, 1.0)) if channels == 3 else np.array([0.5 + 0.5 * share])
        image = (1 - blob) * image + blob * colour[:, None, None]

        image = image + random.normal(0, 0.01, self.shape)
        return np.rint(255 * image.clip(0, 1)).astype(np.uint8)
