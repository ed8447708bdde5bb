"""Runs accumulate: which takes the place of which, and which says most of a file."""

from dataclasses import replace

from coordatt_deploy.run_records import GOLDEN, Covered, RunInputs, RunRecord, accumulated, is_part_of, latest


class _NotRun(RunRecord):
    """A run of a file that could not be opened."""

    __slots__ = ()

    @property
    def answered(self) -> bool:
        return False


def run(artifact: str = "onnx/a.onnx", *, time: str = "1", count: int = 26, layers: int = 9, sha256: str = "aa",
        source: str = GOLDEN, kind: type[RunRecord] = RunRecord) -> RunRecord:  # fmt: skip
    return kind(
        kind="parity", artifact=artifact, sha256=sha256, place="here", inputs=RunInputs(source, count),
        covered=Covered(1, layers, layers), tool_versions={}, time=time,
    )  # fmt: skip


def test_a_partial_run_stands_beside_the_full_one():
    """
    Other inputs, fewer of them, or no layers are other questions; the full run still says most.
    """
    full = run()
    partial = (run(time="2", source="photos", layers=0), run(time="3", layers=0), run(time="4", count=8))

    runs = accumulated([full], partial)

    assert (full, *partial) == runs
    assert (full,) == latest(accumulated([full], partial[:2]))


def test_the_same_question_is_answered_anew():
    """
    The later run alone is kept.
    """
    again = run(time="2")

    assert (again,) == accumulated([run()], [again])


def test_a_file_that_could_not_be_run_takes_no_place():
    """
    What a machine without the runtime says does not remove what another found; alone it is kept.
    """
    unrun = run(time="2", kind=_NotRun)

    assert (run(),) == accumulated([run()], [unrun])
    assert (unrun,) == accumulated([], [unrun])


def test_runs_of_other_bytes_go_with_the_first_of_the_new_ones():
    """
    Also those that answered other questions; other files' runs stay.
    """
    old = (run(), run(source="photos"), run("onnx/b.onnx"))
    new = run(sha256="bb", layers=0, time="2")

    assert (old[2], new) == accumulated(old, [new])


def test_present_bytes_say_more_than_layers_of_earlier_ones():
    """
    A full run of bytes that are gone does not stand for the file; without hashes nobody can tell.
    """
    stale, present = run(), run(sha256="bb", layers=0, time="2")

    assert (present,) == latest([stale, present], hashes={"onnx/a.onnx": "bb"})
    assert (stale,) == latest([stale, present])


def test_each_run_knows_what_typed_it():
    """
    Command and machine are of the run, and empty in documents of older versions.
    """
    assert ("", None) == (run().command, run().machine)
    assert "coordatt-deploy parity B" == replace(run(), command="coordatt-deploy parity B").command


def test_a_run_with_layers_takes_the_place_of_one_without():
    """
    It answers that question too; the other way round both are kept.
    """
    outputs, full = run(layers=0), run(time="2")

    assert (full,) == accumulated([outputs], [full])
    assert (full, outputs) == accumulated([full], [outputs])
    assert is_part_of(outputs, full)
    assert not is_part_of(full, outputs)
