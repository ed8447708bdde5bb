"""Which file keeps its limits and is the most accurate: pure choices over figures."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.mixed_precision.choice import Limits, choose, fill, nearest, pareto, weighed
from coordatt_deploy.mixed_precision.limits import Limit
from coordatt_deploy.mixed_precision.result import CandidateRecord, LimitVerdict
from coordatt_deploy.quantization.sensitivity import LayerCost

NINE_TENTHS = Limit(0.9, "0.9x", relative=True)


def file(name, size, points, ratio=None, ends=None, **further):
    """A candidate; *ratio* with its interval *ends*, of a float file that takes 2 ms."""
    timed = {} if ratio is None else {
        "latency_ms": 2 * ratio, "latency_interval_ms": (2 * ends[0], 2 * ends[1]), "latency_ratio": ratio,
        "ratio_interval": ends,
    }  # fmt: skip
    return CandidateRecord(name, f"onnx/{name}.onnx", name, (), size, points, None, **timed, **further)


def chosen(files, limits):
    found = [weighed(item, limits) for item in files]
    index = choose(found, limits)
    return None if index is None else found[index].name


FILES = [file("fp32", 2000, 0.0), file("wi8", 700, -0.1), file("w4", 400, -3.0)]


@pytest.mark.parametrize(("size", "name"), [(5000, "fp32"), (2000, "fp32"), (1999, "wi8"), (699, "w4"), (399, None)])
def test_the_most_accurate_file_within_a_size(size, name):
    """
    Exact at the limit itself; the smallest only where nothing else fits, none where nothing does.
    """
    assert name == chosen(FILES, Limits(size=size, size_text="limit"))


def test_of_files_with_the_same_score_the_smallest():
    """
    One that scores less is not taken for its size, however wide the interval is that few images give.
    """
    files = [*FILES, file("as good", 1500, 0.0), replace(file("worse", 500, -0.01), interval_points=(-9.0, 9.0))]

    assert "as good" == chosen(files, Limits(size=5000))


def test_of_files_with_the_same_score_the_fastest_where_latency_alone_is_limited():
    """
    With a limit of size as well, the smallest.
    """
    files = [file("small", 400, 0.0, 0.8, (0.78, 0.82)), file("fast", 700, 0.0, 0.5, (0.48, 0.52))]

    assert "fast" == chosen(files, Limits(latency=NINE_TENTHS))
    assert "small" == chosen(files, Limits(size=900, latency=NINE_TENTHS))


@pytest.mark.parametrize(
    ("ratio", "ends", "verdict"),
    [
        (0.85, (0.82, 0.88), LimitVerdict.KEEPS),
        (0.85, (0.82, 0.90), LimitVerdict.KEEPS),
        (0.85, (0.75, 0.95), LimitVerdict.UNDECIDED),
        (0.95, (0.89, 1.01), LimitVerdict.UNDECIDED),
        (0.95, (0.91, 0.99), LimitVerdict.EXCEEDS),
    ],
)
def test_a_latency_keeps_a_limit_with_its_whole_interval(ratio, ends, verdict):
    """
    An interval that holds the limit decides nothing, and the text says so; absolute limits are held the same way.
    """
    item = file("wi8", 700, 0.0, ratio, ends)
    relative, absolute = (weighed(item, Limits(latency=limit)) for limit in (NINE_TENTHS, Limit(1.8, "1.8ms")))

    assert verdict == relative.verdict == absolute.verdict
    assert (verdict is LimitVerdict.KEEPS) == (not relative.reasons)
    assert (None if verdict is not LimitVerdict.KEEPS else "wi8") == chosen([item], Limits(latency=NINE_TENTHS))


def test_an_unknown_latency_is_undecided():
    """
    A machine that was too busy to tell makes no promise; nor does a file that exceeds another limit hide behind it.
    """
    limits = Limits(size=500, latency=NINE_TENTHS)

    assert LimitVerdict.UNDECIDED == weighed(file("wi8", 400, 0.0), limits).verdict
    assert LimitVerdict.EXCEEDS == weighed(file("wi8", 700, 0.0), limits).verdict


@pytest.mark.parametrize(("higher_is_better", "name"), [(True, "more"), (False, "less")])
def test_a_drop_counts_in_the_direction_of_the_metric(higher_is_better, name):
    """
    Of an error, more is worse: all limits hold together.
    """
    files = [file("more", 400, 2.0), file("less", 400, -2.0)]

    assert name == chosen(files, Limits(size=500, max_drop=1.0, higher_is_better=higher_is_better))
    assert LimitVerdict.EXCEEDS == weighed(files[higher_is_better], Limits(max_drop=1.0,
                                       higher_is_better=higher_is_better)).verdict  # fmt: skip


def test_what_comes_nearest():
    """
    The least excess of the worst limit; with equal ones the more accurate.
    """
    found = [weighed(item, Limits(size=300, size_text="300B")) for item in FILES]

    assert 2 == nearest(found, Limits(size=300))
    assert "1.33 × 300B" in found[2].reasons[0]
    assert 1 == nearest([FILES[2], file("better", 400, 0.0)], Limits(size=300))
    assert nearest([], Limits(size=300)) is None


def test_pareto_front():
    """
    A file that another beats or equals in everything, and beats in something, is not on it; twins both are.
    """
    files = [*FILES, file("worse", 800, -0.2), file("twin", 700, -0.1)]

    assert {0, 1, 2, 4} == pareto(files, Limits())
    timed = [file("slow", 400, 0.0, 1.0, (1, 1)), file("fast", 500, 0.0, 0.5, (0.4, 0.6)), file("untimed", 600, 0.0)]
    assert {0, 1} == pareto(timed, Limits(latency=NINE_TENTHS))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(-5, 5)), min_size=1, max_size=12), st.integers(1, 60))
def test_what_is_chosen_keeps_the_limit_and_is_on_the_front(figures, size):
    """
    Whatever the figures: nothing beyond the limit is chosen, and nothing that another one beats.
    """
    limits = Limits(size=size)
    found = [weighed(file(str(number), *entry), limits) for number, entry in enumerate(figures)]
    index = choose(found, limits)

    assert (index is None) == all(entry[0] > size for entry in figures)
    if index is not None:
        assert found[index].size_bytes <= size
        assert index in pareto(found, limits)
        assert found[index].points == max(item.points for item in found if item.size_bytes <= size)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 100)), min_size=1, max_size=20), st.integers(0, 500))
def test_layers_go_back_into_float_while_there_is_room(layers, room):
    """
    Never beyond it, never all of them, and no single layer that fits would take more noise away.
    """
    costs = [LayerCost(f"l{number}", (), "conv2d", 30.0, share) for number, (share, _) in enumerate(layers)]
    bytes_of = {f"l{number}": size for number, (_, size) in enumerate(layers)}
    kept = fill(costs, bytes_of, room)

    assert sum(bytes_of[cost.name] for cost in kept) <= room
    assert len(kept) < len(costs)
    alone = [cost.share for cost in costs if bytes_of[cost.name] <= room and len(costs) > 1]
    assert sum(cost.share for cost in kept) >= max(alone, default=0) - 1e-12
