"""The JSON Schema of a document, for those who read it with other tools."""

from collections.abc import Mapping

import msgspec

from coordatt_deploy.documents import Document, JsonObject, JsonValue, classes_of, renamed_fields


def schema(kind: type[Document]) -> JsonObject:
    """Return the JSON Schema (draft 2020-12) of a document.

    Numbers may be null: that is how a figure that is not finite goes out. Further keys are allowed.
    """
    _, components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    renamed = {item.__name__: renamed_fields(item) for item in classes_of(kind)}
    definitions: JsonObject = {}
    for name, body in components.items():
        definitions[name] = _adjusted(body, renamed.get(name, {}))
    root = definitions.pop(kind.__name__)
    if not isinstance(root, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    properties = root["properties"]
    if not isinstance(properties, dict):
        raise TypeError(f"{kind.__name__} has no properties")
    version: JsonObject = {"schema_version": {"const": kind.VERSION}}
    root["properties"] = version | properties
    start: JsonObject = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return start | root | ({"$defs": definitions} if definitions else {})


def _adjusted(body: object, renames: Mapping[str, str]) -> JsonValue:
    if isinstance(body, dict):
        if body.get("type") == "number":
            return {**{key: _adjusted(item, {}) for key, item in body.items()}, "type": ["number", "null"]}
        found: JsonObject = {}
        for key, item in body.items():
            if key == "properties" and isinstance(item, dict):
                found[key] = {renames.get(name, name): _adjusted(value, {}) for name, value in item.items()}
            elif key == "required" and isinstance(item, list):
                found[key] = [renames.get(name, name) for name in item]
            elif key != "default":  # what a reader puts in the place of a key that is not there
                found[key] = _adjusted(item, {})
        return found
    if isinstance(body, (list, tuple)):
        return [_adjusted(item, {}) for item in body]
    if body is None or isinstance(body, (bool, int, float, str)):
        return body
    raise TypeError(f"a schema cannot hold a {type(body).__name__}")
