"""Places side by side: which stand out, on the page and as CSV."""

import csv
import io
import math
from types import SimpleNamespace

import pytest

from coordatt_deploy.fleet import comparison
from coordatt_deploy.fleet.comparison import PlaceFigures
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.report.page.places import places_view
from coordatt_deploy.report.places_csv import HEADS, places_csv

PATH = "onnx/net.onnx"


def outliers(medians, verdict="stable"):
    timed = {
        (f"board{at}", PATH): comparison._Timed(1, median, None, verdict if at == 0 else "stable")
        for at, median in enumerate(medians)
    }
    return {place: text for (place, _), text in comparison._outliers(timed).items()}


def test_slow_board_is_named():
    """
    Of boards of one kind the one that is throttled is named, with how much slower it is; so is one that is too fast.
    """
    assert {"board0": "1.49 times slower than the median place (10 ms)"} == outliers(
        [15.0, 10.0, 10.1, 9.9, 10.0, 10.2]
    )
    assert ["board0"] == [*outliers([5.0, 10.0, 10.1, 9.9, 10.0, 10.2])]


@pytest.mark.parametrize(
    "medians",
    [
        [10.5, 10.0, 10.1, 9.9, 10.0, 10.2],  # within the usual spread
        [15.0, 10.0, 10.0],  # too few to know what is usual
        [10.0, 20.0, 40.0, 15.0, 30.0, 25.0],  # boards of different kinds
        [10.0] * 6,
    ],
)
def test_usual_differences_are_no_outliers(medians):
    """
    A few percent among equal boards, and anything among different ones, names nobody.
    """
    assert {} == outliers(medians)


def test_latency_of_no_machine_ends_nothing():
    """
    What a place says may be any number; the table of the others is made all the same.
    """
    assert [] == [*outliers([math.inf, 10.0, 10.0, 10.0, 10.0])]
    assert {"board0": "1.0e+304 times slower than the median place (1e-300 ms)"} == outliers([1e308, *[1e-300] * 4])


def test_unusable_latency_is_compared_with_none():
    """
    A latency that is said to be unusable makes no outlier.
    """
    assert {} == outliers([15.0, 10.0, 10.1, 9.9, 10.0, 10.2], verdict="unusable")


def figures(place, **values):
    return PlaceFigures(place, PATH, **values)


def test_page_shows_places_side_by_side():
    """
    A row for each place, a sentence for each that stands out or fails where others pass, a plot.
    """
    rows = [
        figures("here", threads=1, median_ms=10.0, ci95_ms=(9.9, 10.1), verdict="stable", passed=True, sqnr_db=140.0),
        figures(
            "pi4", threads=1, median_ms=30.0, verdict="noisy", passed=False, sqnr_db=3.0, stands_out="3 times slower"
        ),
        figures("pi5", metric="top-1", score=0.975, instructions=2_000_000),
    ]
    view = places_view(rows, {PATH: "onnx fp32"}, 1)
    assert ("onnx fp32 on pi4: 3 times slower.", "onnx fp32 fails on pi4, and passes on 1 place.") == view.outliers
    assert [False, True, False] == [row.bad for row in view.table.rows]
    assert ("140.0 dB", "1", "10", "9.9 … 10.1", "–", "–") == view.table.rows[0].cells
    assert ("–", "–", "–", "–", "97.50%", "2.0") == view.table.rows[2].cells
    assert "pi4 ◆" in view.figures[0].plot
    assert "pi5" not in view.figures[0].plot
    assert places_view([], {}, 1) is None


def test_plot_of_many_places_leaves_the_middle_out():
    """
    With more places than can be read, the fastest and the slowest are drawn, and how many are not is said.
    """
    rows = [figures(f"b{at:03d}", threads=1, median_ms=1.0 + at, verdict="stable") for at in range(200)]
    (figure,) = places_view(rows, {}, 1).figures
    assert "160 places between them are left out" in figure.caption
    assert [True, True, False] == [name in figure.plot for name in ("b000", "b199", "b100")]


def test_csv_holds_every_figure_and_no_formula():
    """
    A line for each file at each place; what is not known is empty, and a name that looks like a formula is text.
    """
    path = "=cmd|' /C calc'!A0"
    manifest = SimpleNamespace(
        artifacts=[
            SimpleNamespace(path=path, format=Format.ONNX, precision=Precision.FP32, recipe=None, target_cpu=None)
        ]
    )
    row = PlaceFigures("pi4", path, threads=2, median_ms=1.5, ci95_ms=(1.4, 1.6), verdict="stable", passed=True)
    heads, line = csv.reader(io.StringIO(places_csv(manifest, [row])))
    assert [*HEADS] == heads
    found = dict(zip(heads, line, strict=True))
    assert ("pi4", f"'{path}", "2", "1.5", "1.4", "1.6") == tuple(
        found[key] for key in ("place", "artifact", "threads", "median_ms", "ci95_low_ms", "ci95_high_ms")
    )
    assert ("passed", "", "") == (found["parity"], found["score"], found["outlier"])
