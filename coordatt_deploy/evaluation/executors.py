"""Where shards of images are answered: in this process, in several of this machine, or on a cluster.

All have one protocol, so that nothing else depends on it. At no time is there more than a bounded number of shards on
the way: what grows with the images is one row of numbers for each.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from typing import Final, Protocol

from coordatt_deploy import processes
from coordatt_deploy.errors import WorkerDiedError
from coordatt_deploy.evaluation.bench import Bench
from coordatt_deploy.evaluation.predictions import Predictions, Shard, Trial
from coordatt_deploy.format_modules import needing
from coordatt_deploy.host import Host, describe
from coordatt_deploy.logs import logged

AT_ONCE: Final = 4  # shards on the way for each process: one that is done finds the next one waiting


class Executor(Protocol):
    """Answers shards of images, in any order."""

    @property
    def processes(self) -> int:
        """How many shards are answered at the same time."""

    @property
    def machines(self) -> tuple[Host, ...]:
        """The kinds of machines that answer, by what their CPUs can do; at least one."""

    @property
    def machine(self) -> str | None:
        """What records name in place of this machine; None for this one."""

    @property
    def tool_versions(self) -> Mapping[str, str]:
        """What had a hand in figures beside, or in place of, what this machine has."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of where shards were answered."""

    def answers(
        self, trial: Trial, shards: Iterator[Shard], step: Callable[[], None]
    ) -> Generator[Predictions, None, None]:
        """Yield what is answered, shard by shard as it comes.

        Args:
            trial: What to run.
            shards: Taken as they can be worked on.
            step: Called once per image.

        Raises:
            MetricError: A metric of the user's own raises, or gives no number.
            DeployError: A process died, or a cluster cannot go on.
        """


class ThisMachine:
    """Answers in this process, or in others beside it."""

    def __init__(self, count: int) -> None:
        """Start none yet; *count* is 1 for this process."""
        self._count = count

    @property
    def processes(self) -> int:
        """How many processes."""
        return self._count

    @property
    def machines(self) -> tuple[Host, ...]:
        """This one."""
        return (describe(),)

    @property
    def machine(self) -> str | None:
        """None: this one."""
        return None

    @property
    def tool_versions(self) -> Mapping[str, str]:
        """None more than this machine has."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def answers(
        self, trial: Trial, shards: Iterator[Shard], step: Callable[[], None]
    ) -> Generator[Predictions, None, None]:
        """See ``Executor``."""
        first = list(islice(shards, 2))
        every = chain(first, shards)
        if self.processes == 1 or len(first) < 2:
            with ExitStack() as stack, logged("evaluate"):
                bench = Bench(trial, stack)
                for shard in every:
                    yield bench.answer(shard, step)
            return
        try:
            with processes.workers(self.processes, most=self.processes, begin=partial(_begin, trial)) as pool:
                task = processes.Task("running the artifacts on images", _answer)
                for call in pool.stream(task, every, AT_ONCE * self.processes):
                    part = call.result()
                    yield part
                    for _ in range(len(part.rows) + len(part.unreadable)):
                        step()
        except WorkerDiedError as error:
            raise WorkerDiedError(f"{error}; run it again with --workers 1") from None


_BENCH: list[Bench] = []  # of a worker process


def _begin(trial: Trial) -> None:
    with logged("evaluate"):
        _BENCH.append(Bench(trial, ExitStack()))


def _answer(shard: Shard) -> Predictions:
    with logged("evaluate"):
        return _BENCH[0].answer(shard)


@contextmanager
def opened_executor(workers: int, cluster: str | None) -> Iterator[Executor]:
    """Give what answers shards.

    Args:
        workers: Processes of this machine.
        cluster: Address of a Dask scheduler, whose workers answer instead; None for this machine.

    Raises:
        MissingDependencyError: Dask is not installed.
        TargetError: The scheduler does not answer, or has no workers.
        UsageError: A worker has other versions than this machine.
    """
    if cluster is None:
        yield ThisMachine(workers)
        return
    with needing("--cluster", "cluster"):
        from coordatt_deploy.evaluation.cluster import connected
    with connected(cluster) as executor:
        yield executor
