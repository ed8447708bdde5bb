"""What a cache of stages keeps, gives back, refuses and forgets."""

import json
import os
import stat
import threading
from dataclasses import dataclass, replace

import pytest

from coordatt_deploy.errors import UsageError
from coordatt_deploy.stage_cache import store
from coordatt_deploy.stage_cache.keys import StageKey, own_source, packages, stage_key
from coordatt_deploy.stage_cache.store import CachedStage, StageCache, default_cache

KEY = StageKey("convert", "onnx/net.onnx", {"graph": "a", "weights": "b"})
PLACES = ("onnx/net.onnx", "onnx/net.layers.json", "coreml/net.mlpackage")


@dataclass(frozen=True)
class Told:
    layers: int = 0
    error: float = 0.0


def wrote(root, text="the file"):
    """Write what a stage writes."""
    (root / "onnx").mkdir(parents=True)
    (root / PLACES[0]).write_text(text)
    (root / PLACES[1]).write_text("{}")
    (root / PLACES[2] / "Data").mkdir(parents=True)
    (root / PLACES[2] / "Data" / "weights.bin").write_bytes(b"w" * 100)
    return root


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path / "cache" / "stages")


@pytest.fixture
def filled(cache, tmp_path):
    assert cache.keep(KEY, wrote(tmp_path / "one"), PLACES, Told(3, float("inf")))
    return cache


def test_what_was_kept_is_given_back(filled, tmp_path):
    """
    The files are where they belong, packages too, with what was said of them.
    """
    two = tmp_path / "two"

    assert Told(3, float("inf")) == filled.take(KEY, two, PLACES, Told)
    assert "the file" == (two / PLACES[0]).read_text()
    assert b"w" * 100 == (two / PLACES[2] / "Data" / "weights.bin").read_bytes()


def test_only_its_user_reads_and_writes_it(filled):
    """
    Mode 0700.
    """
    assert 0o700 == stat.S_IMODE(filled.folder.stat().st_mode)


def test_what_stood_there_goes(filled, tmp_path):
    """
    A package of an earlier build does not keep its own files.
    """
    two = tmp_path / "two"
    (two / PLACES[2]).mkdir(parents=True)
    (two / PLACES[2] / "old.bin").write_bytes(b"old")

    filled.take(KEY, two, PLACES, Told)

    assert ["Data"] == [path.name for path in (two / PLACES[2]).iterdir()]


def test_another_part_is_another_result(filled, tmp_path):
    """
    One hash otherwise, or one name, and nothing is taken.
    """
    others = [replace(KEY, name="onnx/x.onnx"), replace(KEY, stage="quantize"), replace(KEY, parts={"graph": "a"})]
    others += [replace(KEY, parts={**KEY.parts, "weights": "c"})]

    assert [None] * 4 == [filled.take(key, tmp_path / "two", PLACES, Told) for key in others]


FILES = ["entry.json", "result.json", f"files/{PLACES[0]}", f"files/{PLACES[1]}", f"files/{PLACES[2]}/Data/weights.bin"]


@pytest.mark.parametrize("harm", ["flip", "truncate", "lengthen", "remove", "link"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_entry_is_not_taken_and_made_anew(filled, tmp_path, name, harm):
    """
    A bit, too few bytes or too many, a file that is gone or leads elsewhere: nothing is left of it, nor in the bundle.
    """
    path, two = filled.folder / KEY.digest / name, tmp_path / "two"
    data = path.read_bytes()
    path.unlink()
    if harm == "link":
        (tmp_path / "same").write_bytes(data)
        path.symlink_to(tmp_path / "same")
    elif harm != "remove":
        at = data.find(b'"weights"') + 2 if name == "entry.json" else len(data) // 2
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        path.write_bytes({"flip": flipped, "truncate": data[:-2], "lengthen": data + b"x"}[harm])

    assert None is filled.take(KEY, two, PLACES, Told)
    assert [] == [file for file in two.rglob("*") if file.is_file()]
    assert 0 == filled.status().entries
    assert filled.keep(KEY, tmp_path / "one", PLACES, Told(4))
    assert Told(4) == filled.take(KEY, two, PLACES, Told)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry["files"].append({**entry["files"][0], "path": "../../../outside"}),
        lambda entry: entry["files"].append({**entry["files"][0], "path": "/etc/hostname"}),
        lambda entry: entry["files"].append({**entry["files"][0], "path": "files/../../../outside"}),
        lambda entry: entry["files"].append({**entry["files"][0], "path": "files/onnx/other.onnx"}),
        lambda entry: entry["files"][0].update(path="files/manifest.json"),
        lambda entry: entry.update(files=[]),
        lambda entry: entry.update(files=entry["files"] * 2000),
        lambda entry: entry.update(stage="parity"),
        lambda entry: entry.update(parts={}),
        lambda entry: entry["files"][-1].update(bytes=1 << 40),
        lambda entry: entry["files"][0].update(bytes=-1),
    ],
)
def test_a_hostile_entry_does_nothing(filled, tmp_path, change):
    """
    It names files elsewhere, of other stages, too many or none, or is of something else: refused, and nothing written.
    """
    path, two = filled.folder / KEY.digest / "entry.json", tmp_path / "two"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))

    assert None is filled.take(KEY, two, PLACES, Told)
    assert [] == [file for file in two.rglob("*") if file.is_file()]
    assert not (tmp_path / "outside").exists()


def test_a_result_of_other_files_is_refused(filled, tmp_path):
    """
    Who asks says whether what is said fits the files.
    """
    assert None is filled.take(KEY, tmp_path / "two", PLACES, Told, lambda told: told.layers == 4)


