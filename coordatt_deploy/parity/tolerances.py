"""``--tolerance FILE``: other tolerances than the built-in table, in a typed TOML or JSON file.

reason = "phones of the lab"          # optional; shown beside the verdicts

[onnx.fp32]
multiple = 32.0                       # of torch's own rounding error, at the outputs and at every layer

[tflite.static_wi8_ai8]               # a recipe's name, where weights are integers
multiple = 8.0                        # of what rounding to integers costs torch, in every channel of every layer
min_sqnr_db = 18.0                    # at the outputs; in float: at outputs and layers, instead of a multiple
min_top1_agreement = 0.95
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.parity.outputs import TOLERANCES, Tolerance
from coordatt_deploy.specs import Format, from_json

KEYS: Final = ("multiple", "min_sqnr_db", "min_top1_agreement")
Tolerances = Mapping[tuple[Format, str], Tolerance]
BUILT_IN: Final[Tolerances] = TOLERANCES


def read_tolerances(path: Path, table: Tolerances = BUILT_IN) -> Tolerances:
    """Return *table* with what the file at *path* says put in its place.

    Raises:
        UsageError: It cannot be read, a name is unknown (the text holds the nearest), or a value is out of range.
    """
    document = _read(path)
    reason = document.pop("reason", f"from {path.name}")
    if not isinstance(reason, str):
        raise UsageError(f"{path.name}: reason is {reason!r}, expected a text")
    known = {kind.value for kind, _ in table}
    changed = dict(table)
    for name, precisions in document.items():
        if name not in known:
            raise UsageError(f"{path.name}: unknown format {name!r}; {nearest(name, [*known, 'reason'])}")
        kind = Format(name)
        if not isinstance(precisions, dict):
            raise UsageError(
                f"{path.name}: {name} is {precisions!r}, expected a table for each precision: [{name}.fp32]"
            )
        for label, values in precisions.items():
            where = f"{path.name}, [{name}.{label}]"
            if (kind, label) not in table:
                labels = [str(other) for of, other in table if of is kind]
                raise UsageError(
                    f"{where}: {name} files have no precision or recipe {label!r}; {nearest(label, labels)}"
                )
            changed[kind, label] = _changed(table[kind, label], values, where, reason)
    return changed


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        document = from_json(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"there is no tolerance file {path}") from None
    except (OSError, ValueError) as error:  # both parsers raise kinds of ValueError
        raise UsageError(f"{path} cannot be read as {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path.name} must hold a table for each format, such as [onnx.fp32]")
    return document


def _changed(tolerance: Tolerance, values: Any, where: str, reason: str) -> Tolerance:
    if not isinstance(values, dict):
        raise UsageError(f"{where} is {values!r}, expected a table with {', '.join(KEYS)}")
    for key, value in values.items():
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, KEYS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"{where}: {key} is {value!r}, expected a number")
    if "multiple" in values and "min_sqnr_db" in values and tolerance.weight_bits is None:
        raise UsageError(f"{where}: give multiple or min_sqnr_db; one takes the place of the other")
    if values.get("multiple", 1.0) <= 0:
        raise UsageError(f"{where}: multiple is {values['multiple']}, expected a number above 0")
    if not 0 <= values.get("min_top1_agreement", 0.0) <= 1:
        raise UsageError(f"{where}: min_top1_agreement is {values['min_top1_agreement']}, expected a share from 0 to 1")
    numbers = {key: float(value) for key, value in values.items()}
    keeps = "multiple" not in numbers or tolerance.weight_bits is not None
    return replace(
        tolerance,
        reason=reason,
        multiple=numbers.get("multiple", tolerance.multiple),
        min_sqnr_db=numbers.get("min_sqnr_db", tolerance.min_sqnr_db if keeps else None),
        min_top1_agreement=numbers.get("min_top1_agreement", tolerance.min_top1_agreement),
    )
