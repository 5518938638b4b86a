"""The kind of a column, found from its cells: every rule of the module's description."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ndm.data.kinds import ATOM_COUNT, LINE_UP_TO, MOST_ATOMS, MOST_LEVELS, Cells, Found, find_column
from ndm.method.columns import Column

rng = np.random.RandomState(0)
NORMAL = rng.normal(size=1000)


def numbers(values: object, storage: str = "float") -> Cells:
    return Cells(np.array(values, np.float64), storage)


def texts(*values: str | None) -> Cells:
    return Cells(np.array(values, object), "text")


def column(cells: Cells, **arguments: object) -> Column:
    found = find_column("c", cells, **arguments)  # type: ignore[arg-type]
    assert found.column is not None, found.reason
    return found.column


def left_out(cells: Cells) -> str:
    found: Found = find_column("c", cells)
    assert found.column is None
    return found.reason


# ---- left out


@pytest.mark.parametrize("cells", [numbers([np.nan] * 9), texts(None, None), numbers([]), numbers([np.nan], "date")])
def test_a_column_without_a_value_is_left_out(cells):
    assert left_out(cells) == "holds no value"


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        (numbers([3] * 9, "int"), "3"),
        (texts(*["x" * 30] * 9), "x" * 20),
        (numbers([1] * 9, "bool"), "True"),
        (numbers([18262] * 9, "date"), "2020-01-01"),
    ],
)
def test_a_constant_column_is_left_out(cells, shown):
    assert left_out(cells) == f"constant, {shown}"


def test_a_constant_with_missing_cells_is_kept():
    found = column(numbers([3] * 9 + [np.nan]))
    assert (found.kind, found.levels, found.counts, found.missing) == ("categorical", (3.0,), (9, 1), True)


def test_text_of_which_more_than_half_is_unique_is_left_out():
    names = [f"name {i}" for i in range(24)]
    assert left_out(texts(*names)) == "24 different texts in 24 cells, such as names"
    assert left_out(texts(*names, *names[:22])).startswith("24 different texts")
    assert column(texts(*names, *names)).kind == "categorical"
    assert column(texts(*names), kind="categorical").kind == "categorical"
    assert column(texts(*names[:20])).kind == "categorical"  # too few cells to tell


# ---- categories


def test_levels_are_ordered_by_frequency_and_then_by_name():
    found = column(texts("b", "a", "c", "c", "c", "a", "b", None))
    assert (found.kind, found.rest, found.storage) == ("categorical", None, "text")
    assert found.levels == ("c", "a", "b")
    assert found.counts == (3, 2, 2, 0, 1)
    assert (found.other, found.missing) == (True, True)


def test_texts_that_occur_once_are_other():
    found = column(texts("a", "a", "b", "b", "c", "d"))
    assert (found.levels, found.counts, found.other) == (("a", "b"), (2, 2, 2), True)


def test_two_texts_have_no_other_unless_another_split_needs_it():
    two = texts("a", "a", "b")
    assert not column(two).other
    assert not column(two, others=[texts("b")]).other
    found = column(two, others=[texts("c", None)])
    assert (found.levels, found.counts, found.other, found.missing) == (("a", "b"), (2, 1, 0, 0), True, True)


def test_the_most_frequent_levels_are_kept():
    many = [f"{i}" for i in range(MOST_LEVELS + 10) for _ in range(2)]
    found = column(texts(*many, "0"))
    assert (len(found.levels), found.levels[0], found.counts[-1]) == (MOST_LEVELS, "0", 20)


def test_a_long_text_takes_no_memory_for_the_others():
    found = column(texts(*["a", "b"] * 50_000, "x" * 1_000_000, "x" * 1_000_000))  # 400 GB as an array of one width
    assert len(found.levels) == 3


@pytest.mark.parametrize("storage", ["float", "int", "bool"])
def test_numbers_of_two_values_are_categories(storage):
    found = column(numbers([0, 1, 1, np.nan], storage))
    assert (found.kind, found.levels, found.counts, found.storage) == ("categorical", (1.0, 0.0), (2, 1, 1), storage)


def test_a_third_number_in_another_split_is_other():
    found = column(numbers([0, 1, 1], "int"), others=[numbers([0.5])])
    assert (found.other, found.counts) == (True, (2, 1, 0))


# ---- whole numbers


def test_few_whole_numbers_are_on_a_line_with_those_between_them():
    found = column(numbers([1, 2, 5, 5] * 9, "int"))
    assert (found.kind, found.rest, found.on_a_line) == ("whole", None, True)
    assert found.levels == (1, 2, 3, 4, 5)
    assert found.counts == (9, 9, 0, 0, 18)


def test_a_line_has_no_levels_between_distant_values():
    assert column(numbers([1, 2, 1000] * 9, "int")).levels == (1, 2, 1000)


def test_a_line_may_have_a_step_below_one():
    assert column(numbers([0.1, 0.2, 0.4] * 9)).levels == (0.1, 0.2, 0.3, 0.4)


def test_many_tied_whole_numbers_are_a_grid():
    values = np.rint(NORMAL * 400)
    found = column(numbers(np.r_[values, values], "int"))
    assert (found.kind, found.rest, found.step) == ("whole", "grid", 1.0)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.counts == (2000,)
    assert len(np.unique(values)) > LINE_UP_TO


@pytest.mark.parametrize("step", [1000, 5, 0.5, 0.01, 0.0001])
def test_the_step_of_a_grid(step):
    values = np.rint(NORMAL * 400) * step
    assert column(numbers(np.r_[values, values])).step == step


def test_whole_numbers_that_differ_are_real():
    assert column(numbers(np.arange(1000) ** 2, "int")).kind == "real"


def test_rounding_of_large_numbers_is_no_step():
    assert column(numbers(np.tile(1e12 + NORMAL, 2))).kind == "real"
    cents = np.rint(NORMAL * 1e9) / 100
    assert column(numbers(np.r_[cents, cents])).step == 0.01


def test_dates_are_whole_days_and_times_seconds():
    days = 18_000 + np.rint(NORMAL * 900)
    found = find_column("c", numbers(np.r_[days, days], "date"))
    assert found.column is not None
    assert (found.column.rest, found.column.step, found.column.storage) == ("grid", 1.0, "date")
    assert found.reason.startswith("days from 20")
    found = find_column("c", numbers(np.r_[days, days] * 86_400 + 7, "datetime"))
    assert found.column is not None
    assert (found.column.rest, found.column.step) == ("grid", 1.0)
    assert "seconds from 20" in found.reason


# ---- real numbers, atoms and missing cells


def test_other_numbers_are_real():
    found = column(numbers(NORMAL))
    assert (found.kind, found.rest, found.levels, found.counts) == ("real", "density", (), (1000,))


def test_a_value_in_many_cells_is_an_atom():
    found = column(numbers(np.r_[NORMAL, [0] * 50, [9.5] * 30]))
    assert (found.kind, found.levels, found.counts) == ("real", (0, 9.5), (50, 30, 1000))


def test_a_value_in_few_cells_is_no_atom():
    assert column(numbers(np.r_[NORMAL, [0] * (ATOM_COUNT - 1)])).levels == ()
    assert column(numbers(np.r_[np.tile(NORMAL, 3) + rng.normal(size=3000), [0] * 25])).levels == ()  # below 1%


def test_a_value_as_frequent_as_its_neighbours_is_no_atom():
    grid = np.tile(np.arange(400.0) / 1000, 30)
    assert column(numbers(grid), kind="real").levels == ()
    assert column(numbers(np.r_[grid, [0.1] * 170]), kind="real").levels == (0.1,)
    assert column(numbers(np.r_[grid, [0.1] * 90]), kind="real").levels == ()  # four times as often, of five


def test_there_are_at_most_a_few_atoms():
    many = np.repeat(np.linspace(-1.5, 1.5, 20), 100)
    assert len(column(numbers(np.r_[NORMAL, many])).levels) == MOST_ATOMS


def test_missing_cells_are_one_more_atom():
    found = column(numbers(np.r_[NORMAL, [np.nan] * 7]))
    assert (found.levels, found.missing, found.counts) == ((), True, (7, 1000))
    found = column(numbers(NORMAL), others=[numbers([np.nan, 1.5])])
    assert (found.missing, found.counts) == (True, (0, 1000))
    assert not column(numbers(NORMAL), others=[numbers([1.5])]).missing


# ---- kinds given by the user


def test_a_given_kind_overrides_the_one_found():
    ages = numbers(np.tile(np.arange(40.0), 9), "int")
    assert column(ages).on_a_line
    assert column(ages, kind="real").kind == "real"
    assert column(ages, kind="categorical").kind == "categorical"
    assert len(column(ages, kind="categorical").levels) == 40
    few = np.rint(NORMAL * 1e6)
    assert column(numbers(few)).kind == "real"
    assert column(numbers(few), kind="whole").rest == "grid"
    assert column(numbers([0, 1] * 9), kind="whole").levels == (0, 1)


@pytest.mark.parametrize(
    ("cells", "kind", "words"),
    [
        (numbers([1, 2, 3]), "ordinal", "must be real, whole or categorical, not 'ordinal'"),
        (texts("a", "b"), "real", "holds text and cannot be real"),
        (numbers([0, 1], "bool"), "whole", "holds truth values and cannot be whole"),
        (numbers(NORMAL), "whole", "multiples of no step"),
        (numbers([*NORMAL, math.inf]), None, "infinite values"),
        (numbers([1, math.inf]), None, "infinite values"),
        (numbers([1, 2, -math.inf]), "categorical", "infinite values"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(cells, kind, words):
    with pytest.raises(ValueError, match=words) as caught:
        find_column("c", cells, kind)
    assert "'c'" in str(caught.value)


# ---- the map


def test_the_map_of_a_normal_column_is_a_standardisation():
    own = column(numbers(5 + 3 * NORMAL)).map
    assert own.power == 1.0
    assert (own.shift, own.scale) == (pytest.approx(5 + 3 * NORMAL.mean()), pytest.approx(3 * NORMAL.std()))


@pytest.mark.parametrize(("values", "powers"), [(np.exp(NORMAL), (0, 0.7)), (-np.exp(NORMAL), (1.3, 2))])
def test_the_map_of_a_skewed_column_has_another_power(values, powers):
    own = column(numbers(values)).map
    assert powers[0] <= own.power <= powers[1]


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_the_map_holds_in_any_unit(unit):
    own = column(numbers(NORMAL * unit)).map
    assert own.scale == pytest.approx(NORMAL.std() * unit)


@pytest.mark.parametrize(
    ("step", "unit"), [(86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"), (100, "minutes")]
)
def test_times_have_steps_of_days_hours_minutes_or_seconds(step, unit):
    times = np.rint(NORMAL * 400) * step * (3 if step == 100 else 1)  # 300 seconds are 5 minutes
    found = find_column("c", numbers(np.r_[times, times], "datetime"))
    assert found.reason.startswith(f"{unit} from 19")
