"""Mutations of each kind of file: its bytes, and what its own format lets one say."""

import io
import json
import random
import zipfile
from collections.abc import Callable

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from google.protobuf.message import Message

from coordatt_deploy.runtimes.coreml.coremltools_import import proto

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (-1, 0, 1, 2, 3, 255, 4096, 2**20, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 2**70)
WORDS = (
    "", "a", "..", "../canary/kept", "/etc/passwd", "image", "a" * 5000, "x\nError: all is well", "\x1b[2J", "[red]",
    "\ud800", "\x00", "<script>", "%s%n", "ﬁ", "C:\\x", "é" * 90, "__class__",
)  # fmt: skip
JSON_VALUES = (None, True, [], {}, [[]], 0.5, 1e308, -0.0, float("nan"), *NUMBERS, *WORDS)
DEEP = 20_000


def raw(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) or 1)
        kind = rng.randrange(6)
        if kind < 3 and changed:
            changed[at] = rng.choice((0, 255, 127, 128, changed[at] ^ 1 << rng.randrange(8)))
        elif kind == 3:
            del changed[at : at + rng.choice((1, 4, 64, len(changed)))]
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        else:
            changed[at:at] = changed[at : at + rng.choice((4, 64, 1024))]
    return bytes(changed)


def json_text(content: bytes, rng: random.Random) -> bytes:
    """Change one value, key or list of a JSON text; or its nesting."""
    if rng.random() < 0.05:
        opening = rng.choice(("[", '{"a":'))
        return (opening * DEEP).encode()
    document = json.loads(content)
    places: list[tuple[dict | list, object]] = []
    _walk(document, places)
    if not places or rng.random() < 0.03:
        return json.dumps(rng.choice(JSON_VALUES)).encode()
    by_key: dict[object, list] = {}
    for holder, key in places:
        by_key.setdefault(key if isinstance(holder, dict) else "[]", []).append((holder, key))
    holder, key = rng.choice(by_key[rng.choice(sorted(by_key, key=str))])  # seldom keys as often as frequent ones
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(WORDS)] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.extend(holder[key : key + 1] * rng.choice((1, 3)))
    elif kind == 3 and isinstance(holder[key], (int, float)):
        holder[key] = rng.choice(NUMBERS)
    elif kind == 4:  # another value of the document
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))
    else:
        holder[key] = rng.choice(JSON_VALUES)
    return json.dumps(document).encode()


def _walk(value: object, places: list) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        places.append((value, key))
        _walk(item, places)


def toml_text(content: bytes, rng: random.Random) -> bytes:
    """Change a line, or nest deeper than any parser goes."""
    if rng.random() < 0.2:
        return rng.choice((b"a = " + b"[" * DEEP, b"[" + b"a." * DEEP + b"a]", b"a = " + b"{a=" * DEEP))
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    key = lines[at].partition("=")[0]
    lines[at] = rng.choice((
        f"{key} = {rng.choice(NUMBERS)}", f"{key} = {json.dumps(rng.choice(WORDS))}", f"{key} = nan",
        f"{key} = [1, {{}}]", "[onnx.fp32]", "[[onnx.fp32]]", "[tflite]", "min_sqnr_db = 1e400",
        f"{key} = 1979-05-27", "",
    ))  # fmt: skip
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def npz(content: bytes, rng: random.Random) -> bytes:
    """Change a member's header or values, its name, or how the archive holds it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    array = np.load(io.BytesIO(members[name]))
    changes = (
        lambda: array.astype(rng.choice(("f2", "f8", "i4", "u1", "c8", "U3", "bool"))),
        lambda: array[..., :-1] if array.ndim else array,
        lambda: array[None],
        lambda: np.full_like(array, rng.choice((np.nan, np.inf, 0, 1e30))),
        lambda: np.array([{"a": 1}], dtype=object),
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: np.zeros(3, [("a", "f4"), ("b", "i8")]),
    )
    kind = rng.randrange(len(changes) + 5)
    if kind < len(changes):
        stream = io.BytesIO()
        np.save(stream, rng.choice(changes)(), allow_pickle=True)
        members[name] = stream.getvalue()
    elif kind == len(changes):  # the header lies about the shape
        shape = rng.choice((b"(9999999999,)", b"(-1,)        ", b"(2147483647, 2147483647)", b"(True,)", b"[1]"))
        start, end = members[name].index(b"("), members[name].index(b")") + 1
        members[name] = members[name][:start] + shape + members[name][end:]
    elif kind == len(changes) + 1:
        members[rng.choice(("", "a", "000/../x.npy", "999/logits.npy", "/x", "é.npy"))] = members.pop(name)
    elif kind == len(changes) + 2:
        del members[name]
    elif kind == len(changes) + 3:
        members[name] = raw(members[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    packed = bytearray(stream.getvalue())
    if kind == len(changes) + 4:  # every entry says that it is encrypted, or of an unknown compression
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = packed.find(mark)
            while at >= 0:
                packed[at + offset + rng.choice((0, 2))] |= 1
                at = packed.find(mark, at + 4)
    return bytes(packed)


def safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header, which is JSON, or the values."""
    length = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.6:
        header = json_text(header, rng)
        return len(header).to_bytes(8, "little") + header + values
    return rng.choice(NUMBERS[:8]).to_bytes(8, "little", signed=True) + header + values


