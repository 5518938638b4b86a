r"""The Hugging Face hub: model cards, downloading and uploading of models.

huggingface_hub's ``ModelHubMixin`` is not used: it requires the package at import time, wraps constructors that
:class:`~ndm.method.parts.Part` already wraps, and its PyTorch version also reads pickled weights. Models are read and
written only by :mod:`ndm.storage.checkpoints`. The package is imported when needed: ``pip install huggingface_hub``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ndm.method.parts import Part
from ndm.storage.checkpoints import CARD, CHECKSUMS, CONFIG, WEIGHTS, aside, save_part

__all__ = ["fetch", "find", "model_card", "push", "save_with_card", "was_edited"]

_SEAL = re.compile(r"<!-- ndm wrote this card \(([0-9a-f]{64})\);[^\n]*-->\n\Z")

#: A model's name on the hub. Names with other than two components, or with a leading dot, are local paths.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w-][\w.-]*\Z")

#: Keys of a card that are not metadata for the hub.
_OWN_KEYS = ("title", "description", "shape", "evaluation", "data")


# ---- the model card


def model_card(model: Part, card: Mapping[str, Any] | None = None, name: str | None = None) -> str:
    """Create a model card: YAML metadata for the hub, a description of the model, how to load it, and its evaluation.

    It ends with a hash of its text, from which :func:`was_edited` detects changes.

    Args:
        model: the model.
        card: information from the user; all keys are optional: ``title`` and ``description``, texts; ``shape``, the
            shape of one example; ``evaluation``, the contents of evaluation.json as written by ``ndm evaluate``, or
            only its rows; ``data``, which is written to config.json only: see
            :func:`ndm.storage.checkpoints.save_part`. Any other key (``license``, ``datasets``, ``language``, ...) is
            added to the metadata unchanged; ``tags`` are added to the default tags.
        name: the name or path of the model in the card's example.

    Raises:
        ValueError: the card contains values that cannot be serialised, or an evaluation without rows.
    """
    given = dict(card or {})
    own = {key: given.pop(key, None) for key in _OWN_KEYS}
    title = own["title"] or (name or type(model).__name__).rpartition("/")[2]
    config = model.config()
    sections = [
        _front_matter(given),
        f"# {title}\n",
        f"{own['description']}\n" if own["description"] else "",
        _what_it_is(model, config, own["shape"]),
        _how_to_load(config, name or "path/to/this/folder", own["shape"] or _shape_of(config)),
        _figures(own["evaluation"]),
    ]
    return _sealed("\n".join(section for section in sections if section))


def was_edited(text: str) -> bool:
    """Whether a model card differs from what :func:`model_card` wrote."""
    seal = _SEAL.search(text)
    return seal is None or seal.group(1) != _hash(text[: seal.start()])


def _sealed(text: str) -> str:
    text += "\n"
    return f"{text}<!-- ndm wrote this card ({_hash(text)}); once edited, it is left as it is. -->\n"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _front_matter(metadata: Mapping[str, Any]) -> str:
    tags = metadata.get("tags") or []
    if not isinstance(tags, (list, tuple)):
        raise ValueError(f"The tags of a model card must be a list of strings, got {tags!r}.")
    whole = {"library_name": "ndm", **metadata}
    whole["tags"] = list(dict.fromkeys(["ndm", "diffusion", "neural-diffusion-model", *tags]))
    try:
        # JSON is valid YAML, and writing it needs no additional package.
        lines = [f"{json.dumps(str(k))}: {json.dumps(v)}" for k, v in whole.items()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"The metadata of the model card cannot be written as YAML: {error}.") from None
    return "\n".join(["---", *(re.sub(r'^"(\w+)"', r"\1", line) for line in lines), "---"]) + "\n"


def _what_it_is(model: Part, config: Mapping[str, Any], shape: Sequence[int] | None) -> str:
    kind = type(model).__name__
    if kind == "NDM":
        kind = "Neural Diffusion Model ([Bartosh, Vetrov and Naesseth, ICML 2024](https://arxiv.org/abs/2310.08337))"
    shape = shape or _shape_of(config)
    levels = (config["init_args"].get("decoder") or {}).get("init_args", {}).get("levels")
    lines = [
        f"A {kind}, saved by `ndm`, with {_count(model):,} parameters.\n",
        *([f"One example has shape {tuple(shape)}.\n"] if shape else []),
        *([f"The data have {levels} levels, {levels} values evenly spread over [-1, 1].\n"] if levels else []),
        "| part | what it is | parameters |",
        "|---|---|---|",
    ]
    for key, value in config["init_args"].items():
        part = getattr(model, key, None)
        if value is not None:
            count = f"{_count(part):,}" if isinstance(part, nn.Module) else ""
            lines.append(f"| {key} | `{_brief(value).replace('|', '¦')}` | {count} |")
    return "\n".join(lines) + "\n"


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _brief(value: Any) -> str:
    """A configuration as a Python expression, without long values."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = ", ".join(f"{k}={_brief(v)}" for k, v in value["init_args"].items())
        return f"{value['class_path'].rpartition('.')[2]}({arguments})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_brief(v)}" for k, v in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 60 else "..."


