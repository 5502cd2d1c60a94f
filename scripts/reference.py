"""The command ``python -m scripts.reference``: writes the pages of the docs that are made from code and config."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from fedresearch.config.rules import RULES
from fedresearch.runs.columns import COLUMNS, NEEDS, evaluated

ROOT = Path(__file__).parents[1]
DOCS, CONF = ROOT / "docs", ROOT / "conf"
COMMAND = "python -m scripts.reference"
WHOLE = ("experiment", "tune")  # groups whose options set keys of others
AT = {"schedule": "optimizer.schedule"}  # of a group whose keys are not under its name

LIST = """
Takes a list of options, whose order counts: `{0}=[NAME,NAME]`. `{0}=[]` chooses none.
"""

CONFIG_PAGE = f"""\
# Config reference

Written by `{COMMAND}` from `conf/` and `fedresearch/config/rules.py`. A key is typed as
`KEY=VALUE`, an option as `GROUP=OPTION`; `fedresearch OPTIONS --cfg job` prints the keys that result. A value with
`${{...}}` follows another key or an environment variable. What is allowed is checked before a run; where the table does
not say it, what the option builds decides.

"""


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def columns_page(page: str) -> str:
    """Return docs/columns.md with the table between its markers."""
    before, start, rest = page.partition("<!-- columns:")
    marker, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end of columns -->")
    names: dict[tuple[str, ...], list[str]] = {}  # clients/ and personal/ differ in whose model they measure alone
    accuracy = yaml.safe_load((CONF / "metrics" / "accuracy.yaml").read_text())["accuracy"]
    for column in (*COLUMNS, *evaluated("accuracy", accuracy["declares"])):
        present = "; ".join(NEEDS[need] for need in column.needs if need != "own models") or "every round"
        facts = (column.definition, column.unit or "–", column.weighting, column.direction, present)
        names.setdefault(facts, []).append(f"`{column.name}`")
    rows = [(", ".join(named), *facts) for facts, named in names.items()]
    made = table(("column", "definition", "unit", "weighting", "direction", "present"), rows)
    return f"{before}{start}{marker}\n\n{made}\n{end}{after}"


def config_page() -> str:
    """Return docs/reference/config.md: every key of the default experiment, and every option with its keys."""
    text = (CONF / "config.yaml").read_text()
    page = CONFIG_PAGE + "## Keys of every experiment\n\n" + keys_table(text, "")
    for default in yaml.safe_load(text)["defaults"]:
        ((group, chosen),) = default.items() if isinstance(default, dict) else [("", "")]
        if (CONF / group).is_dir() and group:
            page += f"\n## `{group}`\n" + LIST.format(group) * isinstance(chosen, list)
            for path in sorted((CONF / group).glob("*.yaml")):
                page += "\n" + option(
                    path, group, is_default=path.stem in [*chosen] if isinstance(chosen, list) else path.stem == chosen
                )
    return page


def option(path: Path, group: str, *, is_default: bool) -> str:
    """Return an option's section: its comment, what it has of parts, and its keys."""
    found = re.match(r"(?:# @package (\S+)\n)?((?:# [^\n]*\n)*)(.*)", path.read_text(), flags=re.DOTALL)
    assert found
    package, about, text = found.groups()
    first, _, more = about.replace("# ", "").partition("\n")
    if path.stem.startswith("_"):
        section = f"### `{path.stem}`\n\nA part of options. {escaped(f'{first} {more}'.rstrip())}\n"
    else:
        section = f"### `{group}={path.stem}`{' (default)' * is_default}\n\n{escaped(first)}\n"
        section += f"\n{escaped(more)}" if more else ""
    if group in WHOLE:
        return f"{section}\n```yaml\n{text}```\n"
    prefix = "" if package == "_global_" else f"{package or AT.get(group, group)}."
    parts = [one for one in yaml.safe_load(text).get("defaults", []) if isinstance(one, str) and one != "_self_"]
    if parts:
        stems = [one.rpartition("/")[2].partition("@")[0] for one in parts]
        section += f"\nHas the keys of {', '.join(f'`{stem}`' for stem in stems)}, and:\n"
    return f"{section}\n{keys_table(text, prefix)}"


def keys_table(text: str, prefix: str) -> str:
    """Return the table of a file's keys."""
    allowed: dict[str, list[str]] = {}
    for rule in RULES:
        allowed.setdefault(rule.key, []).append(rule.allowed)
    rows = [
        (f"`{key}`", f"`{value}`" if value else "", escaped("; ".join(allowed.get(key, []))), escaped(comment))
        for key, value, comment in keys_of(text, yaml.compose(text), prefix)
        if not key.startswith(("hydra", f"{prefix}defaults"))
    ]
    return table(("key", "default", "allowed", "meaning"), rows)


def keys_of(text: str, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield each key of a YAML mapping, its value as it is written, and the comment beside or above it."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            if comment := comment_of(text, key.start_mark.index, key.end_mark.index):
                yield name, "", comment
            yield from keys_of(text, value, f"{name}.")
        else:
            written = text[value.start_mark.index : value.end_mark.index]
            comment = comment_of(text, key.start_mark.index, value.end_mark.index)
            yield name, written, comment or "what is built" * (key.value == "_target_")


def comment_of(text: str, start: int, end: int) -> str:
    """Return the comment beside the end of a place in a text or, without one, above its start; "" for none."""
    if beside := re.match(r"[:}\]]*\s# (.*)", text[end:].partition("\n")[0]):
        return beside[1]
    above = re.search(r"((?:^ *# .*\n)+) *\Z", text[:start], flags=re.MULTILINE)
    return " ".join(line.strip().removeprefix("# ") for line in above[1].splitlines()) if above else ""


def escaped(text: str) -> str:
    """Return text without what Markdown takes for more than itself."""
    return re.sub(r"([*<])", r"\\\1", text)


def pages() -> dict[Path, str]:
    """Return the content of each page that is written."""
    columns = DOCS / "columns.md"
    return {columns: columns_page(columns.read_text()), DOCS / "reference" / "config.md": config_page()}


def main() -> None:
    for path, content in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    main()
