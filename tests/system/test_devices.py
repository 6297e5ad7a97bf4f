"""What is said of half precision on a processor that has no units for it."""

import pytest

from covidseg.system.devices import slow_precision


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "bfloat16", "16-mixed", "float16"])
def test_half_precision_in_software_is_warned_of(precision):
    assert f"{precision} on this CPU" in slow_precision("cpu", precision, has_bf16_units=False)
    assert slow_precision("cpu", precision, has_bf16_units=True) is None
    assert slow_precision("cuda", precision, has_bf16_units=False) is None


@pytest.mark.parametrize("precision", ["32-true", "float32", "64-true"])
def test_nothing_is_said_of_single_precision(precision):
    assert slow_precision("cpu", precision, has_bf16_units=False) is None
