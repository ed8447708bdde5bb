"""``--save-failing``: the first failing layer with its inputs and tensors, ready to attach to a bug report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import __version__
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import SCHEMA_VERSION
from coordatt_deploy.errors import InferenceError, UsageError
from coordatt_deploy.layer_map import place_all, restore
from coordatt_deploy.parity.executors import LOCAL, Executor
from coordatt_deploy.parity.layers import ArtifactLayers, LayerRow
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


def save_failing(
    bundle: Bundle,
    layers: ArtifactLayers,
    cases: Sequence[Mapping[str, NDArray[Any]]],
    reference: ReferenceLayers,
    folder: Path,
    where: Executor = LOCAL,
) -> Path | None:
    """Write the first failing layer of one artifact to ``folder/<artifact>/``; return that, None if none failed.

    Raises:
        UsageError: The folder cannot be written.
    """
    row = next((item for item in layers.rows if item.layer_id == layers.first_diverging_layer), None)
    if row is None or layers.artifact is None:
        return None
    artifact = layers.artifact
    arrays = _tensors(bundle, layers, row, cases, reference, where)
    document = {
        "schema_version": SCHEMA_VERSION,
        "artifact": artifact.path,
        "sha256": artifact.sha256,
        "model": bundle.manifest.model.name,
        "source_sha256": bundle.manifest.model.source_sha256,
        "summary": layers.sentence(),
        "layer": row.to_json(),
        "cases": len(cases),
        "tool_versions": dict(bundle.manifest.tool_versions) | {"coordatt-deploy": __version__},
        "command": f"coordatt-deploy parity {bundle.root.name} --layers --save-failing {folder.name}",
    }
    place_for_it = folder / Path(artifact.path).name
    try:
        place_for_it.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place_for_it / "failing.npz", **arrays)  # type: ignore[arg-type]
        (place_for_it / "failing.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (place_for_it / "README.txt").write_text(_readme(document, row), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{place_for_it} cannot be written: {error.strerror}") from error
    return place_for_it


def _readme(document: Mapping[str, Any], row: LayerRow) -> str:
    entry = document["layer"]
    keys = ("sqnr_db", "max_abs_error", "local_sqnr_db", "local_max_abs_error", "local_allowed", "nonfinite")
    figures = "".join(f"           {key}: {entry[key]}\n" for key in keys if entry[key] is not None)
    return README.format(
        summary=document["summary"],
        artifact=document["artifact"],
        sha256=document["sha256"],
        model=document["model"],
        layer=row.layer_id,
        operator=row.operator,
        through=f", seen through {row.seen_through}" if row.seen_through else "",
        figures=figures,
    )


def _tensors(
    bundle: Bundle,
    layers: ArtifactLayers,
    row: LayerRow,
    cases: Sequence[Mapping[str, NDArray[Any]]],
    reference: ReferenceLayers,
    where: Executor,
) -> dict[str, NDArray[Any]]:
    artifact = layers.artifact
    assert artifact is not None  # noqa: S101 - the caller looked
    places = bundle.layers(artifact)
    layer = places.resolved(row.layer_id)
    present = [item for item in places.layers if item.parts]
    names = tuple(dict.fromkeys(part.tensor for item in present for part in item.parts))
    path = bundle.path(artifact.path)
    arrays: dict[str, NDArray[Any]] = {}
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
