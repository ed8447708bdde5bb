"""The floor of what a gate costs: each gated feature map read once, then read again and written, beside the plain file.

    python -m benchmarks.three_passes [--backbone mobilenetv2_100] [--attention ca] [--input-size 224] [--threads 1]

A block has to read its map to pool it, and to read and write it to gate it. That alone, in torch, takes turns with the
plain network's files as ``attention-cost`` has them; what it adds to each is the least that any form could cost there.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from coordatt_deploy import host
from coordatt_deploy.attention_cost.conversions import written
from coordatt_deploy.attention_cost.networks import network
from coordatt_deploy.attention_cost.plan import BACKBONE, OURS, CostPlan, Subject
from coordatt_deploy.formats import FORMATS
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.loading.loaded_model import capture_source
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.profile.rounds import Call, measure_openings
from coordatt_deploy.profile.statistics import median_ratio
from coordatt_deploy.profile.turns import feeds_of
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.scratch import Scratch

FLOOR: Final = "three passes"


def main() -> None:
    """Write the plain files, time them and the passes in turns, print what the passes add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--attention", default="ca")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    set_environment()
    settings = ProfileSettings(threads=(options.threads,))
    size = (options.input_size, options.input_size)
    plan = CostPlan((options.backbone,), attention=(options.attention,), input_size=size, latency=settings)
    plain, attended = plan.subjects
    with Scratch() as folder, logged("three-passes"):
        source = network(plan, plain)
        graph = capture_source(source)
        ways = [way for way in plan.ways() if way.export == OURS and not FORMATS[way.format].native_systems]
        files = {way: written(source, graph, way, folder) for way in ways}
        passes = three_passes(gated_maps(plan, attended), options.threads)
        image = source.example[0].numpy()
        order = random.Random(settings.seed)  # noqa: S311 - an order, not a secret

        @contextmanager
        def open_calls() -> Iterator[Mapping[str, Call]]:
            with ExitStack() as stack:
                calls: dict[str, Call] = {FLOOR: passes}
                for way in order.sample(ways, len(ways)):
                    artifact = files[way].artifact
                    assert artifact is not None, files[way].refused  # noqa: S101 - a plain network is never refused
                    path, threads = Path(folder) / artifact.path, options.threads
                    runner = stack.enter_context(runtime(way.format).open_artifact(path, artifact, threads=threads))
                    calls[f"{way.format}"] = partial(runner.infer, feeds_of(runner, {runner.inputs[0].name: image}))
                yield calls

        latencies = measure_openings(open_calls, settings, threads=options.threads).latencies
    print(f"{host.describe().cpu}; {options.backbone} at {size[0]}x{size[1]}, gated as with {options.attention}")
    for name, latency in latencies.items():
        if name != FLOOR:
            count = min(len(latency.rounds), len(latencies[FLOOR].rounds))
            found = median_ratio(latencies[FLOOR].rounds[:count], latency.rounds[:count])
            print(f"{name}: 1 + {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")


def gated_maps(plan: CostPlan, attended: Subject) -> list[tuple[int, ...]]:
    """Return the shapes of the feature maps that attention gates."""
    graph = capture_source(network(plan, attended))
    return [(1, block.channels, block.height or 1, block.width or 1) for block in find_attention(graph).blocks]


def three_passes(shapes: list[tuple[int, ...]], threads: int) -> Callable[[], None]:
    """Return what reads every map once, and then reads and writes it: pools and gates cannot do less."""
    maps = [torch.from_numpy(np.random.default_rng(0).random(shape, np.float32)) for shape in shapes]
    results = [torch.empty_like(one) for one in maps]

    def run() -> None:
        for one, result in zip(maps, results, strict=True):
            torch.sum(one)
            torch.mul(one, 0.5, out=result)

    torch.set_num_threads(threads)
    return run


if __name__ == "__main__":
    main()
