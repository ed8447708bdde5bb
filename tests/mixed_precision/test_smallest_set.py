import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.mixed_precision.smallest_set import PRUNED, prune, smallest_passing_set
from coordatt_deploy.quantization.sensitivity import LayerCost

RANKING = [LayerCost(f"layer{index}", (f"layer{index}",), "conv2d", float(index)) for index in range(40)]


@given(needed=st.sets(st.integers(0, PRUNED - 1)))
def test_search_finds_exactly_what_is_needed(needed):
    """
    Whatever of the first dozen must stay in float, nothing else does; and few artifacts are tried.
    """
    wanted, tried = {f"layer{index}" for index in needed}, []

    def holds(kept):
        tried.append(kept)
        return wanted <= {cost.name for cost in kept}

    assert wanted == {cost.name for cost in smallest_passing_set(RANKING, holds)}
    assert len(tried) <= 10 + PRUNED


@given(count=st.integers(PRUNED + 1, 38))
def test_search_finds_the_least_prefix(count):
    """
    Where the ranking is right, the least k, by doubling and halving.
    """
    tried = []

    def holds(kept):
        tried.append(len(kept))
        return len(kept) >= count

    assert count == len(smallest_passing_set(RANKING, holds))
    assert len(tried) <= 14
    assert 40 not in tried


@pytest.mark.parametrize("layers", [0, 1, 2, 40])
def test_search_never_keeps_everything(layers):
    """
    Where only float would do, there is no answer.
    """
    assert smallest_passing_set(RANKING[:layers], lambda kept: len(kept) == layers and bool(kept)) is None


@given(enough=st.integers(1, 39), start=st.integers(1, 38))
def test_artifacts_made_the_whole_way_have_the_last_word(enough, start):
    """
    Fewer layers where fewer do, up to three more where the quick artifacts promised too much, else no answer.
    """
    found = prune(RANKING[:start], RANKING, lambda kept: len(kept) >= enough)

    assert (None if enough > start + 3 or enough == 40 else enough) == (found and len(found))
