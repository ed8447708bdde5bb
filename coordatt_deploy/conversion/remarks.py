"""What the user should know of an export, a sentence each, for the manifest and the screen."""

from collections.abc import Iterator, Sequence
from typing import Final

from coordatt_deploy.conversion.float_artifact import FloatArtifact
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import Format
from coordatt_deploy.loading.sizes import formats_for_dynamic
from coordatt_deploy.manifest import FoldReport, MergedBranches
from coordatt_deploy.plurals import counted, of_total, verb

SHOWN: Final = 5  # names in a remark; the manifest has all


def of_batch_norms(report: FoldReport) -> str | None:
    """Which BatchNorms cost a pass over the activation, since no layer could take them in."""
    written = report.written
    if not written:
        return None
    names = ", ".join(item.batch_norm for item in written[:SHOWN]) + (", …" if len(written) > SHOWN else "")
    return (
        f"{of_total(len(written), report.folded, 'BatchNorm')} {verb(len(written), 'is')} written as a"
        f" product and a sum, since no layer can take them"
        f" in exactly: {names}; inspect says why"
    )


def of_branches(merged: Sequence[MergedBranches] | None) -> Iterator[str]:
    """What merging branches changed."""
    if merged:
        worst = max(item.relative_error for item in merged)
        yield (
            f"branches were merged into {counted(len(merged), 'convolution')}; greatest change of any of"
            f" these layers, in float64:"
            f" {worst:.2g} of its greatest value"
        )


def of_formats_and_attention(plan: ExportPlan, converted: Sequence[FloatArtifact]) -> Iterator[str]:
    """What the user should know of formats left out and of attention that was not found."""
    # it loads torch
    from coordatt_deploy.loading.factories import attention_warning

    dynamic = plan.model.dynamic
    if (dynamic is not None or plan.model.batch is not None) and not plan.formats:
        _, text = formats_for_dynamic(dynamic, tuple(Format), asked=False)
        if text is not None:
            yield text
    blocks = max((len(item.lowering.blocks) for item in converted), default=0)
    warning = attention_warning(plan.model.model, plan.model.model_args, blocks) if converted else None
    if warning is not None:
        yield warning
        return
    seen: set[str] = set()
    for item in converted:
        if not item.lowering.blocks and item.lowering.remark not in seen:
            seen.add(item.lowering.remark)
            yield f"{item.artifact.format}: {item.lowering.remark}"
    misses = [(miss.where, miss.reason) for item in converted for miss in item.lowering.near_misses]
    for where, reason in dict.fromkeys(misses):
        yield f"{where} begins like an attention block, but {reason}; it is exported as it stands"
