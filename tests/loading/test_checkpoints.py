import argparse
import os
import pathlib
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.checkpoints import Checkpoint, read_checkpoint
from coordatt_deploy.loading.key_matching import head_classes, load_into
from coordatt_deploy.loading.saved_programs import build_program
from coordatt_deploy.models import create_model


def _net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(
        stem=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), classifier=nn.Sequential(nn.Dropout(), nn.Linear(4, 5))
    ))  # fmt: skip


def _saved(value, path, **options):
    torch.save(value, path, **options)
    return path


def _loaded(value, tmp_path, net=None, key=None, **options):
    """Save, read and fit *value*; return the fitted network and what was said."""
    net = net or _net(1)
    return net, load_into(net, read_checkpoint(_saved(value, tmp_path / "weights.pth"), key=key), **options)


def _same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def paper():
    """A state dict as the published ``mbv2_ca.pth`` has it: flat, 490 entries, the head a plain layer."""
    state = create_model("mobilenetv2_ca_100", seed=5).state_dict()
    return {name.replace("classifier.1.", "classifier."): tensor for name, tensor in state.items()}


def test_the_papers_checkpoint_loads_as_it_is(paper, tmp_path):
    """
    490 entries, head keys without the Sequential's index: only these two are renamed, and it is said.
    """
    assert 490 == len(paper)
    assert {"classifier.weight", "classifier.bias"} <= set(paper)

    net, notes = _loaded(paper, tmp_path, create_model("mobilenetv2_ca_100", seed=6))

    assert ("read classifier.weight as classifier.1.weight, classifier.bias as classifier.1.bias",) == notes
    assert _same(create_model("mobilenetv2_ca_100", seed=5), net)


def test_the_other_published_naming_of_the_block_loads(paper, tmp_path):
    """
    conv_h gates the rows as conv2 does, conv_w the columns as conv3 does; both ways round.
    """
    other = {name.replace("conv2.", "conv_h.").replace("conv3.", "conv_w."): tensor for name, tensor in paper.items()}

    net, notes = _loaded(other, tmp_path, create_model("mobilenetv2_ca_100", seed=6))

    assert "read conv_h and conv_w as conv2 and conv3 in 16 attention blocks" in notes
    assert torch.equal(other["features.2.conv.6.conv_h.weight"], net.features[2].conv[6].conv2.weight)
    assert torch.equal(other["features.2.conv.6.conv_w.weight"], net.features[2].conv[6].conv3.weight)


def test_the_block_is_renamed_the_other_way_round_too(tmp_path):
    """
    A user's class with conv_h and conv_w takes a checkpoint with conv2 and conv3.
    """

    def block(*gates):
        torch.manual_seed(0)
        layers = {"conv1": nn.Conv2d(8, 8, 1), "bn1": nn.BatchNorm2d(8), **{name: nn.Conv2d(8, 8, 1) for name in gates}}
        return nn.ModuleDict({"att": nn.ModuleDict(layers), "out": nn.Conv2d(8, 2, 1)})

    source, target = block("conv2", "conv3"), block("conv_w", "conv_h")

    _, notes = _loaded(source.state_dict(), tmp_path, target)

    assert "read conv2 and conv3 as conv_h and conv_w in 1 attention block" in notes
    assert torch.equal(source["att"]["conv2"].weight, target["att"]["conv_h"].weight)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "ema", "model_ema", "state_dict_ema"])
def test_wrappers_are_opened_and_named(wrapper, tmp_path):
    """
    What training scripts put around a state dict is taken off, and the note says which entry was read.
    """
    content = {wrapper: _net().state_dict(), "epoch": 3, "best": np.float64(0.7), "lr": [0.1]}
    content |= {"args": argparse.Namespace(width=1.0, out=pathlib.Path("runs")), "history": np.zeros(3, np.float32)}

    net, notes = _loaded(content, tmp_path)

    assert (f"read '{wrapper}' of the checkpoint",) == notes
    assert _same(_net(), net)


def test_the_moving_average_is_preferred_and_the_other_named(tmp_path):
    """
    Where a file holds both, the one that training scripts evaluate is taken, and an entry can be asked for.
    """
    path = _saved({"model": _net(3).state_dict(), "model_ema": {"module": _net().state_dict()}}, tmp_path / "both.pth")

    average, plain = read_checkpoint(path), read_checkpoint(path, key="model")

    assert ("read 'model_ema.module' of the checkpoint; it also holds model",) == average.notes
    assert torch.equal(_net().stem.weight, average.state["stem.weight"])
    assert torch.equal(_net(3).stem.weight, plain.state["stem.weight"])
    with pytest.raises(UsageError, match=r"no entry 'modle', but a mapping with model, model_ema"):
        read_checkpoint(path, key="modle")


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.", "module._orig_mod.", "model.net.trunk."])
def test_constant_prefixes_are_taken_off(prefix, tmp_path):
    """
    Whoever wrapped the network in training put the same words before every name.
    """
    net, notes = _loaded({prefix + name: tensor for name, tensor in _net().state_dict().items()}, tmp_path)

    assert notes
    assert _same(_net(), net)


