"""The exponent that the benchmark of growth prints."""

import pytest
from growth import exponent


@pytest.mark.parametrize("power", [0.5, 1, 2])
@pytest.mark.parametrize("fixed", [0, 5])
def test_the_exponent_is_that_of_the_power_and_no_fixed_cost_changes_it(power, fixed):
    sizes = [1_000, 10_000, 100_000]
    values = [fixed + (size - sizes[0]) ** power for size in sizes]
    assert float(exponent(sizes, values)) == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize("values", [[5, 5, 5], [5, 5.1, 5.2], [5, 6, 4]])
def test_what_hardly_grows_has_none(values):
    assert exponent([1, 10, 100], values) == "-"
