import pytest

from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.errors import UsageError
from coordatt_deploy.mixed_precision.search_plan import SearchPlan
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
        SearchPlan(QuantizePlan((parse("static_wi8_ai8"),)), **options)


def test_a_metric_of_the_users_own_has_its_own_unit():
    """
    A hundred and one of what it counts may be lost.
    """
    assert 101.0 == SearchPlan(QuantizePlan((parse("static_wi8_ai8"),)), 101.0, metric="map.py:error").max_drop
