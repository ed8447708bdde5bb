import pytest

from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.errors import UsageError
from coordatt_deploy.mixed_precision.search_plan import SearchImages, SearchPlan, limits_of
from coordatt_deploy.quantization.recipes import parse


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"max_drop": -1.0}, "--max-drop is -1"),
        ({"max_drop": 101.0}, "percentage points from 0 to 100"),
        ({"max_drop": 101.0, "metric": "miou"}, "percentage points from 0 to 100"),
        ({"max_drop": 0.5, "limit": 0}, "--limit is 0"),
        ({"max_drop": 0.5, "metric": "map"}, "unknown --metric 'map'"),
    ],
)
def test_slips_in_a_search(options, answer):
    """
    Each says what was expected.
    """
    with pytest.raises(UsageError, match=answer):
        search_plan(**options)


def search_plan(max_drop, **images):
    return SearchPlan(QuantizePlan((parse("static_wi8_ai8"),)), max_drop, SearchImages(**images))


def test_a_metric_of_the_users_own_has_its_own_unit():
    """
    A hundred and one of what it counts may be lost.
    """
    assert 101.0 == search_plan(101.0, metric="map.py:error").max_drop


@pytest.mark.parametrize(
    ("size", "value", "relative"),
    [("1MB", 1e6, False), ("0.7 MB", 7e5, False), ("512KiB", 2**19, False), ("700 kB", 7e5, False), ("0.3x", 0.3, True),
     ("0.3 ×", 0.3, True)],
)  # fmt: skip
def test_limits_of_size(size, value, relative):
    """
    Absolute ones in any unit of bytes; the others are a share of the float file.
    """
    limit, latency = limits_of(size, None)

    assert (pytest.approx(value), relative, None) == (limit.value, limit.relative, latency)
    assert pytest.approx(value * (2e6 if relative else 1)) == limit.of(2e6)


def test_limits_of_latency():
    """
    In milliseconds, whatever they are written in; a relative one needs the float file.
    """
    assert 0.9 == limits_of(None, "900us")[1].value
    assert 5000.0 == limits_of(None, "5 s")[1].value
    assert limits_of(None, "0.9x")[1].of(None) is None


@pytest.mark.parametrize(
    ("size", "latency", "answer"),
    [
        ("1mb", None, "did you mean MB"),
        ("1 MiBs", None, "did you mean MiB"),
        ("1000000", None, "the unit is missing; write 1MB"),
        ("small", None, "--max-size is 'small'; write 1MB"),
        ("-1MB", None, "--max-size is '-1MB'"),
        ("0MB", None, "which no file keeps"),
        (None, "5 mss", "did you mean ms"),
        (None, "1MB", "--max-latency is '1MB': unknown unit 'MB'"),
        (None, "0x", "which no file keeps"),
    ],
)
def test_slips_in_a_limit(size, latency, answer):
    """
    The text holds what was written, the nearest unit, and what a limit looks like.
    """
    with pytest.raises(UsageError, match=answer):
        limits_of(size, latency)
