r"""Saving of parts to folders: the configuration as JSON, the tensors as safetensors. Loading executes no code.

The folder is written under a temporary name, flushed to the disk, and renamed. An earlier model is moved aside during
the exchange; after a crash in that moment ``load_part`` finds it there. A crash therefore leaves either the old or the
new model. The file SHA256SUMS, in the format of the program ``sha256sum``, has the checksums of the configuration and
the tensors; ``load_part`` compares them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ndm.method.parts import Part, from_config
from ndm.storage.allowance import Allowance
from ndm.storage.atomic import aside, atomic_folder, sha256_of
from ndm.storage.description import CONFIG, FORMAT, data_of, read_config
from ndm.storage.texts import read_text, require_regular

__all__ = ["aside", "data_of", "load_part", "save_part"]

WEIGHTS, CHECKSUMS, CARD = "model.safetensors", "SHA256SUMS", "README.md"

#: File names of pickled weights of other programs.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: Limit on the bytes of tensors created to build a model: a factor on the size of its weights, which may be saved in
#: half precision, and a constant for tables of constants.
_MANY, _SOME = 8, 1 << 28

PartT = TypeVar("PartT", bound=Part)


def save_part(part: Part, path: str | os.PathLike[str], card: str | None = None, data: str | None = None) -> Path:
    """Write ``part`` to the folder ``path``, replacing an earlier model.

    Args:
        part: the part.
        path: the folder.
        card: the text of README.md, if any.
        data: an identifier of the training data, for :func:`data_of`.

    Raises:
        TypeError: the part has an argument that a configuration cannot represent (a function, a module that is not a
            Part).
        FileExistsError: ``path`` exists and is not a saved model.
    """
    path = Path(path)
    # Before anything is written, since it may raise.
    config = {"ndm_format": FORMAT, "model": part.config(), "training": part.training}
    if data is not None:
        config["data"] = data
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / CONFIG).exists())):
        raise FileExistsError(f"{path} exists and is not a saved model; nothing was written. Choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path) as fresh:
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _save_tensors(part, fresh / WEIGHTS)
        (fresh / WEIGHTS).chmod((fresh / CONFIG).stat().st_mode)  # safetensors makes it readable only by the owner
        (fresh / CHECKSUMS).write_text("".join(f"{sha256_of(fresh / name)}  {name}\n" for name in (CONFIG, WEIGHTS)))
        if card is not None:
            (fresh / CARD).write_text(card, encoding="utf-8", errors="surrogateescape")
    return path


def _save_tensors(part: Part, path: Path) -> None:
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in part.state_dict().items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
    except RuntimeError as error:
        if "share memory" not in str(error):
            raise
        raise ValueError(
            "Two parts of the model share a network, which cannot be saved: give each part its own network."
        ) from None


def load_part(path: str | os.PathLike[str], kind: type[PartT], allow: Iterable[type[nn.Module] | str] = ()) -> PartT:
    """Load a part written by :func:`save_part`, in the mode (training or evaluation) in which it was saved.

    Args:
        path: the folder.
        kind: the required class of the part.
        allow: the caller's own classes that the configuration may name, or the names of modules with such classes.

    Raises:
        FileNotFoundError: there is no saved model at ``path``.
        ValueError: the files are damaged, from another version, or name a class that is not allowed; or a parameter is
            NaN or infinite.
    """
    path = Path(path)
    if not path.exists() and aside(path).is_dir():
        path = aside(path)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles and not (path / WEIGHTS).is_file():
        raise ValueError(
            f"{path} holds pickled weights ({pickles[0]}), which can run code when they are read; ndm reads only "
            f"{WEIGHTS}, as save_pretrained writes it."
        )
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"There is no saved model at {path}: it should be a folder with {CONFIG} and {WEIGHTS}, as save_pretrained "
            "writes it (RUN/model after `ndm train`)."
        )
    config = read_config(path / CONFIG)
    require_regular(path / WEIGHTS)
    if _is_pickle(path / WEIGHTS):
        raise ValueError(
            f"{path / WEIGHTS} is a pickle under another name, which can run code when it is read; it was not read."
        )
    _compare_checksums(path)
    with Allowance(
        _MANY * (path / WEIGHTS).stat().st_size + _SOME,
        f"The configuration in {path}",
        "its weights are of a smaller model, so that one of the two files is damaged or another model's",
    ):
        part = from_config(config.get("model"), allow)
    if not isinstance(part, kind):
        raise ValueError(f"{path} holds a {type(part).__name__}, not a {kind.__name__}.")
    fresh = part.state_dict()
    try:
        # Assigned, not copied, so that tensors keep their saved precision; cloned, so that they do not depend on the
        # file.
        part.load_state_dict({k: v.clone() for k, v in load_file(path / WEIGHTS).items()}, assign=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path / WEIGHTS} is damaged and cannot be read ({error}).") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The tensors in {path / WEIGHTS} do not fit its configuration: {reason}") from None
    _check_tensors(part.state_dict(), fresh, path / WEIGHTS)
    return part.train(config.get("training") is not False)  # not written by earlier versions


def _check_tensors(found: Mapping[str, Tensor], fresh: Mapping[str, Tensor], file: Path) -> None:
    """Raise an error for values that are not finite and for dtypes that saved models cannot have.

    All floating-point tensors of a model may have been converted to another floating-point dtype.

    Args:
        found: the tensors in the file.
        fresh: the tensors of the newly constructed part.
        file: the file.
    """
    floating = {value.dtype for name, value in found.items() if fresh[name].is_floating_point()}
    for name, value in found.items():
        one_type = value.is_floating_point() and fresh[name].is_floating_point() and len(floating) == 1
        if value.dtype != fresh[name].dtype and not one_type:
            raise ValueError(
                f"In {file}, {name} has the dtype {str(value.dtype).removeprefix('torch.')}, but the model has "
                f"{str(fresh[name].dtype).removeprefix('torch.')}: the file is damaged or was modified."
            )
        if not value.isfinite().all() and fresh[name].isfinite().all():
            raise ValueError(
                f"In {file}, {name} contains NaN or infinite values, so the model cannot be used: train it again with "
                "a lower training.learning_rate."
            )


def _compare_checksums(path: Path) -> None:
    """Verify the files' checksums, which models of earlier versions do not have."""
    if not (path / CHECKSUMS).exists():
        return
    try:
        require_regular(path / CHECKSUMS)
        text = read_text(path / CHECKSUMS, 1 << 16)
    except ValueError as error:
        raise ValueError(f"{path / CHECKSUMS} cannot be read: {error}") from None
    known = dict(reversed(pair) for pair in re.findall(r"(?m)^([0-9a-f]{64}) [ *](\S+?)\r?$", text))
    for name in (CONFIG, WEIGHTS):
        if known.get(name) != sha256_of(path / name):
            raise ValueError(
                f"{path / name} does not have the checksum in {CHECKSUMS}: it is damaged or was modified. If it was "
                f"modified on purpose, delete {path / CHECKSUMS}."
            )


def _is_pickle(path: Path) -> bool:
    """Whether a file that is not safetensors starts like a pickle (protocol 2 or later) or a torch.save archive."""
    with path.open("rb") as f:
        head = f.read(9)
    if head[8:] == b"{":  # the start of safetensors' header, after eight arbitrary bytes for its length
        return False
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"})
