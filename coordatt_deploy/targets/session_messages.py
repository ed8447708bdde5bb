"""What a session's client and server say to each other: one JSON document per line, requests in, answers out.

Arrays travel as .npz files named in them, never pickled. All paths are relative to the server's working folder.
"""

from typing import Literal, TypeAlias, TypedDict

from coordatt_deploy.documents import JsonObject, JsonValue


class VersionsRequest(TypedDict):
    """Import the runtimes of *formats*, and tell the versions of *packages*."""

    do: Literal["versions"]
    packages: list[str]
    formats: list[str]


class VersionsAnswer(TypedDict):
    """Versions by package."""

    versions: dict[str, str]


class OpenRequest(TypedDict):
    """Open the file at *path*, which *artifact* describes as the manifest does, with these inner tensors."""

    do: Literal["open"]
    path: str
    artifact: JsonObject
    tensors: list[str]


class OpenAnswer(TypedDict):
    """The number of the runner, and what it says of itself."""

    runner: int
    inputs: JsonValue
    outputs: JsonValue
    runtime: str


class InferRequest(TypedDict):
    """Run *runner* once on the arrays in *feeds*, whose names are *names*; leave the outputs in *results*.

    With *mark*, the instruction counter is told where the inference begins and ends.
    """

    do: Literal["infer"]
    runner: int
    names: list[str]
    feeds: str
    results: str
    mark: int | None


class InferAnswer(TypedDict):
    """The names of the arrays in the file of results, in their order there."""

    names: list[str]


class CloseRequest(TypedDict):
    """Close *runner*."""

    do: Literal["close"]
    runner: int


class CloseAnswer(TypedDict):
    """Nothing to tell."""


class ErrorAnswer(TypedDict):
    """The request failed: the class of the error, one of ``coordatt_deploy.errors``, and its text."""

    error: str
    text: str


Request: TypeAlias = VersionsRequest | OpenRequest | InferRequest | CloseRequest
Answer: TypeAlias = VersionsAnswer | OpenAnswer | InferAnswer | CloseAnswer