def _shape_of(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of one example according to the standardisation, or None."""
    mean = ((config["init_args"].get("standardize") or {}).get("init_args") or {}).get("mean")
    shape = []
    while isinstance(mean, list) and mean:
        shape.append(len(mean))
        mean = mean[0]
    return tuple(shape) or None


def _how_to_load(config: Mapping[str, Any], name: str, shape: Sequence[int] | None) -> str:
    foreign = sorted({path.rpartition(".")[2] for path in _class_paths(config) if not path.startswith("ndm.")})
    allow = f", allow=[{', '.join(foreign)}]" if foreign else ""
    last = f"x = ndm.sample(model, 16, {tuple(shape)}, steps=100)" if shape else "print(model)"
    lines = ["## Use", "", "```python", "import ndm", f'model = ndm.NDM.from_pretrained("{name}"{allow}).eval()', last]
    return "\n".join([*lines, "```"]) + "\n"


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield value["class_path"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _class_paths(inner)


def _figures(evaluation: Any) -> str:
    if not evaluation:
        return ""
    whole = evaluation if isinstance(evaluation, Mapping) else {"rows": evaluation}
    about = whole.get("about") or {}
    try:
        lines = [_row(row) for row in whole["rows"]]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise ValueError(
            "A model card's evaluation must be the contents of evaluation.json as `ndm evaluate` writes it, "
            "{'about': ..., 'rows': [...]}, or those rows."
        ) from None
    where = ", ".join(f"{k} {about[k]}" for k in ("data", "split", "seed") if k in about)
    head = [f"## Evaluation\n\nBy `ndm evaluate`{': ' + where if where else ''}; ± one standard error.\n"]
    return (
        "\n".join([*head, "| quantity | steps | reverse variance | value | unit |", "|---|---|---|---|---|", *lines])
        + "\n"
    )


def _row(row: Mapping[str, Any]) -> str:
    steps = row["steps"] or ("continuous" if row["quantity"] == "bound" else "-")
    value = "-" if row["value"] is None else f"{row['value']:.4f}"
    value += "" if row["stderr"] is None else f" ± {row['stderr']:.4f}"
    return f"| {row['quantity']} | {steps} | {row['variance'] or '-'} | {value} | {row['unit']} |"


# ---- a folder with a card


def save_with_card(model: Part, path: str | os.PathLike[str], card: Mapping[str, Any] | None = None) -> Path:
    """Write a part and its model card to a folder. A README.md that has been edited is kept.

    Args:
        model: the part.
        path: the folder; an earlier model in it is replaced, as by ``save_part``.
        card: see :func:`model_card`.
    """
    there = Path(path) / CARD
    earlier = there.read_text(encoding="utf-8", errors="surrogateescape") if there.is_file() else None
    text = earlier if earlier is not None and was_edited(earlier) else model_card(model, card)
    return save_part(model, path, text, data=(card or {}).get("data"))


# ---- the hub


def find(path: str | os.PathLike[str], **options: Any) -> Path:
    """The folder of a saved model: ``path`` if it exists, else, for a name "user/model", the model on the hub.

    Paths (absolute, "./...", or with other than two components) are never looked up on the hub. The options are those
    of :func:`fetch`.
    """
    folder = Path(path)
    on_the_hub = isinstance(path, str) and _HUB_NAME.match(path)
    if folder.exists() or aside(folder).is_dir() or not on_the_hub:
        return folder
    return fetch(str(path), **options)


def fetch(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Download only a model's configuration and tensors to the hub's cache; returns their folder.

    Args:
        name: "user/model".
        revision: a branch, tag or commit; by default the main branch.
        token: a token of the hub, True for that of ``hf auth login``, False for none; by default that of ``hf auth
            login`` if it exists.
        cache_dir: the cache folder; by default that of the hub's library.
        force_download: download files again even if they are cached.
        local_files_only: use only cached files.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the model does not exist, access is denied, or the hub cannot be reached; the message says which.
    """
    where = f"There is no folder {name} here"
    hub = _huggingface_hub(f"{where}, and to look on the Hugging Face hub")
    with _in_one_sentence(f"{where}, and on the Hugging Face hub", name, revision):
        folder = Path(
            hub.snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG, WEIGHTS, CHECKSUMS],
                library_name="ndm",
            )
        )
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{name} on the Hugging Face hub has no {missing[0]}: it was not saved by ndm.")
    return folder


