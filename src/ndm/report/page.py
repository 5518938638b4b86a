"""Creation of the report: measurement, rendering, and atomic writing."""

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
    columns,
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
from ndm.storage.texts import require_free

__all__ = ["render", "render_page", "report"]

#: In page order.
_SECTIONS = (
    summary, training, bound, columns, evaluation, samples, transformation, trajectories, noise, configuration,
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
    """Write a report that compares one or several runs: a self-contained HTML file.

    The report shows the content of the run folders, and additional measurements: the bound by noise level, samples, and
    the transformation. The result is deterministic for the same runs and seed.

    Args:
        runs: run folders written by ``ndm train`` or :func:`ndm.training.fit`.
        out: output file with suffix .html, in an existing folder.
        examples: number of test examples for the bound by noise level; by default 256, or fewer for large models.
        seed: seed of all random numbers.
        device: ``auto``, or a torch device.
        data: function that builds the data set of a run's config.yaml; by default, data sets of :mod:`ndm.data` are
            supported.
        overwrite: replace ``out`` if it exists.
        progress: show a progress bar on stderr.
        allow: custom classes that a model's configuration may use, or names of modules with such classes.

    Returns:
        ``out``.

    Raises:
        ValueError: no run is given or one twice, a file of a run is damaged, or a number is out of range.
        FileNotFoundError: a folder is not a run or has no trained model, or the output folder does not exist.
        FileExistsError: ``out`` exists.
    """
    out = Path(out)
    _check(out, examples, seed, overwrite)
    # Building a model draws random initial weights, which are then replaced.
    with process_group(device) as place, torch.random.fork_rng(devices=[]):
        if world_size() > 1:
            raise ValueError("ndm report runs in one process: start it without torchrun.")
        found = subjects([Path(run) for run in runs], place, allow)
        n = affordable_examples(found) if examples is None else examples
        with tqdm(total=PIECES * len(found), desc="measuring", disable=not progress, leave=False) as bar:
            findings = []
            for subject in found:
                bar.set_postfix_str(subject.name)
                subject.take_examples(n, data or named_data, seed)
                findings.append(measure(subject, seed, bar.update))
        sections = [section for room in _SECTIONS if (section := room.section(findings)).blocks]
        page = render(sections, findings, seed)
        with atomic_write(out) as file:
            file.write(page.encode())
    return out


def render(sections: Sequence[Section], findings: Sequence[Findings], seed: int) -> str:
    """Render the page as HTML. Everything except :class:`markupsafe.Markup` is escaped."""
    names = [f.subject.name for f in findings]
    return render_page(
        sections,
        title=" and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " and " + names[-1],
        lead=_lead(findings),
        footer=(
            f"Made by ndm report {version('ndm')} with seed {seed}. Training curves and evaluations are read from the "
            "run folders; all other results were measured for this report."
        ),
        kind="ndm report",
    )


def render_page(sections: Sequence[Section], *, title: str, lead: str, footer: str, kind: str) -> str:
    """Render a page as HTML. Everything except :class:`markupsafe.Markup` is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    here = files("ndm.report")
    return environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8")).render(
        title=title,
        lead=lead,
        sections=sections,
        css=Markup(here.joinpath("page.css").read_text(encoding="utf-8")),
        swatch=swatch,
        version=version("ndm"),
        footer=footer,
        kind=kind,
    )


_COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


def _lead(findings: Sequence[Findings]) -> str:
    """Return the introductory sentence."""
    if len(findings) == 1:
        return "One trained model: training, terms of the bound, samples, and transformation of the data."
    count = _COUNTS.get(len(findings), str(len(findings)))
    return (
        f"{count} trained models in comparison: training, terms of the bound, samples, and transformation of the data."
    )


def _check(out: Path, examples: int | None, seed: int, overwrite: bool) -> None:
    """Check the arguments before the measurements."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"The name of the report, {out}, must end in .html.")
    require_free(out, overwrite)
    if examples is not None and examples < 2:
        raise ValueError(f"A standard error needs at least 2 examples, got {examples}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed must be from 0 to 2^63 - 1, got {seed}.")