def test_a_folder_that_others_may_write_is_not_used(filled, tmp_path):
    """
    Nothing is taken, kept or removed, and the status says why.
    """
    filled.folder.chmod(0o777)

    assert None is filled.take(KEY, tmp_path / "two", PLACES, Told)
    assert not filled.keep(replace(KEY, name="x"), tmp_path / "one", PLACES, Told())
    assert "others may write to it" in filled.empty().problem
    assert 1 == filled.status().entries


def test_a_folder_that_cannot_be_written_is_no_error(cache, tmp_path):
    """
    What was made is in the bundle all the same. Root writes everywhere, but not below a file.
    """
    (tmp_path / "file").write_text("")
    nowhere = replace(cache, folder=tmp_path / "file" / "stages")

    assert not nowhere.keep(KEY, wrote(tmp_path / "one"), PLACES, Told())
    assert 0 == nowhere.status().entries


def test_what_was_unused_for_longest_goes_first(cache, tmp_path):
    """
    Three results where two have room: the one that was read lately stays.
    """
    root = wrote(tmp_path / "one", "x" * 10_000)
    small = replace(cache, most_bytes=25_000)
    keys = [replace(KEY, name=name) for name in "abc"]
    for at, key in enumerate(keys[:2]):
        small.keep(key, root, PLACES[:2], Told())
        os.utime(small.folder / key.digest / "entry.json", (at, at))
    small.take(keys[0], tmp_path / "two", PLACES[:2], Told)

    small.keep(keys[2], root, PLACES[:2], Told())

    left = [small.take(key, tmp_path / "two", PLACES[:2], Told) is not None for key in keys]
    assert ([True, False, True], True) == (left, small.status().bytes <= small.most_bytes)


def test_what_is_larger_than_all_may_be_is_not_kept(cache, tmp_path):
    """
    Nothing else goes for it.
    """
    root = wrote(tmp_path / "one", "x" * 10_000)
    small = replace(cache, most_bytes=5_000)
    small.keep(KEY, root, PLACES[1:2], Told())

    assert not small.keep(replace(KEY, name="large"), root, PLACES, Told())
    assert 1 == small.status().entries


def test_many_at_once_keep_one(cache, tmp_path):
    """
    Whoever is first; nobody fails, nothing half written is seen, and no temporary folder is left.
    """
    roots = [wrote(tmp_path / f"root{number}") for number in range(6)]
    seen = []

    def work(number):
        for turn in range(8):
            key = replace(KEY, name=str(turn))
            cache.keep(key, roots[number], PLACES, Told(turn))
            seen.append(cache.take(key, tmp_path / f"to{number}", PLACES, Told) == Told(turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [True] * 48 == seen
    assert 8 == len(list(cache.folder.iterdir()))


def test_what_a_kill_left_is_removed(filled, tmp_path):
    """
    Folders that nobody holds any more go with the next result.
    """
    (filled.folder / f"{store.NEW}abc" / "files").mkdir(parents=True)
    (filled.folder / f"{store.GONE}abc").mkdir()

    filled.keep(replace(KEY, name="next"), tmp_path / "one", PLACES, Told())

    assert 2 == len(list(filled.folder.iterdir()))


def test_it_is_emptied(filled, tmp_path):
    """
    What it held is told, and it is as good as new.
    """
    assert (1, 0) == (filled.empty().entries, filled.status().entries)
    assert [] == list(filled.folder.iterdir())
    assert filled.keep(KEY, tmp_path / "one", PLACES, Told())


def test_where_and_how_large_it_is(monkeypatch, tmp_path):
    """
    As the environment says; a size without a unit is refused.
    """
    monkeypatch.setenv(store.PLACE, str(tmp_path))
    monkeypatch.setenv(store.SIZE, "1.5 MB")
    assert StageCache(tmp_path / "stages", 1_500_000) == default_cache()

    monkeypatch.setenv(store.SIZE, "15")
    with pytest.raises(UsageError, match="write a size with its unit"):
        default_cache()


def test_it_says_what_differs(filled):
    """
    Against the last result of the same name; and that there was none.
    """
    other = CachedStage(filled, replace(KEY, parts={**KEY.parts, "weights": "c", "options": "d"}))

    assert "onnx/net.onnx: made anew, other than the last time: weights, options" == other.told(reused=False)
    none = CachedStage(filled, replace(KEY, name="x"))
    assert "x: made anew, nothing like it was made before" == none.told(reused=False)


def test_a_key_names_all_that_has_a_hand_in_it():
    """
    This package's source, every package that it stands on, the machine and what the user set in the environment.
    """
    key = stage_key("convert", "net", golden_inputs="x")

    assert ["golden inputs", "coordatt-deploy", "packages", "machine", "environment"] == list(key.parts)
    assert {"torch", "numpy", "sympy", "msgspec"} <= set(packages())


def test_nothing_is_kept_where_the_source_was_changed_meanwhile(cache, tmp_path, monkeypatch):
    """
    A converter that was edited while a build ran does not leave its file under the old one's key.
    """
    stage = CachedStage(cache, stage_key("convert", "net"), PLACES)
    root = wrote(tmp_path / "one")
    source = tmp_path / "package"
    source.mkdir()
    (source / "exporter.py").write_text("changed = True\n")
    monkeypatch.setattr("coordatt_deploy.__path__", [str(source)])
    stage.keep(root, Told())
    assert 0 == cache.status().entries

    monkeypatch.undo()
    stage.keep(root, Told())
    assert (1, own_source()) == (cache.status().entries, stage.key.parts["coordatt-deploy"])
