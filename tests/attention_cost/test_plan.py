"""What is compared, and what is refused before any work."""

import platform

import pytest

from coordatt_deploy.attention_cost.plan import FAMILIES, OFFICIAL, OURS, CostPlan, Subject
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.models import model_card
from coordatt_deploy.models.attention_options import Activation
from coordatt_deploy.models.factory import create_model
from coordatt_deploy.models.registry import TAGS

HERE = FAMILIES.get(platform.machine(), TargetCpu.ARM64)


def test_every_block_that_models_are_named_after_is_compared():
    """
    Beside the plain backbone, which comes first.
    """
    found = CostPlan().subjects

    assert Subject("mobilenetv2_100") == found[0]
    assert list(TAGS.values()) == [subject.attention for subject in found[1:]]


def test_a_matched_activation_is_a_row_of_its_own_where_the_block_has_one():
    """
    ECA has none, so it is there as published alone.
    """
    plan = CostPlan(attention=("se", "eca"), activation=Activation.SILU)

    found = [(subject.attention, subject.activation) for subject in plan.subjects]

    assert [(None, None), ("squeeze_excite", None), ("squeeze_excite", Activation.SILU), ("eca", None)] == found


def test_a_block_stands_as_in_the_model_that_is_named_after_it():
    """
    The same keys and shapes as mobilenetv2_se_035: where it was published, with the options that it was published with.
    """
    plan = CostPlan(backbones=("mobilenetv2_035",), attention=("se",))
    request = plan.request(plan.subjects[1])

    built = create_model(request.model, **request.model_args).state_dict()

    expected = create_model("mobilenetv2_se_035").state_dict()
    assert {key: value.shape for key, value in expected.items()} == {key: value.shape for key, value in built.items()}


def test_each_file_is_written_by_both():
    """
    In the form of the CPU that is timed and of the one that is counted on, where forms differ.
    """
    for plan, cpus in (
        (CostPlan(latency=None), {TargetCpu.ARM64}),
        (CostPlan(), {HERE}),
        (CostPlan(target="qemu-arm64"), {HERE, TargetCpu.ARM64}),
        (CostPlan(latency=None, target="qemu-arm64"), {TargetCpu.ARM64}),
    ):
        for kind in Format:
            ways = [way for way in plan.ways() if way.format is kind]
            assert [OFFICIAL] == [way.export for way in ways if way.export != OURS]
            expected = cpus if FORMATS[kind].per_cpu else {None}
            assert expected == {way.target_cpu for way in ways if way.export == OURS}


def test_a_precision_that_a_format_lacks_is_left_out_of_it():
    """
    fp16 is written by one of the exporters; where no format that was named has it, that is an error.
    """
    able = {kind for kind in Format if Precision.FP16 in FORMATS[kind].precisions}
    unable = tuple(kind for kind in Format if kind not in able)

    assert able == {way.format for way in CostPlan(precisions=(Precision.FP16,)).ways()}
    with pytest.raises(UsageError, match="fp16 is no precision of"):
        CostPlan(precisions=(Precision.FP16,), formats=unable).ways()


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (CostPlan(backbones=()), "nothing to compare"),
        (CostPlan(backbones=("mobilenetv2_ca_100",)), "no plain backbone"),
        (CostPlan(backbones=("mobilenet",)), "no plain backbone"),
        (CostPlan(attention=("sse",)), "unknown attention block"),
        (CostPlan(input_size=(8, 8)), "input height is 8 pixels"),
        (CostPlan(target="qemu-arm65"), "unknown target"),
        (CostPlan(backbones=(), model=ModelRequest("net.onnx")), "is an artifact already"),
    ],
)
def test_what_cannot_be_compared_is_refused(plan, said):
    """
    Before torch is loaded, with what was received.
    """
    with pytest.raises(UsageError, match=said):
        plan.check()


def test_the_plain_backbones_are_those_without_attention():
    """
    The default among them.
    """
    assert all(model_card(name).attended is None for name in CostPlan().backbones)