def push(
    model: Part,
    name: str,
    *,
    card: Mapping[str, Any] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a model with ndm",
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a model and its card to the hub. The repository is created if it does not exist.

    A model card on the hub that has been edited is kept.

    Args:
        model: the model.
        name: "user/model".
        card: see :func:`model_card`.
        private: whether a new repository is private; by default the setting of the account or organisation.
        token: as for :func:`fetch`, with write access.
        commit_message: the commit message.
        branch: the target branch, created if it does not exist; by default the main branch.
        create_pr: open a pull request instead of committing.

    Returns:
        The URL of the commit or of the pull request.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: ``name`` does not have the form "user/model", or the model cannot be saved.
        OSError: the token has no write access, or the hub cannot be reached; the message says which.
    """
    if not _HUB_NAME.match(name):
        raise ValueError(f'The name of a model on the hub must be "user/model", got {name!r}.')
    hub = _huggingface_hub("To upload a model to the Hugging Face hub")
    with tempfile.TemporaryDirectory() as scratch:
        # Before contacting the hub, since it may raise.
        folder = save_part(model, Path(scratch) / "model", model_card(model, card, name))
        with _in_one_sentence("On the Hugging Face hub", name, branch):
            api = hub.HfApi(token=token, library_name="ndm")
            api.create_repo(name, private=private, exist_ok=True)
            if branch is not None:
                api.create_branch(name, branch=branch, exist_ok=True)
            if api.file_exists(name, CARD, revision=branch):
                there = Path(hub.hf_hub_download(name, CARD, revision=branch, token=token, library_name="ndm"))
                if was_edited(there.read_text(encoding="utf-8", errors="surrogateescape")):
                    shutil.copyfile(there, folder / CARD)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=[CONFIG, WEIGHTS, CHECKSUMS, CARD],
            )
    return str(commit.pr_url if create_pr else commit.commit_url)


def _huggingface_hub(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(f"{purpose} the package huggingface_hub is needed: pip install huggingface_hub.") from None
    return huggingface_hub


@contextmanager
def _in_one_sentence(where: str, name: str, revision: str | None) -> Iterator[None]:
    """Convert the hub's errors to OSError or ValueError with a message of one sentence."""
    from huggingface_hub import errors

    # The base classes are the errors of the HTTP library, which are raised when a connection fails.
    troubles: tuple[Any, ...] = (OSError, *errors.HfHubHTTPError.__bases__, errors.EntryNotFoundError)
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{where}, {name!r} cannot be the name of a model: {_first_sentence(error)}") from None
    except errors.GatedRepoError:
        raise PermissionError(
            f"{where} {name} is gated: request access on its page, then log in with `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{where} {name} has no revision {revision!r}.") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{where} there is no {name}, or it is private: check the name, or log in with `hf auth login` or token=..."
        ) from None
    except errors.LocalTokenNotFoundError:
        raise PermissionError(
            f"{where} {name} needs a token, but none is stored: log in with `hf auth login`."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{where} {name} is not in the cache, and could not be downloaded: check the name, the connection and "
            "local_files_only."
        ) from None
    except troubles as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"{where} access to {name} was denied: log in with `hf auth login`, or give a token with this "
                "permission."
            ) from None
        if status is not None:
            raise OSError(
                f"{where} the request for {name} failed with status {status}: {_first_sentence(error)}"
            ) from None
        raise OSError(
            f"{where} {name} could not be reached ({type(error).__name__}): check the name and the connection."
        ) from None


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