def test_a_prefix_of_the_modules_own_is_put_before(tmp_path):
    """
    The user's class wraps the network that the checkpoint was saved from.
    """
    outer = nn.ModuleDict({"backbone": _net(1)})

    _, notes = _loaded(_net().state_dict(), tmp_path, outer)

    assert ("put the prefix 'backbone.' before 9 names",) == notes
    assert _same(_net(), outer["backbone"])


def test_what_training_tools_leave_behind_is_left_out(tmp_path):
    """
    AveragedModel's counter, and the totals that a profiler adds to every layer.
    """
    state = AveragedModel(_net()).state_dict() | {"module.stem.total_ops": torch.zeros(1)}

    net, notes = _loaded(state, tmp_path)

    assert "left out 2 entries of training tools (n_averaged)" in notes
    assert _same(_net(), net)


def test_missing_counters_and_half_precision_are_said(tmp_path):
    """
    num_batches_tracked is not needed at inference; float16 weights are widened.
    """
    state = {name: tensor.half() for name, tensor in _net().state_dict().items() if "tracked" not in name}

    net, notes = _loaded(state, tmp_path)

    assert (
        "num_batches_tracked is missing 1 time, which inference does not use",
        "weights in float16 were converted to float32",
    ) == notes
    assert torch.equal(_net().stem.weight.half().float(), net.stem.weight)
    assert torch.float32 == net.stem.weight.dtype


def test_safetensors_are_read_whatever_the_suffix(tmp_path):
    """
    The content decides.
    """
    for name in ("weights.safetensors", "weights.bin"):
        save_file(_net().state_dict(), tmp_path / name)

        assert set(_net().state_dict()) == set(read_checkpoint(tmp_path / name).state)


def test_old_torch_files_are_read(tmp_path):
    """
    Files from before the zip format.
    """
    path = _saved(_net().state_dict(), tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)

    assert torch.equal(_net().stem.weight, read_checkpoint(path).state["stem.weight"])


def test_a_mismatch_lists_all_three_kinds_with_the_nearest_names(tmp_path):
    """
    Missing, unexpected and misshapen names; a typo shows beside what it should be.
    """
    state = _net().state_dict()
    state["stem.wieght"] = state.pop("stem.weight")
    state["classifier.1.weight"] = torch.zeros(7, 4)
    state["other.layer.bias"] = torch.zeros(1)

    with pytest.raises(UsageError) as caught:
        _loaded(state, tmp_path)

    text = str(caught.value)
    assert "1 missing: stem.weight" in text
    assert "2 unexpected: stem.wieght, other.layer.bias" in text
    assert "1 of another shape: classifier.1.weight (7, 4), the model has (5, 4)" in text
    log = pathlib.Path(text.rpartition(" is in ")[2])
    assert 4 == len(log.read_text(encoding="utf-8").splitlines())


def test_the_nearest_name_stands_beside_a_missing_one(tmp_path):
    """
    A renamed layer is easy to see.
    """
    state = {name.replace("stem", "stam"): tensor for name, tensor in _net().state_dict().items()}

    with pytest.raises(UsageError, match=r"stem\.weight \(nearest: stam\.weight\)"):
        _loaded(state, tmp_path)


def test_a_mismatch_leaves_the_module_as_it_was(tmp_path):
    """
    Nothing is loaded by halves.
    """
    net, before = _net(1), _net(1)
    state = _net().state_dict() | {"classifier.1.weight": torch.zeros(7, 4)}

    with pytest.raises(UsageError):
        _loaded(state, tmp_path, net)

    assert _same(before, net)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    """
    The file is named, and how many values are bad.
    """
    state = _net().state_dict()
    state["stem.weight"].view(-1)[:3] = value

    with pytest.raises(UsageError, match=r"weights\.pth: stem\.weight holds 3 values that are NaN or infinite"):
        _loaded(state, tmp_path)


