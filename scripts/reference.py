"""The command ``python -m scripts.reference``: writes the tables of the docs that are made from code and config."""

from pathlib import Path

from fedresearch.runs.columns import COLUMNS, NEEDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMAND = "python -m scripts.reference"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def columns_page(page: str) -> str:
    """Return docs/columns.md with the table between its markers."""
    before, start, rest = page.partition("<!-- columns:")
    marker, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end of columns -->")
    rows = [
        (
            f"`{column.name}`",
            column.definition,
            column.unit or "–",
            column.weighting,
            column.direction,
            "; ".join(NEEDS[need] for need in column.needs) or "every round",
        )
        for column in COLUMNS
    ]
    made = table(("column", "definition", "unit", "weighting", "direction", "present"), rows)
    return f"{before}{start}{marker}\n\n{made}\n{end}{after}"


def pages() -> dict[Path, str]:
    """Return the content of each page that is written."""
    columns = DOCS / "columns.md"
    return {columns: columns_page(columns.read_text())}


def main() -> None:
    for path, content in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    main()
