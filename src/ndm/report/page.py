"""The page: measured, put together, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import nn
from tqdm import tqdm

from ndm._internal.distributed import process_group, world_size
from ndm.report.blocks import Section
from ndm.report.drawing import swatch
from ndm.report.findings import PIECES, Findings, affordable_examples, measure
from ndm.report.sections import (
    bound,
    configuration,
    evaluation,
    noise,
    samples,
    summary,
    training,
    trajectories,
    transformation,
)
from ndm.report.subjects import DataReader, named_data, subjects
from ndm.storage.atomic import atomic_write
from ndm.storage.texts import require_regular

__all__ = ["render", "report"]

#: In the order of the page.
_SECTIONS = (
    summary, training, bound, evaluation, samples, transformation, trajectories, noise, configuration,
)  # fmt: skip


def report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    examples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    data: DataReader | None = None,
    overwrite: bool = False,
    progress: bool = False,
    allow: Iterable[type[nn.Module] | str] = (),
) -> Path:
    """Write a page about one or several runs, side by side: one HTML file that loads nothing from elsewhere.

    What the folders hold is shown, and what they do not is measured: the bound by noise level, samples, the
    transformation. The same runs and the same seed give the same page.

    Args:
        runs: folders that ``ndm train`` or :func:`ndm.training.fit` has written.
        out: the page, a file ending in .html, in a folder that exists.
        examples: how many test examples to measure the bound by noise level on; by default 256, or fewer if a model is
            large.
        seed: of every random number.
        device: ``auto``, or one of torch's.
        data: reads the data set that a run's config.yaml names; by default those of :mod:`ndm.data` are known.
        overwrite: replace ``out`` if it exists.
        progress: show a bar on stderr.
        allow: your own classes that a model's configuration may name, or the names of modules with such classes.

    Returns:
        ``out``.

    Raises:
        ValueError: no run is given or one twice, a file in one is damaged, or a number is out of its range.
        FileNotFoundError: a folder is not a run's or has no trained model, or there is no folder to write in.
        FileExistsError: ``out`` exists.
    """
    out = Path(out)
    _check(out, examples, seed, overwrite)
    # To build a model draws random numbers, which are then replaced by its weights.
    with process_group(device) as place, torch.random.fork_rng(devices=[]):
        if world_size() > 1:
            raise ValueError("ndm report is for one process: start it without torchrun.")
        found = subjects([Path(run) for run in runs], place, allow)
        n = affordable_examples(found) if examples is None else examples
        with tqdm(total=PIECES * len(found), desc="measuring", disable=not progress, leave=False) as bar:
            findings = []
            for subject in found:
                bar.set_postfix_str(subject.name)
                subject.take_examples(n, data or named_data, seed)
                findings.append(measure(subject, seed, bar.update))
        page = render([room.section(findings) for room in _SECTIONS], findings, seed)
        with atomic_write(out) as file:
            file.write(page.encode())
    return out


def render(sections: Sequence[Section], findings: Sequence[Findings], seed: int) -> str:
    """The page as HTML. Everything that is not :class:`markupsafe.Markup` comes out as text."""
    names = [f.subject.name for f in findings]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    here = files("ndm.report")
    return environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8")).render(
        title=" and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " and " + names[-1],
        lead=_lead(findings),
        sections=sections,
        css=Markup(here.joinpath("page.css").read_text(encoding="utf-8")),
        swatch=swatch,
        version=version("ndm"),
        footer=(
            f"Made by ndm report {version('ndm')} with seed {seed}. The curves of the training and the section on "
            "the evaluation show what is in the runs' folders; the rest was measured when the page was made."
        ),
    )


_COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


def _lead(findings: Sequence[Findings]) -> str:
    """What the page is about, in a sentence."""
    if len(findings) == 1:
        return (
            "One trained model: how it was trained, where its bound is spent, what it draws, and what its "
            "transformation of the data does."
        )
    count = _COUNTS.get(len(findings), str(len(findings)))
    return (
        f"{count} trained models side by side: how they were trained, where their bounds are spent, what they draw, "
        "and what their transformations of the data do."
    )


def _check(out: Path, examples: int | None, seed: int, overwrite: bool) -> None:
    """Refuse what cannot be done before time is spent on it."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out} should end in .html: that is what a report is.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out, or --overwrite it.")
    if out.exists() and not out.is_dir():
        require_regular(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in.")
    if examples is not None and examples < 2:
        raise ValueError(f"A standard error needs at least 2 examples, got {examples}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed must be from 0 to 2^63 - 1, got {seed}.")