class _Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_is_never_run(new_format, tmp_path):
    """
    The pickle asks for a function of the system: it is refused by name, and nothing happened.
    """
    trace = tmp_path / "it-ran"
    content = {"state_dict": _net().state_dict(), "hook": _Runs(trace)}
    path = _saved(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=new_format)

    with pytest.raises(UsageError, match=r"pickled code or objects \(posix\.mkdir\), which are never run here"):
        read_checkpoint(path)

    assert not trace.exists()
    pickle.loads(pickle.dumps(_Runs(trace)))  # noqa: S301 - the twin: unpickled without care, it does run
    assert trace.exists()


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path):
    """
    The whole module was saved instead of its state dict.
    """
    with pytest.raises(UsageError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        read_checkpoint(_saved(_net(), tmp_path / "module.pth"))


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 14206531\n", r"git-LFS pointer.*14,206,531"),
        (b"\n<!DOCTYPE html><html><title>Quota exceeded</title>", r"a web page \('Quota exceeded'\)"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page"),
        (b'{"message": "Not Found"}', "a JSON text"),
        (b"\x1f\x8b\x08\x00 something", "compressed with gzip"),
        (b"\x1c\x00\x00\x00TFL3 and so on", "a TFLite model"),
        (b"PK\x03\x04 but nothing more", "is truncated"),
        (bytes(range(200, 256)) * 9, "no file of torch or safetensors"),
        (b"abc", "no file of torch or safetensors"),
        (pickle.dumps({"net": [1, 2]}), "no file of torch or safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_recognised(start, expected, tmp_path):
    """
    The files that people really get instead of weights.
    """
    path = tmp_path / "weights.pth"
    path.write_bytes(start)

    with warnings.catch_warnings(), pytest.raises(UsageError, match=expected):
        warnings.simplefilter("error")  # what torch says beside it is not for the user
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_file_is_said_to_be_truncated(kind, share, tmp_path):
    """
    Wherever the download stopped, in each of the three formats.
    """
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    state = nn.Linear(200, 200).state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        _saved(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(UsageError, match=r"truncated|damaged"):
        read_checkpoint(path)


def test_other_archives_are_named(tmp_path):
    """
    A TorchScript program and a saved program are not checkpoints, and each has another way.
    """
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "script.pt"))
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(1),)), tmp_path / "program.pt2")

    with pytest.raises(UsageError, match="TorchScript program, which holds code"):
        read_checkpoint(tmp_path / "script.pt")
    with pytest.raises(UsageError, match="saved program, not a checkpoint; give it as --model"):
        read_checkpoint(tmp_path / "program.pt2")


