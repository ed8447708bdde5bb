from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.quantization.union_find import UnionFind

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)))


def test_items_are_given_in_the_order_in_which_they_were_met():
    """
    Joining sets moves no item.
    """
    sets = UnionFind()
    for item in "cab":
        sets.find(item)
    sets.join("b", "c", "d")

    assert ["c", "a", "b", "d"] == list(sets)


def test_items_that_were_never_joined_stay_apart():
    """
    Each is a set of its own.
    """
    sets = UnionFind()

    assert sets.find("a") != sets.find("b")


@given(PAIRS)
def test_items_are_together_if_a_chain_of_joins_connects_them(pairs):
    """
    The oracle merges whole sets.
    """
    sets, expected = UnionFind(), {item: {item} for item in range(10)}
    for one, other in pairs:
        sets.join(one, other)
        merged = expected[one] | expected[other]
        expected |= dict.fromkeys(merged, merged)

    actual = {item: {other for other in range(10) if sets.find(other) == sets.find(item)} for item in range(10)}
    assert expected == actual
