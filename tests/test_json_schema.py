from dataclasses import dataclass, field
from typing import ClassVar

from coordatt_deploy.documents import object_of
from coordatt_deploy.json_schema import schema


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    db: float


@dataclass(frozen=True, slots=True)
class Table:
    VERSION: ClassVar[int] = 3

    rows: tuple[Row, ...]
    kept: int = field(default=0, metadata={"key": "set_aside"})


def test_the_schema_describes_what_goes_out():
    """
    Its keys are those of the document, older ones included, and figures may be null.
    """
    found = schema(Table)

    assert {"schema_version", *object_of(Table(()))} == set(found["properties"])
    assert {"const": 3} == found["properties"]["schema_version"]
    assert ["number", "null"] == found["$defs"]["Row"]["properties"]["db"]["type"]
    assert "kept" not in found["properties"]
