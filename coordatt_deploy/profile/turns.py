"""Files that take turns: whatever is compared by its latency is opened and timed here, of one bundle or of several."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.latency import Measurement, ProfileSettings
from coordatt_deploy.profile.rounds import Call, measure_openings
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.tensors import encode

Feeds = Mapping[str, NumberArray]


@dataclass(frozen=True, slots=True, eq=False)
class OpenFile:
    """A file to be timed.

    Attributes:
        path: On disk.
        artifact: Its description.
        inputs: One array per input, float, in the reference's layout.
    """

    path: Path
    artifact: Artifact
    inputs: Feeds


def feeds_of(runner: Runner, inputs: Feeds) -> Feeds:
    """Return *inputs* in the layout and dtype that the file takes."""
    return {spec.name: encode(inputs[spec.name], spec) for spec in runner.inputs}


@contextmanager
def opened_calls(entries: Mapping[str, OpenFile], threads: int) -> Iterator[Mapping[str, Call]]:
    """Open files in the order given; the value is what runs one inference of each, by name.

    Raises:
        BundleError: One cannot be opened.
    """
    with ExitStack() as stack:
        calls = {}
        for name, entry in entries.items():
            opened = runtime(entry.artifact.format).open_artifact(entry.path, entry.artifact, threads=threads)
            runner = stack.enter_context(opened)
            calls[name] = partial(runner.infer, feeds_of(runner, entry.inputs))
        yield calls


def take_turns(
    entries: Mapping[str, OpenFile], settings: ProfileSettings, stages: Stages, *, threads: int, what: str = ""
) -> Measurement:
    """Time the files in interleaved rounds, opened anew as often as the settings say, each time in another order.

    Args:
        entries: By the name that the measurement has each under.
        settings: How long, and in which order.
        stages: Shows the progress.
        threads: Worker threads of the runtimes.
        what: Is timed, for the progress.

    Raises:
        BundleError: A file cannot be opened.
    """
    order = random.Random(settings.seed)  # noqa: S311  (an order, not a secret)

    def open_calls() -> AbstractContextManager[Mapping[str, Call]]:
        return opened_calls(dict(order.sample(list(entries.items()), len(entries))), threads)

    with stages.stage(f"latency{what and f' of {what}'}, {counted(threads, 'thread')}", 100) as step:
        return measure_openings(open_calls, settings, threads=threads, on_progress=percents(step))


def percents(step: Callable[[], None]) -> Callable[[float], None]:
    """Return what calls *step* once for each per cent that is done."""
    shown = 0

    def report(share: float) -> None:
        nonlocal shown
        while shown < int(share * 100 + 1e-6):
            step()
            shown += 1

    return report
