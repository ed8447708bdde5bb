"""Which file each file is held against, on made-up measurements."""

import numpy as np

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.attention_cost.figures import Figures, row
from coordatt_deploy.attention_cost.plan import OFFICIAL, OURS, Subject, Way
from coordatt_deploy.attention_cost.written import WrittenFile, WrittenNetwork
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.profile.compare import Outcome
from coordatt_deploy.profile.latency import Latency

KIND = next(iter(Format))
DEFAULT = Way(OFFICIAL, KIND, Precision.FP32)
X86, ARM = (Way(OURS, KIND, Precision.FP32, cpu) for cpu in (TargetCpu.X86_64, TargetCpu.ARM64))
PLAIN, SE = Subject("net"), Subject("net", "squeeze_excite")


def network(subject, ways, refused=()):
    files = []
    for way in ways:
        artifact = Artifact("f", way.format, way.precision, None, way.target_cpu, 10, "0", (), (), "")
        files.append(WrittenFile(way, refused="why") if way in refused else WrittenFile(way, artifact, 3))
    return WrittenNetwork(subject, 1, 2, (1, 3, 8, 8), tuple(files))


def latency(ms, seed=0, spread=0.002):
    samples = ms * 1e6 * np.random.default_rng(seed).normal(1, spread, 400)
    return Latency(tuple(int(sample) for sample in samples), openings=10)


def rows(latencies, instructions=None, ways=(DEFAULT, X86, ARM), refused=()):
    """The files of SE, by way."""
    networks = [network(PLAIN, ways), network(SE, ways, refused)]
    runtimes = dict.fromkeys(latencies, "a runtime")
    found = row(networks[1], networks, Figures(latencies, runtimes, instructions or {}))
    return dict(zip(ways, found.files, strict=True))


def test_latency_is_held_against_the_faster_plain_file():
    """
    Whoever wrote it: here the official converter's is slower than ours.
    """
    found = rows({(PLAIN, DEFAULT): latency(5.0), (PLAIN, X86): latency(4.0, 1), (SE, DEFAULT): latency(8.0, 2),
                  (SE, X86): latency(6.0, 3)})  # fmt: skip

    assert abs(found[DEFAULT].latency_over_plain.ratio - 2.0) < 0.01
    assert abs(found[X86].latency_over_plain.ratio - 1.5) < 0.01
    assert abs(found[X86].latency_over_default.ratio - 0.75) < 0.01
    assert found[DEFAULT].latency_over_default is None
    assert found[ARM].latency is None


def test_instructions_are_held_against_a_form_for_the_same_cpu():
    """
    The plain form for the other CPU is cheaper here, and is no rival of this one.
    """
    counted = {(PLAIN, DEFAULT): 200, (PLAIN, X86): 50, (PLAIN, ARM): 100, (SE, DEFAULT): 300, (SE, ARM): 110}

    found = rows({}, counted)

    assert 1.1 == found[ARM].instructions_over_plain
    assert 110 / 300 == found[ARM].instructions_over_default
    assert found[X86].instructions is None


def test_files_that_cannot_be_told_apart_are_not_called_dearer():
    """
    The same latency with other noise: no difference, and an interval around one.
    """
    found = rows({(PLAIN, X86): latency(4.0, 1), (SE, X86): latency(4.0, 2)})[X86].latency_over_plain

    assert Outcome.NO_DIFFERENCE == found.outcome
    assert found.ci95[0] < 1 < found.ci95[1]


def test_a_file_that_is_not_there_has_its_reason_and_no_figure():
    """
    And nothing is held against it.
    """
    found = rows({(PLAIN, X86): latency(4.0, 1), (SE, X86): latency(5.0, 2)}, refused=(DEFAULT,))

    assert "why" == found[DEFAULT].refused
    assert (None, None) == (found[DEFAULT].bytes, found[DEFAULT].latency)
    assert found[X86].latency_over_default is None
    assert found[X86].latency_over_plain.outcome is Outcome.SLOWER
