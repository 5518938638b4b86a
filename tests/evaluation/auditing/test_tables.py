"""The text of an audit."""

from __future__ import annotations

import pytest

from ndm.data import Gaussian
from ndm.evaluation import Audit, audit
from ndm.evaluation.auditing.tables import AuditTable, _aligned, lead, notes, tables
from ndm.evaluation.results import rounded


@pytest.fixture
def found(exact, gaussian: Gaussian) -> Audit:
    return audit(exact, gaussian, steps=(4,), examples=20, times=2, ode=2, grid=False)


def test_every_number_is_in_the_text(found: Audit) -> None:
    text = found.text()
    for row in found.bounds:
        assert rounded(row.total.value, row.total.stderr) in text
    assert "4           posterior" in text
    assert f"{found.ends[0].gamma_0:g} (own)" in text
    assert "20 random examples of 2,000" in lead(found)
    assert [table.title.partition(",")[0] for table in tables(found)] == [
        "The bound by term", "The diffusion term by noise level", "The schedule's end with the same networks",
        "-log p under the ODE",
    ]  # fmt: skip
    assert all(len(line) <= 110 for line in text.splitlines())


def test_the_sentences_are_in_the_text(found: Audit) -> None:
    found.warnings, found.advice, found.left_out = ["Look out."], [], {"ODE": "it is late"}
    text = found.text()
    assert "Warnings\n- Look out." in text
    assert f"What to quote\n- {found.quote[0][:60]}" in text
    assert "What would lower it\n- Nothing that was looked at." in text
    assert "Left out\n- The ODE: it is late." in text
    assert notes(found) == ["The ODE: it is late."]


def test_words_are_aligned_to_the_left_and_numbers_to_the_right() -> None:
    table = AuditTable("", ["a", "number"], [["word", "1"], ["w", "22"]])
    assert _aligned(table) == ["a     number", "word       1", "w         22"]
