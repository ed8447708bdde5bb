"""The values of options, and how groups of them reach a command."""

from dataclasses import dataclass, field, fields

import click
import pytest
from click.testing import CliRunner

from coordatt_deploy.commands.options import bounds, gathered, json_object, member_of, named_shape, numbers, size
from coordatt_deploy.formats import Format


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (size, "224", (224, 224)),
        (size, "320x192", (320, 192)),
        (size, "320X192", (320, 192)),
        (size, "1x4096", (1, 4096)),
        (bounds, "96:320:32", (96, 320, 32)),
        (numbers, "1", (1,)),
        (numbers, "1, 2", (1, 2)),
        (named_shape, "prior=1x8X20", ("prior", (1, 8, 20))),
        (json_object, '{"width": 0.5}', {"width": 0.5}),
        (member_of(Format, "format"), "onnx", Format.ONNX),
    ],
)
def test_a_value_is_read(read, text, expected):
    """
    As the help shows it.
    """
    assert expected == read(text)


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        *((size, text, "is no size") for text in ("", "x", "224x", "x224", "-1", "1.5", "224x224x3", "０", "big")),
        *((bounds, text, "give MIN:MAX") for text in ("", "96", "96:", "a:b")),
        *((numbers, text, "is no list of whole numbers") for text in ("", "a", "1,", "1;2", "-1", "1.5", "２")),
        *((named_shape, text, "is no shape") for text in ("", "1x3", "=1x3", "a=", "a=1x0", "a=1x-3", "a=1xb")),
        *((json_object, text, "is no JSON") for text in ("", "{", "[1]", "3", "null")),
        (member_of(Format, "format"), "onx", "unknown format 'onx'; did you mean onnx"),
    ],
)
def test_what_is_no_value_is_refused(read, text, said):
    """
    The value as it was received, and what to write instead.
    """
    with pytest.raises(click.BadParameter, match=said):
        read(text)


@dataclass(frozen=True, slots=True)
class Inner:
    count: int = 0


@dataclass(frozen=True, slots=True)
class Outer:
    name: str | None = None
    inner: Inner = field(default_factory=Inner)


def _command(group, *options):
    got = []

    @click.command()
    @gathered(group, *options)
    @click.option("--own")
    def command(group, own):
        got.append((group, own))

    return command, got


def test_a_group_reaches_the_command_as_one_dataclass():
    """
    Groups within it are filled as well; what is no part of it comes by its own name.
    """
    command, got = _command(Outer(), click.option("--name"), click.option("--count", type=int, default=7))

    assert 0 == CliRunner().invoke(command, ["--name", "x", "--own", "y"], catch_exceptions=False).exit_code
    assert [(Outer("x", Inner(7)), "y")] == got


def test_options_are_helped_in_their_order():
    """
    First the group's, then the command's.
    """
    command, _ = _command(Outer(), click.option("--name"), click.option("--count", type=int))

    assert ["name", "count", "own"] == [parameter.name for parameter in command.params]


def test_a_field_without_an_option_is_a_mistake():
    """
    The negative: it is found as soon as the command is called.
    """
    command, got = _command(Outer(), click.option("--name"))

    with pytest.raises(KeyError, match="count"):
        CliRunner().invoke(command, [], catch_exceptions=False)
    assert [] == got
    assert {"count"} == {item.name for item in fields(Inner)}
