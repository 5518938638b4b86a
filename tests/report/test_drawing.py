"""Drawings belong to the page: its colours, its font, names of their own, nothing from elsewhere."""

from __future__ import annotations

import re

import html5lib
import matplotlib
import pytest
import torch

from ndm.report.blocks import COLOURS
from ndm.report.drawing import INK, MUTED, axes, colour, dash, grid_of_axes, label_of, limits, svg, swatch


def draw(label: str = "A line.", y: float = 1.0, name: str = "γ, <b>") -> str:
    with axes(label_of(name), "y") as (figure, ax):
        ax.plot([0, 1, 2], [0, y, 3.123456], color=colour(1), ls=dash(1), marker="o")
        ax.fill_between([0, 1], [0, 1], color=colour(0), alpha=0.2)
        ax.plot([0, 1], [1, 0], color=MUTED)
        ax.axhline(0.5, color=INK)
        ax.set_xlim(0, 2)
        return str(svg(figure, label))


def test_a_drawing_has_the_colours_of_the_page() -> None:
    text = draw()
    assert {"var(--ink)", "var(--muted)", "var(--run-1)", "var(--run-2)"} <= set(re.findall(r"var\([^)]*\)", text))
    drawn = re.findall(r"(?:fill|stroke): ?([^;\"]+)", text)
    assert set(drawn) <= {"none", *(f"var(--{v})" for v in ("ink", "muted", "run-1", "run-2"))}


def test_a_drawing_has_the_letters_of_the_page() -> None:
    text = draw()
    assert "font-family" not in text
    assert "font:" not in text
    root = html5lib.parseFragment(text, namespaceHTMLElements=False)
    words = [("".join(t.itertext())).strip() for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "γ, <b>" in words
    assert "0.25" in words  # rounded are coordinates, not labels


def test_a_drawing_takes_nothing_from_elsewhere() -> None:
    assert not re.search(r"https?:|<style|<script|<metadata|xmlns|<!--|<\?xml", draw())


def test_drawings_do_not_share_names() -> None:
    ids = [re.findall(r' id="([^"]*)"', draw(label)) for label in ("one", "two")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert len(set(ids[0])) == len(ids[0])
    assert not set(re.findall(r' id="([^"]*)"', draw("one", y=1.5))) & set(ids[0])
    text = draw("one")
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', text)) <= set(ids[0])


def test_a_drawing_is_the_same_every_time_whatever_the_user_likes() -> None:
    first = draw()
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9, "svg.fonttype": "path"}
    ):
        assert draw() == first
        assert matplotlib.rcParams["font.size"] == 30
    assert draw(y=1.5) != first


def test_a_label_is_text() -> None:
    text = draw('<script>"x"</script> & more')
    element = html5lib.parseFragment(text, namespaceHTMLElements=False)[0]
    assert element.get("aria-label") == '<script>"x"</script> & more'
    assert element.get("role") == "img"
    assert "<script" not in text


@pytest.mark.parametrize("name", ["$b_{$, in m", "a$b$c", r"\frac", "$", "^_%#&~"])
def test_any_name_can_be_drawn(name: str) -> None:
    root = html5lib.parseFragment(draw(name=name), namespaceHTMLElements=False)
    assert name in ["".join(t.itertext()).strip() for t in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_long_name_is_cut() -> None:
    assert len(label_of("n" * 100)) == 24
    assert label_of("n" * 100, 10) == "nnnnnnnnn…"
    assert label_of("short") == "short"


def test_limits_leave_a_margin_and_forget_outliers() -> None:
    low, high = limits(torch.linspace(0, 1, 1001).double().numpy())
    assert -0.2 < low < 0
    assert 1 < high < 1.2
    assert limits(torch.zeros(5).numpy()) == (-1, 1)
    assert limits(torch.tensor([0.0, float("nan"), 1.0, float("inf")]).numpy()) == limits(
        torch.tensor([0.0, 1.0]).numpy()
    )
    assert limits(torch.full((2,), float("nan")).numpy()) == (-1, 1)


def test_each_run_has_a_colour_and_a_line() -> None:
    assert len({colour(i) for i in range(COLOURS)}) == COLOURS
    assert len({(colour(i), str(dash(i))) for i in range(12)}) == 12
    assert "none" in swatch("var(--run-1)", "")
    assert "10.0 4.0" in swatch("var(--run-2)", "5 2")


def test_a_grid_has_axes() -> None:
    with grid_of_axes(2, 3) as (_, every):
        assert every.shape == (2, 3)
