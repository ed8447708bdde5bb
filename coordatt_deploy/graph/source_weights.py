"""Hold the weights of a bundle's ``reference/`` to the hash of those that everything was made from. Without torch.

``manifest.json`` hashes the files, and whoever changes a file can change that hash. ``source_sha256`` stands in every
artifact as well, so a reference with other weights than those is not what the artifacts were made from.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.documents import parse_object, to_json
from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import read_text
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.tensors import weights_sha256


def check_source_weights(reference: Path, manifest: Manifest) -> bool:
    """Hash the weights of the reference anew.

    Args:
        reference: The bundle's folder of the captured graph.
        manifest: Of the bundle.

    Returns:
        Whether they could be hashed; bundles of earlier versions do not say which tensors belong to the model's state.

    Raises:
        BundleError: They are not those that the manifest names, or a file is damaged.
    """
    # boards have no safetensors, and no reference that would be run
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        names = parse_object(read_text(reference / "graph.json")).get("state")
        tensors: Mapping[str, NumberArray] = load_file(reference / "weights.safetensors")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise BundleError(f"{reference.name} holds no captured graph: {error}") from None
    if names is None:
        return False
    if not isinstance(names, dict) or not all(
        isinstance(stored, str) and stored in tensors for stored in names.values()
    ):
        raise BundleError("graph.json: state names tensors that weights.safetensors does not hold")
    found = weights_sha256({name: tensors[str(stored)] for name, stored in names.items()})
    if manifest.model.source_sha256 not in _possible(found, manifest):
        raise BundleError(
            f"the weights in reference/ are not those that the bundle was made from: {found[:12]}… there,"
            f" {manifest.model.source_sha256[:12]}… expected; build the bundle again"
        )
    return True


def baked_sha256(source_sha256: str, preprocessing: object, *, softmax: bool) -> str:
    """Return what stands for the source where normalisation, and softmax, became part of the network."""
    state = f"{source_sha256} baked {to_json(preprocessing)} softmax {softmax}"
    return hashlib.sha256(state.encode()).hexdigest()


def _possible(found: str, manifest: Manifest) -> Iterator[str]:
    if manifest.bake is None or manifest.bake.preprocessing is None:
        yield found
        return
    for softmax in (False, True):
        yield baked_sha256(found, manifest.bake.preprocessing, softmax=softmax)
