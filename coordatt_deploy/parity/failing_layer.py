"""``--save-failing``: the first failing layer with its inputs and tensors, ready to attach to a bug report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from coordatt_deploy import __version__
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import InferenceError, UsageError
from coordatt_deploy.layer_map import place_all, restore
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.executors import LOCAL, Executor
from coordatt_deploy.parity.layers import ArtifactLayers, LayerRow, LayerVerdict
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.tensors import dequantized, encode

README: Final = """\
{summary}

artifact   {artifact}
           sha256 {sha256}
model      {model}
layer      {layer} ({operator}){through}
{figures}
failing.json holds the same for programs; failing.npz holds, for each input (000, 001, …):
  <case>/input/<name>      what the whole network was fed with, float, NCHW
  <case>/fed/<layer>       what the layer alone was fed with: the float64 reference of the layers before it
  <case>/reference         what the layer gives in float64
  <case>/whole             what it gave when the artifact ran from its own input; missing where it could not be run
  <case>/alone             what it gave when fed with the reference; likewise
All values are in the layout of the PyTorch model, dequantized. Read it with: numpy.load("failing.npz")
"""


@dataclass(frozen=True, slots=True)
class FailingLayer:
    """The document ``failing.json``.

    Attributes:
        artifact: Its path in the bundle.
        sha256: Of the file.
        model: Its name.
        source_sha256: Of its weights.
        summary: What was found, in one sentence.
        layer: The verdict on the layer.
        cases: How many inputs the arrays beside it hold.
        tool_versions: Of what made and of what judged the file.
        command: What found it, as the user typed it; empty where no command line did.
    """

    VERSION: ClassVar[int] = 1

    artifact: str
    sha256: str
    model: str
    source_sha256: str
    summary: str
    layer: LayerVerdict
    cases: int
    tool_versions: Mapping[str, str]
    command: str


def save_failing(
    candidate: Candidate,
    layers: ArtifactLayers,
    cases: Sequence[Mapping[str, NumberArray]],
    reference: ReferenceLayers,
    folder: Path,
    where: Executor = LOCAL,
    *,
    manifest: Manifest,
    command: str,
) -> Path | None:
    """Write the first failing layer of one artifact to ``folder/<artifact>/``; return that, None if none failed.

    Raises:
        UsageError: The folder cannot be written.
    """
    row = next((item for item in layers.rows if item.layer_id == layers.first_diverging_layer), None)
    if row is None:
        return None
    artifact = candidate.artifact
    arrays = _tensors(candidate, row, cases, reference, where)
    document = FailingLayer(
        artifact=artifact.path,
        sha256=artifact.sha256,
        model=manifest.model.name,
        source_sha256=manifest.model.source_sha256,
        summary=layers.sentence(),
        layer=row.record(),
        cases=len(cases),
        tool_versions=dict(manifest.tool_versions) | {"coordatt-deploy": __version__},
        command=command,
    )
    target = folder / candidate.path.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(target / "failing.npz", **arrays)  # type: ignore[arg-type]
        (target / "failing.json").write_text(dump(document), encoding="utf-8")
        (target / "README.txt").write_text(_readme(document), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    return target


def _readme(document: FailingLayer) -> str:
    layer = document.layer
    known = {
        "sqnr_db": layer.sqnr_db,
        "max_abs_error": layer.max_abs_error,
        "local_sqnr_db": layer.local_sqnr_db,
        "local_max_abs_error": layer.local_max_abs_error,
        "local_allowed": layer.local_allowed,
        "nonfinite": layer.nonfinite,
    }
    figures = "".join(f"           {key}: {value}\n" for key, value in known.items() if value is not None)
    return README.format(
        summary=document.summary,
        artifact=document.artifact,
        sha256=document.sha256,
        model=document.model,
        layer=layer.layer_id,
        operator=layer.operator,
        through=f", seen through {layer.seen_through}" if layer.seen_through else "",
        figures=figures,
    )


def _tensors(
    candidate: Candidate,
    row: LayerRow,
    cases: Sequence[Mapping[str, NumberArray]],
    reference: ReferenceLayers,
    where: Executor,
) -> dict[str, NumberArray]:
    artifact, places = candidate.artifact, candidate.layers
    layer = places.resolved(row.layer_id)
    present = [item for item in places.layers if item.parts]
    names = tuple(dict.fromkeys(part.tensor for item in present for part in item.parts))
    path = candidate.path
    arrays: dict[str, NumberArray] = {}
    with (
        where.open_artifact(path, artifact, names) as marked,
        where.open_pieces(path, artifact, names) as pieces,
    ):
        for number, feeds in enumerate(cases):
            exact = reference.reference(feeds)
            own = {spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}
            at = f"{number:03d}"
            arrays |= {f"{at}/input/{name}": value for name, value in feeds.items()}
            arrays[f"{at}/reference"] = exact.values[row.layer_id]
            arrays |= {f"{at}/fed/{name}": exact.values[name] for name in reference.sources(row.layer_id)}
            try:
                whole = marked.infer(own)
            except InferenceError:
                continue
            whole |= {spec.name: dequantized(whole[spec.name], spec) for spec in artifact.outputs}
            given = place_all(present, exact.values, {name: np.shape(whole[name]) for name in names})
            made = pieces.infer(own, given)
            for what, tensors in (("whole", whole), ("alone", made)):
                if layer is not None and all(part.tensor in tensors for part in layer.parts):
                    arrays[f"{at}/{what}"] = restore(layer, tensors)
    return arrays
