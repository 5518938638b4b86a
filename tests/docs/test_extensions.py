"""What the documentation's own extensions of Sphinx make of formulas, docstrings and notebooks."""

from __future__ import annotations

import base64
import importlib.util
import logging
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
from sphinx.util import logging as sphinx_logging

EXTENSIONS = Path(__file__).parents[2] / "docs" / "extensions"


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", EXTENSIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("display", [False, True])
def test_a_formula_is_well_formed_mathml_and_keeps_its_source(display: bool) -> None:
    latex = r"\frac{1}{2} \sum_k \left( \gamma_k < \hat{x} \right)"
    element = ET.fromstring(extension("mathml").mathml(latex, display))
    assert element.tag == "{http://www.w3.org/1998/Math/MathML}math"
    assert element.get("display") == ("block" if display else "inline")
    assert element.get("aria-label") == latex
    names = [child.tag.rpartition("}")[2] for child in element.iter()]
    assert "mfrac" in names
    assert "mover" in names


def test_a_command_that_is_not_known_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    module = extension("mathml")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(f"{sphinx_logging.NAMESPACE}.{module.__name__}")
    logger.addHandler(handler)
    module.mathml(r"\alpha + \nonsense", False)
    module.mathml(r"\alpha", False)
    logger.removeHandler(handler)
    assert len(said) == 1
    assert "\\nonsense" in said[0]


def test_a_notebook_becomes_markdown_with_its_outputs() -> None:
    picture = b"\x89PNG not really"
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "\n", "words"]},
            {"cell_type": "code", "source": "", "outputs": []},
            {
                "cell_type": "code",
                "source": ["print('```')\n", "draw()"],
                "outputs": [
                    {"output_type": "stream", "text": ["```\n"]},
                    {"data": {"image/png": base64.b64encode(picture).decode(), "text/plain": "<Figure>"}},
                    {"data": {"text/plain": ["42"]}},
                ],
            },
        ]
    }
    text, pictures = extension("notebooks").to_markdown(notebook, "tour")
    assert text == (
        "# Title\n\nwords\n\n````python\nprint('```')\ndraw()\n````\n\n````text\n```\n````\n\n"
        "![what the cell above drew](tour-1.png)\n\n```text\n42\n```\n"
    )
    assert pictures == {"tour-1.png": picture}


def test_a_name_is_documented_where_it_is_imported_from() -> None:
    public = extension("public")
    assert public.public_name("ndm.method.schedules", "LinearSchedule") == "ndm.LinearSchedule"
    assert public.public_name("ndm.data.base", "Data") == "ndm.data.Data"
    assert public.public_name("ndm.method.variances", "Step") == "ndm.method.variances.Step"
    assert public.page_of("ndm.method.transforms", "Blur") == "ndm.method.transforms"
    assert public.page_of("ndm.method.standardization", "Standardize") == "ndm.method.standardization"
