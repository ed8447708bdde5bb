"""What attention costs, as tables, Markdown and a picture; claims are no wider than their intervals."""

import io
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from rich.console import Console

from coordatt_deploy import host
from coordatt_deploy.attention_cost.plan import OFFICIAL, OURS
from coordatt_deploy.attention_cost.result import AttentionCost, CostFile, CostRow
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.models.attention_options import Activation
from coordatt_deploy.profile.compare import Comparison, Outcome
from coordatt_deploy.profile.latency import Latency
from coordatt_deploy.profile.result import ArtifactLatency, SettingsRecord, latency_record
from coordatt_deploy.report.attention_cost_markdown import cost_markdown
from coordatt_deploy.report.attention_cost_plot import cost_plot
from coordatt_deploy.report.attention_cost_tables import told
from coordatt_deploy.report.terminal import attention_cost as terminal

KIND = next(iter(Format))
SLOWER = Comparison(Outcome.SLOWER, 1.162, (1.149, 1.175), 1e-9, "slower")
EQUAL = Comparison(Outcome.NO_DIFFERENCE, 1.01, (0.98, 1.04), 0.5, "no difference")
UNKNOWN = Comparison(Outcome.INCONCLUSIVE, 1.2, (0.9, 1.6), 0.2, "inconclusive")
NOTHING_LEFT = Comparison(Outcome.INCONCLUSIVE, None, None, None, "disturbed")


def file(export, over=None, **others):
    latency = None
    if over is not None:
        measured = Latency((5_000_000,) * 40)
        latency = latency_record(ArtifactLatency("f", KIND, Precision.FP32, None, "a runtime", "measured", measured))
    cpu = TargetCpu.X86_64 if export == OURS else None
    figures = {"bytes": 1000, "operators": 12} | others
    return CostFile(export, KIND, Precision.FP32, cpu, latency=latency, latency_over_plain=over, **figures)


def cost(*over, **others):
    """Networks of one backbone, the first plain; of each the comparison of its two files."""
    rows = [CostRow("net", None, None, False, (1, 3, 8, 8), 100, 10**6, (file(OFFICIAL, EQUAL), file(OURS, EQUAL)))]
    for default, ours in over:
        files = (file(OFFICIAL, default, operators=24), file(OURS, ours, **others))
        rows.append(CostRow("net", "cbam", Activation.HARD_SWISH, False, (1, 3, 8, 8), 150, 2 * 10**6, files))
    return AttentionCost(host.describe(), SettingsRecord(), None, tuple(rows))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (SLOWER, "+16.2 % (+14.9 … +17.5)"),
        (EQUAL, "none found (-2.0 … +4.0)"),
        (UNKNOWN, "not known (-10.0 … +60.0)"),
        (NOTHING_LEFT, "not known"),
        (None, "–"),
    ],
)
def test_a_figure_stands_only_where_files_can_be_told_apart(found, expected):
    """
    With its interval; elsewhere the interval alone.
    """
    assert expected == told(found)


def printed(found, width, monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=width is not None, color_system=None)
    monkeypatch.setattr(terminal, "new_console", lambda: console)
    terminal.show_cost(found)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_no_cell_is_broken_and_no_line_too_long(width, monkeypatch):
    """
    With the longest name of a network and the longest interval; a narrow terminal leaves milliseconds out.
    """
    wide = Comparison(Outcome.SLOWER, 2.216, (2.025, 2.426), 1e-9, "slower")

    text = printed(cost((wide, UNKNOWN), (SLOWER, SLOWER)), width, monkeypatch)

    assert max(map(len, text.splitlines())) <= width
    for cell in ("cbam, hard_swish", "+121.6 % (+102.5 … +142.6)", "not known (-10.0 … +60.0)", "+50.00 %"):
        assert cell in text
    assert (width == 160) == ("  5.000  " in text)


def test_what_is_refused_and_what_is_noisy_is_said(monkeypatch):
    """
    With the network and the file that it is about; words from outside are not obeyed.
    """
    found = cost((SLOWER, SLOWER), refused="no [red]such[/red] operator")
    doubt = replace(found.rows[1].files[0].latency, verdict="noisy", reason="spread")
    rows = (found.rows[0], replace(found.rows[1], files=(
        replace(found.rows[1].files[0], latency=doubt), *found.rows[1].files[1:])))  # fmt: skip
    found = replace(found, rows=rows, interrupted=True)

    text = printed(found, 160, monkeypatch)

    assert f"net, cbam, hard_swish: ours {KIND} fp32 x86_64: not written: no [red]such[/red] operator" in text
    assert "noisy: spread" in text
    assert "interrupted" in text
    assert 1 == found.exit_code
    assert 0 == cost((SLOWER, SLOWER)).exit_code


def test_markdown_has_every_table():
    """
    As many cells in each line as there are columns; nothing in a name is obeyed.
    """
    found = cost((SLOWER, UNKNOWN))
    hostile = replace(found, rows=tuple(replace(row, backbone="a|b<script>") for row in found.rows))

    text = cost_markdown(hostile)

    assert "<script>" not in text
    assert r"\+16.2 % \(\+14.9 … \+17.5\)" in text
    widths = [line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert {6, 7} == set(widths)


def test_the_picture_is_sound_xml_and_says_what_is_not_known():
    """
    A bar for each file, its interval a line; where files cannot be told apart no figure stands behind the bar.
    """
    root = ET.fromstring(cost_plot(cost((SLOWER, UNKNOWN), (EQUAL, SLOWER))))  # noqa: S314 - our own
    texts = [item.text for item in root.iter() if item.tag.endswith("text")]
    classes = [item.get("class") for item in root.iter() if item.tag.endswith(("rect", "line"))]

    assert ["+16.2 %", "not known", "none found", "+16.2 %"] == [
        text for text in texts if text in {"+16.2 %", "not known", "none found", "+20.0 %", "+1.0 %"}
    ]
    assert 4 == classes.count("interval")
    assert (1, 1) == (classes.count("ours unknown"), classes.count("default unknown"))


def test_a_name_in_the_picture_is_text():
    """
    Whatever a backbone is called.
    """
    found = cost((SLOWER, SLOWER))
    hostile = replace(found, rows=tuple(replace(row, backbone="</text><script>") for row in found.rows))

    assert "<script>" not in cost_plot(hostile)


def test_operators_are_drawn_where_nothing_was_measured():
    """
    Over the plain network's fewest.
    """
    assert "Operators over plain: net" in cost_plot(cost((None, None)))
    assert "+100.0 %" in cost_plot(cost((None, None)))
