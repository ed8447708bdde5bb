"""Write the table of ``docs/coreml-evaluator.md`` from the table of evidence.

Run ``python -m benchmarks.evaluator_evidence`` after a change of the table. A test holds the page to what this writes.
"""

from pathlib import Path
from typing import Final

from coordatt_deploy.runtimes.coreml.evaluator.evidence import EVIDENCE

PAGE: Final = Path(__file__).parents[1] / "docs" / "coreml-evaluator.md"
ROW: Final = "| `"


def rows() -> list[str]:
    """Return a row of the page for each operator."""
    made = []
    for operator, evidence in sorted(EVIDENCE.items()):
        source = "**none**" if evidence.address is None else f"[{evidence.test}]({evidence.address})"
        made.append(f"{ROW}{operator}` | {source} | {evidence.compared} | {'; '.join(evidence.departures) or '–'} |")
    return made


def main() -> None:
    """Put the rows where the page has rows now."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(page) if line.startswith(ROW))
    after = [line for line in page[first:] if not line.startswith(ROW)]
    PAGE.write_text("\n".join([*page[:first], *rows(), *after]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
