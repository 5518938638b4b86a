"""Numbers as they are written, and what a legend's line looks like."""

from __future__ import annotations

import pytest

from ndm.report.blocks import DASHES, Entry, Table, minus, with_error


@pytest.mark.parametrize(
    ("value", "error", "signed", "text"),
    [
        (2.08741, 0.0874, False, "2.087 ± 0.087"),
        (122.61, 32.1, False, "122.6 ± 32.1"),
        (1.0, 0.0996, False, "1.00 ± 0.10"),
        (-1.0, 0.0123, True, "−1.000 ± 0.012"),
        (0.3, 0.012, True, "+0.300 ± 0.012"),
        (5.0, 0.0, False, "5.0000 ± < 0.0001"),
        (-3.21098, None, False, "−3.211"),
        (3.0, float("nan"), False, "3"),
    ],
)
def test_a_number_is_as_long_as_its_error_allows(value: float, error: float, signed: bool, text: str) -> None:
    assert with_error(value, error, signed) == text


def test_a_minus_is_no_hyphen() -> None:
    assert minus("-1.5 to -0.5") == "−1.5 to −0.5"


def test_runs_are_told_apart_without_colours() -> None:
    entries = [Entry("run", i) for i in range(12)]
    assert len({(e.colour, e.dash) for e in entries}) == 12
    assert len({e.dash for e in entries[: len(DASHES)]}) == len(DASHES)
    assert Entry("data", None).colour == "var(--muted)"


def test_a_table_knows_whose_column_it_is() -> None:
    table = Table("", ["", "a", "b"], [], runs=[None, 0])
    assert table.entry(0) is None
    assert table.entry(1) == Entry("", 0)
    assert table.entry(2) is None
