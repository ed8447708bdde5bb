"""What the stages of a conversion follow from, so that what was made before is not made again.

The user's module is loaded, captured and run on the golden inputs in every build. All that is reused follows from the
captured graph and its weights, not from the module: so changed code is always seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.conversion.calibration import calibration_record
from coordatt_deploy.conversion.float_artifact import FloatJob
from coordatt_deploy.conversion.golden import ROUNDINGS
from coordatt_deploy.conversion.held_out_images import held_out_cases
from coordatt_deploy.conversion.plan import Job
from coordatt_deploy.files import sha256
from coordatt_deploy.graph.saved_graph import graph_digest
from coordatt_deploy.stage_cache.keys import digest_of, digest_of_arrays, digest_of_files, stage_key
from coordatt_deploy.stage_cache.store import CachedStage, StageCache


@dataclass(frozen=True, slots=True)
class Reuse:
    """Gives every stage of an export its place in a cache.

    Attributes:
        cache: Where results are looked for and kept; None for nowhere.
        reference: Hashes of the captured graph and its weights.
        folded: The same after folding.
    """

    cache: StageCache | None = None
    reference: tuple[str, str] = ("", "")
    folded: tuple[str, str] = ("", "")

    def floats(self, jobs: Sequence[FloatJob]) -> list[FloatJob]:
        """Return the jobs with their places."""
        return [replace(job, stage=self._float(job)) for job in jobs]

    def quantized(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs with their places, and those of the images that were set aside for them."""
        return [replace(job, stage=self._quantized(job), aside_stage=self._aside(job)) for job in jobs]

    def roundings(self, feeds: Mapping[str, Sequence[NumberArray]]) -> CachedStage | None:
        """Return the place of what torch's own rounding makes of the golden inputs."""
        if self.cache is None:
            return None
        graph, weights = self.reference
        key = stage_key("golden", "roundings", graph=graph, weights=weights, golden_inputs=digest_of_arrays(feeds))
        return CachedStage(self.cache, key, ROUNDINGS)

    def _float(self, job: FloatJob) -> CachedStage | None:
        if self.cache is None:
            return None
        graph, weights = self.folded
        path = job.path.relative_to(job.path.parent.parent).as_posix()
        key = stage_key(
            "convert",
            path,
            graph=graph,
            weights=weights,
            model=digest_of(job.spec),
            golden_inputs=digest_of_arrays(job.feeds),
            options=digest_of([job.kind, job.precision, job.target_cpu, job.limits]),
        )
        return CachedStage(self.cache, key, _places(path))

    def _quantized(self, job: Job) -> CachedStage | None:
        if self.cache is None:
            return None
        graph, weights = self.reference
        source = job.source
        files = () if source is None else (source.path, source.layers)
        key = stage_key(
            "quantize",
            job.path,
            graph=graph,
            weights=weights,
            model=digest_of(job.spec),
            float_file=digest_of([source, digest_of_files(job.root, files)]),
            calibration_data=_calibration(job),
            options=digest_of([job.kind, job.final_recipe, job.recipe.name, job.target_cpu, job.limits]),
        )
        return CachedStage(self.cache, key, _places(job.path))

    def _aside(self, job: Job) -> CachedStage | None:
        place = held_out_cases(job)
        if self.cache is None or place is None:
            return None
        graph, weights = self.reference
        folder = f"golden/{place.folder}"
        key = stage_key("set aside", folder, graph=graph, weights=weights, calibration_data=_calibration(job))
        return CachedStage(self.cache, key, (folder,))


def reuse_of(cache: StageCache | None, reference: Path, folded: Path) -> Reuse:
    """Return where the stages are kept that start from two graphs.

    Args:
        cache: None for nowhere.
        reference: Folder of the captured graph.
        folded: Folder of the folded one.
    """
    return Reuse() if cache is None else Reuse(cache, _hashes(reference), _hashes(folded))


def _hashes(folder: Path) -> tuple[str, str]:
    return graph_digest(folder), sha256(folder / "weights.safetensors")


def _places(path: str) -> tuple[str, ...]:
    """An artifact and its layer map; see ``Exported.described``."""
    file = Path(path)
    return path, file.with_name(f"{file.stem}.layers.json").as_posix()


def _calibration(job: Job) -> str:
    data = job.data
    if data is None:
        return digest_of(None)
    aside = None if data.aside is None else (data.aside.fingerprint, data.aside.names)
    return digest_of([calibration_record(data), data.names, aside])
