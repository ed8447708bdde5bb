"""Run the reference and the artifacts on labelled images: shards go out, answers come back in any order.

Where a shard is answered is an executor's business: in this process, in several, or on the workers of a cluster. The
rest is the same for all of them.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

from coordatt_deploy.data.dataset import LabelledImage
from coordatt_deploy.evaluation.executors import Executor
from coordatt_deploy.evaluation.predictions import Predictions, Trial, assembled, sharded
from coordatt_deploy.logs import set_environment

MOST_IMAGES: Final = 16  # that a shard holds
SHARDS_EACH: Final = 4  # that a process answers at least, so that none is waited for long at the end


def run(
    trial: Trial, images: Sequence[LabelledImage], executor: Executor, step: Callable[[], None] = lambda: None
) -> Predictions:
    """Run every subject on every image.

    Args:
        trial: What to run.
        images: On which; at least one.
        executor: Where.
        step: Called once per image.

    Raises:
        MetricError: A metric of the user's own raises, or gives no number.
        DeployError: A process died, or a cluster could not go on.
    """
    set_environment()
    most = max(1, min(MOST_IMAGES, len(images) // (SHARDS_EACH * executor.processes)))
    # closed before an error is told: what is open may hold the screen
    with closing(executor.answers(trial, sharded(images, most), step)) as parts:
        return assembled(trial, len(images), parts)
