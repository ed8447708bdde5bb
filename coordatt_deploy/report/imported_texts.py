"""How imported latencies are put in words: on the terminal, in Markdown and on the page alike."""

from typing import Final

from coordatt_deploy.profile.imported_result import HeldBy, ImportedLatency

CAUTION: Final = (
    "Imported: another tool measured these and told no more; there are no samples, and so no intervals and no verdicts"
)
NAMES: Final = ("file", "threads", "tool", "held to the file by")
FIGURES: Final = ("mean ms", "median", "min", "max", "std", "p90", "p95", "p99", "calls", "load", "first call")

_HELD: Final = {
    HeldBy.HASH: "its hash",
    HeldBy.SIZE: "name and size, its bytes were not checked",
    HeldBy.NAME: "its name alone, its bytes were not checked",
}


def names(item: ImportedLatency) -> tuple[str, ...]:
    """Return the cells below ``NAMES``, but for the first."""
    return "–" if item.threads is None else str(item.threads), item.tool, _HELD[item.held_by]


def figures(item: ImportedLatency) -> tuple[str, ...]:
    """Return the cells below ``FIGURES``; a dash for what the tool does not tell."""
    times = (
        item.mean_ms, item.median_ms, item.min_ms, item.max_ms, item.std_ms, item.p90_ms, item.p95_ms, item.p99_ms,
    )  # fmt: skip
    calls = "–" if item.calls is None else f"{item.calls:,}"
    return *map(_milliseconds, times), calls, _milliseconds(item.load_ms), _milliseconds(item.first_inference_ms)


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
