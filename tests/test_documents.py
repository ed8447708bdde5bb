"""The codec: what goes out comes back as it was, and what does not fit is refused with its place."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.documents import (
    REQUIRED,
    DocumentError,
    check_version,
    dump,
    from_json,
    load,
    object_of,
    parse,
    parse_object,
    to_json,
)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    db: float
    share: float | None = None
    values: tuple[float, ...] = ()
    by_layer: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    VERSION: ClassVar[int] = 3

    rows: tuple[Row, ...]
    kept: int = field(default=0, metadata={"key": "set_aside"})
    by_threads: Mapping[int, Row] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict, metadata=REQUIRED)


figures = st.floats(allow_nan=False)
rows = st.builds(
    Row, st.text(), figures, st.none() | figures, st.lists(figures).map(tuple), st.dictionaries(st.text(), figures)
)
tables = st.builds(
    Table,
    st.lists(rows).map(tuple),
    st.integers(-(2**53), 2**53),
    st.dictionaries(st.integers(0, 64), rows),
    st.dictionaries(st.text(), st.text()),
)


@given(tables)
def test_what_goes_out_comes_back(table):
    """
    Also infinite figures, inside tuples and under keys with any letter in them.
    """
    assert table == load(Table, dump(table))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["db", "share", "values", "by_layer"])
def test_a_figure_that_is_not_finite_is_null_with_a_flag(value, place):
    """
    Strict JSON has no form for it: null stands in its place, and the flag says what it was.
    """
    given_value = {"values": (1.0, value), "by_layer": {"a/b~c": value}}.get(place, value)
    row = Row(**{"name": "r", "db": 0.0} | {place: given_value})

    document = json.loads(json.dumps(object_of(row), allow_nan=False))
    found = getattr(from_json(Row, document), place)

    key = {"values": "values/1", "by_layer": "by_layer/a~1b~0c"}.get(place, place)
    assert {key: str(value)} == document["not_finite"]
    assert repr(given_value) == repr(found)


def test_none_stays_none():
    """
    A null without a flag is a figure that is not there.
    """
    document = object_of(Row("r", 1.0))

    assert "not_finite" not in document
    assert from_json(Row, document).share is None


def test_a_field_keeps_its_older_key():
    """
    What is called otherwise in the program is still found under the key that documents have.
    """
    table = Table((), kept=5)

    assert 5 == object_of(table)["set_aside"]
    assert 5 == load(Table, dump(table)).kept


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"schema_version": 3, "files": {}, "rows": [{"name": 3, "db": 1}]}', "$.rows[0].name"),
        ('{"schema_version": 3, "files": {}, "rows": [{"name": "a"}]}', "`db` - at `$.rows[0]`"),
        ('{"schema_version": 3, "files": {}, "rows": 3}', "$.rows"),
        ('{"schema_version": 3, "files": {}, "rows": [[]]}', "$.rows[0]"),
        ('{"schema_version": 3, "rows": []}', "`files`"),
        ('{"schema_version": 3, "files": {}, "rows": [{"name": "a", "db": null}]}', "$.rows[0].db"),
        ('{"schema_version": 3, "files": {}, "rows": [], "set_aside": "many"}', "set_aside"),
        ('{"schema_version": 2, "files": {}, "rows": []}', "schema_version is 2, expected 3"),
        ('{"schema_version": true, "files": {}, "rows": []}', "schema_version"),
        ('{"schema_version": 3, "rows": [], "rows": [], "files": {}}', "'rows' stands twice"),
        ('{"schema_version": 3, "files": {}, "rows": [{"name": "a", "db": NaN}]}', "NaN is not JSON"),
        ("[]", "a list, expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(document, words):
    """
    A wrong kind, a missing field, another version, a key that stands twice, no JSON at all.
    """
    with pytest.raises(DocumentError) as caught:
        load(Table, document)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    "marks",
    [
        {"db": "huge"},
        {"nothing": "inf"},
        {"db": "inf", "name": "nan"},
        {"values/7": "inf"},
        {"values/x": "inf"},
        {"": "inf"},
    ],
)
def test_flags_that_lie_are_refused(marks):
    """
    A flag for a figure that is there, for one that is not, or with another word.
    """
    document = {"name": "r", "db": None, "values": [1.0], "not_finite": marks}

    with pytest.raises(DocumentError):
        from_json(Row, document)


def test_documents_ignore_keys_and_what_people_write_refuses_them():
    """
    An older version reads what a newer one wrote; a typo in a configuration is named with the nearest key.
    """
    document = {"name": "r", "db": 1.0, "shaer": 0.5}

    assert Row("r", 1.0) == from_json(Row, document)
    with pytest.raises(DocumentError, match=r"'shaer'.*share"):
        from_json(Row, document, unknown_keys=False)


def test_only_plain_values_go_out():
    """
    What has no form in JSON is an error of the program, not a surprise in a file.
    """
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1, 2}})


@pytest.mark.parametrize("version", [0, 2, "3", None, True])
def test_versions(version):
    """
    Only the very numbers that are known are read.
    """
    with pytest.raises(DocumentError):
        check_version({"schema_version": version}, 1, 3)
    check_version({"schema_version": 3}, 1, 3)


@given(st.recursive(st.none() | st.booleans() | st.integers() | figures | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_any_json_is_data_or_an_error(value):
    """
    Whatever JSON comes, the codec gives the type or a DocumentError; nothing else escapes.
    """
    text = json.dumps(value, allow_nan=False) if not _has_infinite(value) else "{}"
    try:
        load(Table, text)
    except DocumentError:
        return
    assert 3 == parse_object(text)["schema_version"]


def _has_infinite(value):
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_infinite, value.values()))
    return isinstance(value, list) and any(map(_has_infinite, value))


def test_parse_gives_what_json_gives():
    """
    Beyond what is refused the parser is the standard library's.
    """
    text = '{"a": [1, 2.5, "x", null, true], "b": {}}'

    assert json.loads(text) == parse(text)
