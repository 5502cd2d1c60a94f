"""The files of a dataset's split in a folder, and their columns."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fedresearch.errors import InputError

_PART = re.compile(r"(\d+)-of-(\d+)")


def find_parquet(path: str, split: str, subset: str | None) -> list[Path]:
    """Return the Parquet files of one split, in order.

    The names are ``SPLIT.parquet`` or like ``SPLIT-00000-of-00002.parquet``, or any in a folder ``SPLIT``. All files
    are in one folder at any depth, whose path contains ``subset``. Hidden files and folders are skipped.

    Parameters
    ----------
    path : str
        The folder.
    split : str
        The split's name.
    subset : str or None
        The dataset's configuration; None: the only one.

    Raises
    ------
    InputError
        If no file matches, or if several sets of files match.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"dataset.path must be a folder with Parquet files, got {path}, which is not a folder")
    paths = sorted(file.relative_to(folder) for file in folder.rglob("*.parquet") if file.is_file())
    paths = [file for file in paths if not any(part.startswith(".") for part in file.parts)]
    name = re.compile(rf"{re.escape(split)}([-_.]?\d+(-of-\d+)?(-[0-9a-f]+)?)?\.parquet")
    # By the folder of the splits, and whether the split has its own folder.
    sets: dict[tuple[Path, bool], list[Path]] = {}
    for file in paths:
        if file.parent.name == split:
            sets.setdefault((file.parent.parent, True), []).append(file)
        elif name.fullmatch(file.name):
            sets.setdefault((file.parent, False), []).append(file)
    chosen = {key: files for key, files in sets.items() if subset is None or subset in key[0].parts}
    if not chosen:
        of_subset = "" if subset is None else f" in a folder {subset} (dataset.subset)"
        holds = ", ".join(map(str, paths[:5])) or "none"
        raise InputError(
            f"dataset.path={path} must hold {split}*.parquet or {split}/*.parquet, at any depth{of_subset}; "
            f"its Parquet files are: {holds}"
        )
    if len(chosen) > 1:
        raise InputError(_ambiguous(path, split, [*chosen]))
    (files,) = chosen.values()
    _refuse_copies(path, split, files)
    return [folder / file for file in files]


def _ambiguous(path: str, split: str, sets: Sequence[tuple[Path, bool]]) -> str:
    """Return the message for several matching sets of files."""
    folders = sorted({folder for folder, _ in sets})
    listed = ", ".join(str(folder) for folder in folders)
    if len(folders) == 1:
        return (
            f"dataset.path={path} holds {split}*.parquet and {split}/*.parquet in {listed}, and both may be the split "
            f"{split}; remove one of them, or try dataset.path=DIR of another folder"
        )
    distinct = [part for part in folders[-1].parts if not any(part in other.parts for other in folders[:-1])]
    hint = f"dataset.subset={distinct[0]}" if distinct else f"dataset.path={Path(path) / folders[0]}"
    return f"dataset.path={path} holds several sets of {split} files, in {listed}; try {hint}"


def _refuse_copies(path: str, split: str, files: Sequence[Path]) -> None:
    """Refuse files unless they are the parts of one set, each once."""
    parts = [_PART.search(file.stem) for file in files]
    places = [(int(part[1]), int(part[2])) if part else (0, 1) for part in parts]
    whole = any(file.name == f"{split}.parquet" for file in files)
    is_one_set = places == [(i, len(files)) for i in range(len(files))] if any(parts) else len(files) == 1 or not whole
    if not is_one_set:
        listed = ", ".join(map(str, files[:5])) + ", ..." * (len(files) > 5)
        raise InputError(
            f"dataset.path={path} must hold the parts of one set of {split} files, all of them and each once, "
            f"got {len(files)}: {listed}"
        )


def read_columns(files: Sequence[Path], columns: Mapping[str, str]) -> pa.Table:
    """Return columns of Parquet or CSV files, concatenated in the order of the files.

    Parameters
    ----------
    files : sequence of Path
        The files. Columns of a CSV file are text.
    columns : mapping
        The columns, by their config keys.

    Raises
    ------
    InputError
        If a file cannot be read, if a column is missing, or if its type differs between files.
    """
    tables: list[pa.Table] = []
    for file in files:
        try:
            table = _read_csv(file, columns) if file.suffix == ".csv" else _read_parquet(file, columns)
            # Raises if the types differ.
            pa.concat_tables([table.slice(0, 0), *(other.slice(0, 0) for other in tables[:1])])
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise InputError(f"{file} cannot be read: {shorten(str(error), 300, placeholder=' ...')}") from error
        tables.append(table)
    return pa.concat_tables(tables)


def refuse_missing(where: str, columns: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse data in which a configured column is missing.

    Raises
    ------
    InputError
        With the first missing column.
    """
    for key, column in columns.items():
        if column not in names:
            raise InputError(f"{where} has no column {column}; try dataset.{key}=COLUMN, one of {', '.join(names)}")


def _read_parquet(file: Path, columns: Mapping[str, str]) -> pa.Table:
    with pyarrow.parquet.ParquetFile(file) as parquet:
        refuse_missing(str(file), columns, parquet.schema_arrow.names)
        table = parquet.read([*columns.values()])
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table.replace_schema_metadata(None)


def _read_csv(file: Path, columns: Mapping[str, str]) -> pa.Table:
    as_text = pyarrow.csv.ConvertOptions(column_types={name: pa.large_string() for name in columns.values()})
    table = pyarrow.csv.read_csv(
        file, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=as_text
    )
    refuse_missing(str(file), columns, table.column_names)
    return table.select([*columns.values()])