def test_a_missing_file_is_answered_with_its_neighbour(tmp_path):
    """
    Most often it is a typo.
    """
    _saved({}, tmp_path / "best_model.pth")

    with pytest.raises(UsageError, match=r"did you mean .*best_model\.pth"):
        read_checkpoint(tmp_path / "best_modle.pth")
    with pytest.raises(UsageError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_a_file_without_tensors_says_what_it_holds(tmp_path):
    """
    The first entries are named.
    """
    with pytest.raises(UsageError, match=r"holds no state dict .* but a mapping with epoch, loss"):
        read_checkpoint(_saved({"epoch": 3, "loss": 0.1}, tmp_path / "weights.pth"))
    with pytest.raises(UsageError, match="but a list"):
        read_checkpoint(_saved([torch.zeros(1)], tmp_path / "list.pth"))


def test_the_number_of_classes_is_read_off_the_head(paper):
    """
    Under either naming and any prefix; a network without a classifier has none.
    """
    assert 1000 == head_classes(paper)
    assert 7 == head_classes({"module.classifier.1.weight": torch.zeros(7, 4)})
    assert head_classes({"head.weight": torch.zeros(7, 4)}) is None


def test_a_weight_that_is_no_plain_tensor_is_refused(tmp_path):
    """
    Quantized and sparse tensors cannot be exported as they are.
    """
    with pytest.raises(UsageError, match="stem is no plain dense tensor"):
        read_checkpoint(_saved({"stem": torch.zeros(3, 3).to_sparse()}, tmp_path / "sparse.pth"))


def test_names_that_would_fall_together_are_not_renamed():
    """
    A renaming that loses a tensor is no renaming.
    """
    net = nn.ModuleDict({"a": nn.Linear(2, 2)})
    state = {"a.weight": torch.zeros(2, 2), "_orig_mod.a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}

    with pytest.raises(UsageError, match="unexpected: _orig_mod"):
        load_into(net, Checkpoint(pathlib.Path("weights.pth"), state))


def _named(prefix, net):
    return {f"{prefix}.{name}": tensor for name, tensor in net.state_dict().items()}


def _with_auxiliary_head():
    return {**_net().state_dict(), "aux_head.0.weight": torch.ones(2, 4), "aux_head.0.bias": torch.ones(2),
            "criterion.weight": torch.ones(5)}  # fmt: skip


def test_what_the_network_lacks_is_left_out_only_when_asked_for(tmp_path):
    """
    An auxiliary head and a criterion are refused with the way out; left out, each is named with its tensors.
    """
    with pytest.raises(UsageError, match=r"3 unexpected: aux_head.*leave the others out with --allow-unexpected\."):
        _loaded(_with_auxiliary_head(), tmp_path)

    net, notes = _loaded(_with_auxiliary_head(), tmp_path, allow_unexpected=True)

    assert _same(_net(), net)
    assert ("left out 3 tensors that the network does not have: aux_head (2), criterion",) == notes


def test_nothing_missing_is_ever_filled_in(tmp_path):
    """
    The negative: leaving out more does not mean doing with less, nor with tensors of another shape.
    """
    state = _with_auxiliary_head()
    kept = state.pop("stem.weight")
    with pytest.raises(UsageError, match=r"1 missing: stem\.weight"):
        _loaded(state, tmp_path, allow_unexpected=True)
    with pytest.raises(UsageError, match=r"1 of another shape: stem\.weight"):
        _loaded({**state, "stem.weight": kept[:2]}, tmp_path, allow_unexpected=True)


@pytest.mark.parametrize("average", ["ema_model", "model_ema.module", "ema", "averaged_model.module", "net_swa"])
def test_a_moving_average_inside_the_state_dict_is_offered(average, tmp_path):
    """
    Lightning and others keep the average in the same state dict: it is named as what to take, and can be taken. Nobody
    guesses, whatever may be left out.
    """
    both = {"state_dict": {**_named("model", _net(3)), **_named(average, _net())}, "epoch": 3}
    with pytest.raises(
        UsageError, match=rf"weights 2 times; take --checkpoint-key {average} \(a moving average.*key model$"
    ):
        _loaded(both, tmp_path, allow_unexpected=True)

    net, notes = _loaded(both, tmp_path, key=average)
    raw, _ = _loaded(both, tmp_path, key="model")

    assert _same(_net(), net)
    assert _same(_net(3), raw)
    assert f"read the 9 tensors whose names begin with '{average}.'; 9 others are left out" == notes[0]


@pytest.mark.parametrize("wrap", [lambda state: [state], lambda state: (state, {"epoch": 3}), lambda state: [[state]]],
                         ids=["list", "tuple", "nested"])  # fmt: skip
def test_a_list_around_the_state_dict_is_opened(wrap, tmp_path):
    """
    A list or tuple with one state dict in it gives that one, and it is said.
    """
    net, notes = _loaded(wrap(dict(_net().state_dict())), tmp_path)

    assert _same(_net(), net)
    assert notes[0].startswith("read entry 0 of a ")


def test_of_several_state_dicts_in_a_list_one_must_be_named(tmp_path):
    """
    The negative: nobody guesses between two.
    """
    two = [dict(_net(3).state_dict()), dict(_net().state_dict())]
    with pytest.raises(UsageError, match=r"a list of 2 entries; 2 of them could hold weights.*--checkpoint-key 0"):
        _loaded(two, tmp_path)
    with pytest.raises(UsageError, match=r"holds no state dict \(names to tensors\), but a list"):
        _loaded([3], tmp_path)

    assert _same(_net(), _loaded(two, tmp_path, key="1")[0])


def _with_a_changed_byte(path):
    """Change the last byte of the greatest member: a weight, so that everything still parses."""
    with zipfile.ZipFile(path) as archive:
        weights = [item for item in archive.infolist() if not item.filename.endswith((".pkl", ".json", ".pt"))]
        greatest = max(weights, key=lambda item: item.file_size)
        data = archive.read(greatest)
    content = path.read_bytes()
    at = content.index(data) + len(data) - 3
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    return path


def test_a_checkpoint_whose_checksum_is_wrong_is_refused(tmp_path):
    """
    One changed bit of a weight: torch reads the file without a word, and it is refused here.
    """
    path = _saved(_net().state_dict(), tmp_path / "weights.pth")
    read_checkpoint(path)
    _with_a_changed_byte(path)

    assert not all(
        torch.equal(a, b) for a, b in zip(torch.load(path).values(), _net().state_dict().values(), strict=True)
    )
    with pytest.raises(UsageError, match=r"weights\.pth is damaged: \S+ is not what its checksum \(CRC-32\) says"):
        read_checkpoint(path)


def test_a_program_whose_checksum_is_wrong_is_refused(tmp_path):
    """
    A .pt2 file is held to its checksums as well.
    """
    path = tmp_path / "saved.pt2"
    torch.export.save(torch.export.export(_net().eval()[:1], (torch.randn(1, 3, 8, 8),)), path)
    build_program(path, None)
    _with_a_changed_byte(path)

    with pytest.raises(UsageError, match=r"saved\.pt2 is damaged"):
        build_program(path, None)


def test_the_weights_are_found_among_many_others(tmp_path):
    """
    A prefix is taken away also where most of the file is something else.
    """
    others = {f"teacher.{index}.weight": torch.ones(2) for index in range(40)}
    net, notes = _loaded({**_named("student", _net()), **others}, tmp_path, allow_unexpected=True)

    assert _same(_net(), net)
    assert "left out 40 tensors that the network does not have: teacher (40)" in notes
