"""Proofs of earlier runs: of the same bytes, judged on the same values by the same code, on the same machine.

A proof is a statement about bytes, and a computation that gives the same each time. So it is computed once and kept,
under the hashes of all that it speaks of: the file and its layer map, the reference, the golden values and images, what
the manifest says of them; and of all that computed it: this package's source, the runtimes and everything they
require, the machine. A single other bit anywhere is another key, and the file is judged again. The proof says when it
was made, and the record in ``reports/`` is the one that was written then.

Only what passed whole is kept, outputs and every layer: a failure is always looked at anew.
"""

from dataclasses import replace
from typing import Final

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.files import sha256
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.reports import ParityRun
from coordatt_deploy.parity.result import ArtifactParity, EarlierProof
from coordatt_deploy.stage_cache.keys import digest_of, digest_of_files, stage_key
from coordatt_deploy.stage_cache.store import CachedStage, StageCache

ARCHIVES: Final = ("inputs.npz", "outputs.npz", "rounding_fp32.npz", "rounding_fp16.npz")


def proof_stage(
    cache: StageCache, bundle: Bundle, artifact: Artifact, threads: int, machine: host.Host | None
) -> CachedStage | None:
    """Return where the proof of an artifact is kept; None where the file is not the one that the manifest lists.

    Args:
        cache: That it is in.
        bundle: With the artifact.
        artifact: To be proven.
        threads: Of the runtime.
        machine: That it is run on; looked up by default.

    Raises:
        BundleError: A path leaves the bundle, or leads to no regular file.
    """
    record = bundle.manifest.quantization.get(artifact.path)
    held_out = None if record is None else record.held_out
    golden = [f"golden/{name}" for name in ARCHIVES] + ["golden/images"]
    golden += [case.image for case in bundle.manifest.golden if case.image is not None]
    golden += [] if held_out is None else [f"golden/{held_out.folder}"]
    for path in (artifact.path, artifact.layers, *golden):
        bundle.path(path)  # or it is refused
    file = sha256(bundle.path(artifact.path))
    if file != artifact.sha256:
        return None
    key = stage_key(
        "parity",
        artifact.path,
        machine,
        file=file,
        layer_map=sha256(bundle.path(artifact.layers)),
        reference=digest_of_files(bundle.root, ["reference/graph.json", "reference/weights.safetensors"]),
        golden_values=digest_of_files(bundle.root, golden),
        manifest=digest_of(_of_one(bundle.manifest, artifact)),
        options=digest_of([threads]),
    )
    return CachedStage(cache, key)


def take_proof(stage: CachedStage, artifact: Artifact) -> ParityRun | None:
    """Return the proof of these very bytes; None where there is none."""

    def accept(run: ParityRun) -> bool:
        result = run.result
        whole = result.passed is True and result.layers_passed is True and run.time is not None
        return whole and (run.artifact, run.sha256, result.sha256) == (artifact.path, *(artifact.sha256,) * 2)

    return stage.take(stage.cache.folder, ParityRun, accept)


def keep_proof(stage: CachedStage, verdict: ArtifactParity, run: ParityRun) -> None:
    """Keep the proof, if it is one: of every output and at every layer.

    Args:
        stage: Made after the run, so that it speaks of the bytes that are there now.
        verdict: What was found.
        run: The same as it is written down.
    """
    layers = verdict.layers
    if verdict.passed is True and layers is not None and layers.passed is True and not run.believed:
        stage.keep(stage.cache.folder, run)


def as_verdict(artifact: Artifact, run: ParityRun) -> ArtifactParity:
    """Return what the earlier run found."""
    found = run.result
    earlier = EarlierProof(found, run.time or "", run.tool_versions.get("coordatt-deploy", ""), run.machine or "")
    return ArtifactParity(
        artifact,
        found.runtime,
        found.origin,
        found.passed,
        found.outputs,
        found.tolerance,
        found.problem,
        None,
        found.warning,
        found.images_from_png,
        found.as_run_here,
        earlier,
    )


def _of_one(manifest: Manifest, artifact: Artifact) -> Manifest:
    """The manifest without what no judge of *artifact* reads: the other files, and when and how it was written."""
    own = artifact.path
    return replace(
        manifest,
        artifacts=(artifact,),
        lowering={path: item for path, item in manifest.lowering.items() if path == own},
        quantization={path: item for path, item in manifest.quantization.items() if path == own},
        files={},
        tool_versions={},
        command="",
        commands=(),
        stages=(),
        notes=(),
        refused=(),
        golden_source="",
        config=None,
    )
