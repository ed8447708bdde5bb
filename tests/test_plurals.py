"""Counts in words."""

import pytest

from coordatt_deploy.plurals import counted, of_total, plural, verb


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (0, "file", "0 files"), (1, "file", "1 file"), (2, "file", "2 files"), (1_024, "image", "1,024 images"),
        (1, "partition", "1 partition"), (3, "BatchNorm", "3 BatchNorms"), (2, "golden input", "2 golden inputs"),
        (2, "class", "2 classes"), (2, "box", "2 boxes"), (2, "entry", "2 entries"), (2, "key", "2 keys"),
        (2, "axis", "2 axes"),
    ],
)  # fmt: skip
def test_a_noun_follows_its_count(count, noun, expected):
    """
    One has no s; what ends with a hiss or a y has its own plural.
    """
    assert expected == counted(count, noun)


def test_the_noun_follows_the_total_and_the_verb_the_count():
    """
    ``1 of 7 files does not``, ``2 of 7 files do not``.
    """
    said = [f"{of_total(count, total, 'file')} {verb(count, 'does')} not" for count, total in ((1, 7), (2, 7))]

    assert ["1 of 7 files does not", "2 of 7 files do not"] == said


@pytest.mark.parametrize(
    ("one", "many"),
    [("computes", "compute"), ("is", "are"), ("was", "were"), ("has", "have"), ("stays", "stay"), ("reaches", "reach")],
)
def test_a_verb_follows_its_count(one, many):
    """
    The third person has an s, or is irregular.
    """
    assert (one, many) == (verb(1, one), verb(2, one))


def test_a_plural_of_its_own_can_be_given():
    """
    Where no rule gives it.
    """
    assert "sheep" == plural(2, "sheep", "sheep")