def protobuf(kind: type[Message]) -> Mutation:
    """Return a mutation of one field of a message, somewhere below."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        message = kind.FromString(content)
        places: list[tuple[Message, object]] = []
        _fields(message, places)
        by_name: dict[str, list] = {}
        for holder, field in places:
            by_name.setdefault(field.full_name, []).append((holder, field))
        holder, field = rng.choice(by_name[rng.choice(sorted(by_name))])
        _change(holder, field, rng)
        return message.SerializePartialToString()

    return mutate


def _fields(message: Message, places: list) -> None:
    for field, value in message.ListFields():
        places.append((message, field))
        if field.message_type is None:
            continue
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if not repeated:
            _fields(value, places)
        elif not field.message_type.GetOptions().map_entry:
            for item in value:
                _fields(item, places)
        elif field.message_type.fields_by_name["value"].message_type is not None:
            for key in value:
                _fields(value[key], places)


def _change(holder: Message, field: object, rng: random.Random) -> None:
    value = getattr(holder, field.name)
    if hasattr(value, "append") and len(value):
        at = rng.randrange(len(value))
        if field.message_type is None:
            value[at] = _other(value[at], rng)
        elif rng.random() < 0.5:
            del value[at]
        else:
            value.append(value[at])
    elif field.message_type is not None or rng.random() < 0.2:
        holder.ClearField(field.name)
    else:
        setattr(holder, field.name, _other(value, rng))


def _other(value: object, rng: random.Random) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        # Beyond 32 bits only where such a number stands already; enumerations refuse none of these.
        return rng.choice([number for number in NUMBERS if 0 <= number < 2**31])
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    if isinstance(value, bytes):
        return raw(value, rng)
    return rng.choice([word for word in WORDS if word != "\ud800"])


def tflite(content: bytes, rng: random.Random) -> bytes:
    """Change one field of one table, as the schema has it."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    places: list[tuple[object, str, str]] = []
    _tables(model, "model", places)
    by_name: dict[str, list] = {}
    for holder, key, name in places:
        by_name.setdefault(name, []).append((holder, key))
    while True:
        holder, key = rng.choice(by_name[rng.choice(sorted(by_name))])
        before = getattr(holder, key)
        setattr(holder, key, _other_field(before, rng))
        builder = flatbuffers.Builder(1 << 16)
        try:
            builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
            return bytes(builder.Output())
        except Exception:  # noqa: BLE001 - a number beyond its field: no file holds that
            setattr(holder, key, before)


def _tables(table: object, name: str, places: list) -> None:
    for key, value in vars(table).items():
        places.append((table, key, f"{name}.{key}"))
        for item in value if isinstance(value, list) else [value]:
            if hasattr(item, "__dict__") and not isinstance(item, np.ndarray):
                _tables(item, f"{name}.{key}", places)


def _other_field(value: object, rng: random.Random) -> object:
    if isinstance(value, np.ndarray) and len(value):
        changed = value.copy()
        kind = rng.randrange(5)
        if kind == 0:
            return changed[:0]
        if kind == 1:
            return changed[:-1]
        if kind == 2:
            return np.concatenate([changed, changed])
        limits = np.iinfo(value.dtype) if value.dtype.kind in "iu" else None
        number = rng.choice(NUMBERS) if limits else rng.choice((0.0, -1.0, np.nan, np.inf))
        changed[rng.randrange(len(changed))] = number if limits is None else min(max(number, limits.min), limits.max)
        return changed
    if isinstance(value, list) and value:
        kind = rng.randrange(4)
        return (None, [], value * 2, [*value[:-1]])[kind]
    if isinstance(value, (bool, int, float)):
        return _other(value, rng) if rng.random() < 0.8 else -1
    return raw(value, rng) if isinstance(value, bytes) and value else None


def image(content: bytes, rng: random.Random) -> bytes:
    """Change the size that the header says, or take another format's first bytes."""
    if content.startswith(b"\x89PNG") and rng.random() < 0.4:
        size = rng.choice((0, 1, 100_000, 2**31 - 1)).to_bytes(4, "big")
        at = rng.choice((16, 20))
        return content[:at] + size + content[at + 4 :]
    starts = (
        b"GIF89a\xff\xff\xff\xff",
        b"BM",
        b"II*\x00",
        b"RIFF",
        b"\xff\xd8\xff\xe0",
        b"%!PS",
        b"8BPS",
        b"P6 9 9 9\n",
    )
    return rng.choice(starts) + content[rng.randrange(16) :]


# By the end of a file's name; each is mixed with ``raw``.
MUTATIONS: dict[str, Mutation] = {
    "json": json_text,
    "toml": toml_text,
    "npz": npz,
    "safetensors": safetensors,
    "onnx": protobuf(onnx.ModelProto),
    "mlmodel": protobuf(proto.Model_pb2.Model),
    "tflite": tflite,
    "png": image,
}


def mutate(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """Return *content* changed: by its own format, or in its bytes."""
    own = MUTATIONS.get(suffix)
    if own is None or rng.random() < 0.3:
        return raw(content, rng)
    try:
        return own(content, rng)
    except (ValueError, TypeError, AttributeError):  # a value that the format itself has no way to hold
        return raw(content, rng)
