"""``diff``: what became of one bundle in another, or of one profile in another.

What is exact is compared exactly: contract, sizes, operators, partitions, verdicts of parity. Latency and accuracy are
compared by intervals, and "inconclusive" is an answer, with what would decide it.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.profile.pairs import PairSettings
from coordatt_deploy.profile.reports import load_profile
from coordatt_deploy.profile.result import Profile
from coordatt_deploy.progress import Stages
from coordatt_deploy.release.accuracy_change import kept_change
from coordatt_deploy.release.accuracy_run import evaluated_changes
from coordatt_deploy.release.contract import contract_of_file, contract_of_model
from coordatt_deploy.release.counterparts import Counterparts, counterparts
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffResult, DiffRow, DiffSettings
from coordatt_deploy.release.figures import BundleFigures
from coordatt_deploy.release.file_changes import operator_change, parity_change, partition_changes, size_change
from coordatt_deploy.release.latency_change import document_changes, measured_changes
from coordatt_deploy.runtimes.host_effects import FAMILIES

# The verdict of the whole is the first of these that a row has.
GRAVEST: Final = (Change.REGRESSION, Change.INCONCLUSIVE, Change.IMPROVEMENT)
ONE_RUN: Final = "measure both on one machine, best in one run: coordatt-deploy diff BUNDLE BUNDLE"


@dataclass(frozen=True, slots=True)
class DiffPlan:
    """What to compare, and by what to judge.

    Attributes:
        settings: By what to judge.
        formats: Only files of these.
        dataset: Labelled images that both are run on; None for what ``evaluate`` left.
        metric: What is scored on them; None for what the labels are made for.
        latency: Whether files are timed.
        measure_identical: Whether equal bytes are timed as well.
    """

    settings: DiffSettings = field(default_factory=DiffSettings)
    formats: tuple[Format, ...] = tuple(Format)
    dataset: str | None = None
    metric: str | None = None
    latency: bool = True
    measure_identical: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.settings.max_size_growth <= 10:
            raise UsageError(f"--max-size-growth is {self.settings.max_size_growth:.4%}; give a share such as 1 %")
        if not 0 <= self.settings.max_drop <= 100:
            raise UsageError(f"--max-drop is {self.settings.max_drop}; give percentage points from 0 to 100")
        if self.metric is not None and self.dataset is None:
            raise UsageError("--metric is for --dataset, the labelled images that both bundles are run on")
        self.pair_settings()

    def pair_settings(self) -> PairSettings:
        """Return how pairs of files are timed.

        Raises:
            UsageError: A value is none.
        """
        settings = self.settings
        return PairSettings(settings.min_effect, settings.min_seconds, settings.threads)


def diff(a: Path, b: Path, plan: DiffPlan, stages: Stages) -> DiffResult:
    """Compare *b* with *a*, two bundles or two ``profile.json``.

    Raises:
        UsageError: They are not two of a kind, have no file in common, or two documents cannot be compared; the text
            says why.
        BundleError: A bundle is damaged.
    """
    for path in (a, b):
        if not path.exists():
            raise UsageError(f"{path} does not exist; give two bundles, or two profile.json")
    if a.is_file() != b.is_file():
        names = " and ".join(f"{path} is a {'file' if path.is_file() else 'folder'}" for path in (a, b))
        raise UsageError(f"{names}; give two bundles, or two profile.json")
    set_environment()
    with logged("diff"):
        return diff_profiles(a, b, plan) if a.is_file() else diff_bundles(open_bundle(a), open_bundle(b), plan, stages)


def diff_bundles(a: Bundle, b: Bundle, plan: DiffPlan, stages: Stages) -> DiffResult:
    """Compare two bundles that are here.

    Raises:
        UsageError: Neither has a file of the formats, or the dataset does not fit.
        BundleError: A document or a file of them is damaged.
    """
    files = [[item for item in bundle.manifest.artifacts if item.format in plan.formats] for bundle in (a, b)]
    if not files[0] and not files[1]:
        raise UsageError(f"neither {a.root} nor {b.root} has a file in {', '.join(plan.formats)}; export some first")
    found = counterparts(*files)
    rows = [*contract_of_model(a.manifest, b.manifest), *_files(found, b)]
    figures = BundleFigures(a), BundleFigures(b)
    with stages.stage("sizes, operators, parity", len(found.pairs)) as step:
        for old, new in found.pairs:
            rows += _exact(*figures, old, new, plan.settings)
            step()
    pairs, notes, machine = found.pairs, _notes(a, b, plan), None
    if plan.dataset is not None and pairs:
        drop = plan.settings.max_drop
        rows += evaluated_changes(a, b, pairs, plan.dataset, plan.metric, drop, stages)
    else:
        rows += [_accuracy(*figures, old, new, plan.settings.max_drop) for old, new in pairs]
    if plan.latency and pairs:
        before = host.state()
        timed = measured_changes(
            a, b, pairs, plan.pair_settings(), stages, measure_identical=plan.measure_identical
        )  # fmt: skip
        machine = dataclasses.replace(host.describe(), before=before, after=host.state())
        rows += timed
        notes += _latency_notes(timed, [new for _, new in pairs], machine)
    labels = _labels(files[0]) | _labels(files[1])
    return _result(str(a.root), str(b.root), plan.settings, rows, notes, machine, labels)


def _labels(files: Sequence[Artifact]) -> dict[str, str]:
    """Return ``onnx fp32 arm64`` of each path, where no other file of the bundle is called so."""
    texts = {
        item.path: " ".join(filter(None, (item.format.value, item.recipe or item.precision.value, item.target_cpu)))
        for item in files
    }
    return {path: text for path, text in texts.items() if list(texts.values()).count(text) == 1}


def _files(found: Counterparts, b: Bundle) -> Iterator[DiffRow]:
    refused = {item.path: item.reason for item in b.manifest.refused}
    for item in found.lost:
        reason = f"B could not write it: {refused[item.path]}" if item.path in refused else "B has no such file"
        yield DiffRow(ChangeKind.FILES, item.path, "", "there", "gone", Change.REGRESSION, reason=reason)
    for item in found.new:
        yield DiffRow(ChangeKind.FILES, item.path, "", "–", "there", Change.CHANGED, reason="A has no such file")
    for old, new in found.pairs:
        if old.path != new.path:
            yield DiffRow(ChangeKind.FILES, new.path, "name", old.path, new.path, Change.CHANGED)


def _exact(
    a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact, settings: DiffSettings
) -> Iterator[DiffRow]:
    yield from contract_of_file(old, new)
    yield size_change(a, b, old, new, settings.max_size_growth)
    yield operator_change(a, b, old, new)
    yield from partition_changes(a, b, old, new)
    yield parity_change(a, b, old, new)


def _accuracy(a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact, max_drop: float) -> DiffRow:
    row = kept_change(a, b, old, new, max_drop)
    same = old.sha256 == new.sha256 and a.bundle.manifest.model == b.bundle.manifest.model
    if not same or row.verdict is Change.NOT_COMPARED:
        return row
    return dataclasses.replace(row, verdict=Change.NO_DIFFERENCE, change="same", reason="the same bytes")


def _notes(a: Bundle, b: Bundle, plan: DiffPlan) -> list[str]:
    notes = []
    if a.manifest.model.name != b.manifest.model.name:
        notes.append(f"the models have other names: {a.manifest.model.name}, then {b.manifest.model.name}")
    if a.manifest.source_sha256 != b.manifest.source_sha256:
        notes.append("the weights are others")
    if not plan.latency:
        notes.append("latency was left out, as was asked for")
    return notes


def _latency_notes(rows: Sequence[DiffRow], files: Sequence[Artifact], machine: host.Host) -> list[str]:
    timed = [row for row in rows if row.latency is not None]
    notes = []
    if len(timed) > 1:
        notes.append(f"p-values of the {len(timed)} latencies are corrected for their number (Holm)")
    here = FAMILIES.get(machine.architecture)
    paths = {row.path for row in timed}
    foreign = {item.target_cpu for item in files if item.path in paths} - {None, here}
    if foreign:
        cpus = " and ".join(sorted(filter(None, foreign)))
        notes.append(f"files that are made for {cpus} were timed on {machine.cpu}, whose times may move otherwise")
    return notes


def diff_profiles(a: Path, b: Path, plan: DiffPlan) -> DiffResult:
    """Compare two ``profile.json``: latencies alone.

    Raises:
        UsageError: A file is no profile; or they are of other machines, inputs, threads or files.
    """
    if plan.dataset is not None:
        raise UsageError("--dataset is for two bundles: a profile.json holds latencies alone")
    before, after = load_profile(a), load_profile(b)
    refusal = _not_comparable(before, after)
    if refusal is not None:
        raise UsageError(f"{a} and {b} cannot be compared: {refusal}; {ONE_RUN}")
    rows = document_changes(before, after, plan.settings.min_effect)
    notes = ["two runs apart have no control, and their floor is wide: small changes mostly stay inconclusive"]
    notes += [f"the profile of {name} was interrupted" for name, item in (("A", before), ("B", after))
              if item.interrupted]  # fmt: skip
    return _result(str(a), str(b), plan.settings, rows, notes, after.host)


def _not_comparable(a: Profile, b: Profile) -> str | None:
    """Why two profiles say nothing of each other; None where they do."""
    for name, what in (("cpu", "CPUs"), ("architecture", "architectures"), ("features", "CPU features"),
                       ("cores", "numbers of cores"), ("cores_available", "numbers of usable cores"),
                       ("cpu_limit", "CPU limits")):  # fmt: skip
        mine, theirs = getattr(a.host, name), getattr(b.host, name)
        if mine != theirs:
            return f"other {what}: {_shown(mine)}, then {_shown(theirs)}"
    if not a.inputs or not b.inputs:
        return "an older version wrote one of them, without the inputs that were fed"
    if dict(a.inputs) != dict(b.inputs):
        return f"other inputs: {_inputs(a)}, then {_inputs(b)}"
    if a.settings.cpu_affinity != b.settings.cpu_affinity:
        return f"pinned to other cores: {_shown(a.settings.cpu_affinity)}, then {_shown(b.settings.cpu_affinity)}"
    threads = [{item.latency.threads for item in side.results} for side in (a, b)]
    if not threads[0] & threads[1]:
        return f"other numbers of threads: {_shown(sorted(threads[0]))}, then {_shown(sorted(threads[1]))}"
    paths = [{item.path for item in side.results} for side in (a, b)]
    if not paths[0] & paths[1]:
        return f"no file in common: {_shown(sorted(paths[0]))}, then {_shown(sorted(paths[1]))}"
    return None


def _inputs(profile: Profile) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in profile.inputs.items())


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _result(
    a: str,
    b: str,
    settings: DiffSettings,
    rows: Sequence[DiffRow],
    notes: Sequence[str],
    machine: host.Host | None,
    labels: Mapping[str, str] = types.MappingProxyType({}),
) -> DiffResult:
    told = tuple(_told(row, settings, labels) for row in rows)
    found = {row.verdict for row in told}
    verdict = next((item for item in GRAVEST if item in found), Change.NO_DIFFERENCE)
    failing = {Change.REGRESSION, *([Change.INCONCLUSIVE] if settings.fail_inconclusive else [])}
    return DiffResult(a, b, verdict, not (found & failing), settings, told, tuple(notes), machine)


def _told(row: DiffRow, settings: DiffSettings, labels: Mapping[str, str]) -> DiffRow:
    label = labels.get(row.path, row.path) if row.path else ""
    accepted = row.verdict is Change.REGRESSION and row.kind in settings.accept
    return dataclasses.replace(row, label=label, verdict=Change.ACCEPTED if accepted else row.verdict)
