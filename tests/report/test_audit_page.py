"""The page of an audit: right HTML with the numbers of the audit, that loads nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import ndm
from ndm.data import Gaussian
from ndm.evaluation import Audit, audit
from ndm.evaluation.results import rounded
from ndm.report.audit_page import audit_page
from tests.evaluation.models import HIGH, LOW, Exact
from tests.report.pages import SVG, parse, section, tables, words


@pytest.fixture(scope="module")
def found() -> Audit:
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())
    return audit(model, Gaussian(features=2, variance=1.7), steps=(4,), examples=20, times=2, ode=2, grid=False)


def test_the_page_has_the_numbers_and_the_sentences(found: Audit, tmp_path: Path) -> None:
    found.warnings, found.left_out = ["Beware of <b>."], {"ODE": "it is late"}
    out = audit_page(found, tmp_path / "x.html", name="<script>alert(1)</script>")
    root = parse(out)
    assert [e.get("id") for e in root.iter("section")] == ["warnings", "quote", "advice", "numbers", "left-out"]
    assert words(next(root.iter("h1"))) == "<script>alert(1)</script>"
    assert "script" not in {e.tag for e in root.iter()}
    assert "Beware of <b>." in words(section(root, "warnings"))
    assert words(section(root, "quote")).startswith(f"What to quote{found.quote[0]}")
    assert "The ODE: it is late." in words(section(root, "left-out"))
    bounds = tables(root)["The bound by term, nats"]
    assert bounds[0][2:] == ["bound", "prior", "reconstruction", "diffusion"]
    for cells, row in zip(bounds[1:], found.bounds, strict=True):
        assert cells[2] == rounded(*row.total).replace("-", "−")
        assert cells[4] == rounded(*row.reconstruction).replace("-", "−")
    (drawing,) = [e for e in root.iter(SVG + "svg") if e.get("role") == "img"]
    assert f"{found.levels[0].diffusion.value:.3g} from -8.0" in (drawing.get("aria-label") or "")
    assert "http" not in out.read_text().replace("http-equiv", "")


def test_nothing_is_left_of_a_page_that_cannot_be_written(found: Audit, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        audit_page(found, tmp_path / "none" / "x.html", name="x")
    assert list(tmp_path.iterdir()) == []
