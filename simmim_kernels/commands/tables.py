"""Tables that are read from files: arrays, and columns with names, whatever separates them."""

import csv
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..estimation import DataError, Table, samples, stacked

ENDINGS = (".npy", ".npz", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}


@dataclass(frozen=True)
class Found:
    """A table and what was noticed of its file."""

    table: Table
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """What an estimate is made from."""

    x: Table
    y: Table
    given: Table | None
    groups: np.ndarray | None
    notes: tuple[str, ...]
    """What was noticed of the files, and how many rows were dropped."""


def read_samples(
    x: str,
    y: str | None,
    *,
    x_columns: str | None = None,
    y_columns: str | None = None,
    given: str | None = None,
    groups: str | None = None,
    delimiter: str | None = None,
    drop_missing: bool = False,
) -> Samples:
    """From a file each of x and y, or columns of one, where y is None and `y_columns` are named.

    `given` and `groups` are columns of x's file, or other files. Columns of x's file that another part takes are not
    x's. Raises DataError.
    """
    first = read(x, delimiter)
    second = first if y is None else read(y, delimiter)
    notes = [*first.notes, *(second.notes if y is not None else ())]
    taken: list[str] = []
    tables: dict[str, Table] = {}
    for name, wanted in (("given", given), ("groups", groups)):
        if wanted is None:
            continue
        if _has(first.table, wanted):
            tables[name] = select(first.table, wanted)
            taken += tables[name].labels
        else:
            other = read(wanted, delimiter)
            tables[name] = other.table
            notes += other.notes
    tables["y"] = second.table if y_columns is None else select(second.table, y_columns)
    if y is None:
        taken += tables["y"].labels
    tables["x"] = select(first.table, x_columns) if x_columns is not None else _without(first.table, taken)
    if "groups" in tables and tables["groups"].values.shape[1] != 1:
        raise DataError(
            f"{tables['groups'].name} must have one column of groups, got {tables['groups'].values.shape[1]}"
        )
    if drop_missing:
        tables, dropped = _without_missing(tables)
        if dropped:
            notes.append(f"{dropped} rows with missing values were left out, {len(tables['x'])} are left")
    else:
        _refuse_missing(tables)
    codes = tables.get("groups")
    if codes is not None and len(codes) != len(tables["x"]):
        raise DataError(f"{codes.name} must have a group a row, {len(tables['x'])}, got {len(codes)}")
    return Samples(
        tables["x"], tables["y"], tables.get("given"), None if codes is None else codes.values[:, 0], tuple(notes)
    )


def _has(table: Table, names: str) -> bool:
    return all(name.strip() in table.labels for name in next(csv.reader([names])))


def _without(table: Table, labels: list[str]) -> Table:
    if not labels:
        return table
    names = table.labels or tuple(map(str, range(table.values.shape[1])))
    kept = [k for k, name in enumerate(names) if name not in labels]
    if not kept:
        raise DataError(f"{table.name} has no column left for x")
    return columns(table, kept)


def _refuse_missing(tables: dict[str, Table]) -> None:
    for table in tables.values():
        missing = np.isnan(table.values)
        if missing.any():
            raise DataError(
                f"{table.name} has {int(missing.sum())} missing (NaN) values in "
                f"{table.describe(np.flatnonzero(missing.any(0)))}: --drop-missing leaves their rows out"
            )


def _without_missing(tables: dict[str, Table]) -> tuple[dict[str, Table], int]:
    """Without the rows in which any of them has a missing value, and how many those were."""
    sizes = {table.name: len(table) for table in tables.values()}
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{rows} in {name}" for name, rows in sizes.items())
        raise DataError(f"files must have as many rows as each other, got {got}")
    kept = ~np.isnan(np.concatenate([table.values for table in tables.values()], axis=1)).any(1)
    if not kept.any():
        raise DataError("every row has a missing value, so that --drop-missing leaves none")
    return {name: table.take(kept) for name, table in tables.items()}, int((~kept).sum())


def read(file: str, delimiter: str | None = None) -> Found:
    """A .npy, .npz (FILE.npz:NAME where it holds several), .csv, .tsv or .parquet file. Raises DataError."""
    path, name = Path(file), None
    if ".npz:" in file:
        head, _, name = file.rpartition(":")
        path = Path(head)
    readers: dict[str, Callable[[Path], np.ndarray | dict[str, np.ndarray]]] = {
        ".npy": _read_npy,
        ".npz": lambda path: _read_npz(path, name),
        ".csv": lambda path: _read_text(path, delimiter),
        ".tsv": lambda path: _read_text(path, delimiter),
        ".parquet": _read_parquet,
    }
    ending = path.suffix.lower()
    if ending not in readers:
        raise DataError(f"{file} must end in {', '.join(readers)}, got {path.suffix or 'no ending'}")
    try:
        found = readers[ending](path)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:  # a few damaged bytes can ask for any amount
        raise DataError(f"{file} cannot be read: it does not fit in memory") from error
    if isinstance(found, dict):
        return _without_index(stacked(found, file))
    return Found(Table(samples(found, file), file))


def select(table: Table, names: str) -> Table:
    """The columns of a list of names, or of numbers from 0, between commas. Raises DataError."""
    chosen = []
    for name in map(str.strip, next(csv.reader([names]))):
        if name in table.labels:
            chosen.append(table.labels.index(name))
        elif name.isdecimal() and int(name) < table.values.shape[1]:
            chosen.append(int(name))
        else:
            has = ", ".join(table.labels[:20]) if table.labels else f"0 to {table.values.shape[1] - 1}"
            raise DataError(f"{table.name} has no column {name!r}; it has {has}")
    return columns(table, chosen)


def columns(table: Table, chosen: list[int]) -> Table:
    return Table(
        table.values[:, chosen],
        table.name,
        tuple(table.labels[k] for k in chosen) if table.labels else tuple(map(str, chosen)),
        tuple(new for new, old in enumerate(chosen) if old in table.symbols),
    )


def _without_index(table: Table) -> Found:
    """Without a first column that has no name and counts the rows, as pandas' to_csv writes its index."""
    first = table.labels[0]
    unnamed = first == "" or first.startswith("Unnamed: ") or first == "__index_level_0__"
    if not unnamed or table.values.shape[1] < 2 or not np.array_equal(table.values[:, 0], np.arange(len(table))):
        return Found(table)
    rest = columns(table, list(range(1, table.values.shape[1])))
    return Found(rest, (f"{table.name}: the first column has no name and counts the rows, an index, and was left out",))


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error


def _read_npz(path: Path, name: str | None) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{path} cannot be read as .npz: it is a single array")
            if name is None and len(arrays.files) != 1:
                raise DataError(f"{path} holds {', '.join(arrays.files) or 'nothing'}: name one as {path}:NAME")
            if name is not None and name not in arrays.files:
                raise DataError(f"{path} holds {', '.join(arrays.files) or 'nothing'}, not {name}")
            return arrays[name or arrays.files[0]]
    except DataError:
        raise
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error


def _read_text(path: Path, delimiter: str | None) -> dict[str, np.ndarray]:
    from pyarrow import ArrowException
    from pyarrow import csv as arrow

    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().removeprefix("\ufeff").rstrip("\r\n")
    if delimiter is None:
        delimiter = max(_DELIMITERS[path.suffix.lower()], key=re.sub('"[^"]*"', "", first).count)
    # Names are text; a first line of numbers alone (or of empty cells) is data, but for ",0,1,2", which pandas writes
    # over an index and columns without names.
    cells = next(csv.reader([first], delimiter=delimiter), [])
    counted = len(cells) > 1 and cells == ["", *map(str, range(len(cells) - 1))]
    numbers = all(map(_is_number, cells)) and not counted
    options = arrow.ReadOptions(autogenerate_column_names=numbers)
    convert = arrow.ConvertOptions(strings_can_be_null=True)
    try:
        found = arrow.read_csv(path, options, arrow.ParseOptions(delimiter=delimiter), convert)
        if numbers:
            found = found.rename_columns([str(k) for k in range(found.num_columns)])
        return _to_columns(found, path)
    except ArrowException as error:
        raise DataError(
            f"{path} cannot be read as {path.suffix.lower()}: {_first_line(error)} (with {delimiter!r} between cells)"
        ) from error


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    from pyarrow import ArrowException, parquet

    try:
        return _to_columns(parquet.read_table(path), path)
    except ArrowException as error:
        raise DataError(f"{path} cannot be read as .parquet: {_first_line(error)}") from error


def _to_columns(table: Any, path: Path) -> dict[str, np.ndarray]:
    """By name (N,): float64 of numbers and times, missing cells as NaN; objects of texts and categories."""
    from pyarrow import float64, int64, types

    if table.num_columns == 0 or table.num_rows == 0:
        raise DataError(f"{path} must have at least one row and one column, got {table.num_rows} rows")
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"{path} must have a name of its own for each column, got {', '.join(table.column_names[:20])}")
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_dictionary)
    times = (types.is_timestamp, types.is_date)
    found, unfit = {}, []
    for name, kind, column in zip(table.column_names, table.schema.types, table.columns, strict=True):
        if any(is_kind(kind) for is_kind in times):
            column = column.cast("timestamp[ns]").cast(int64())
        if any(is_kind(kind) for is_kind in (*numbers, *times)):
            found[name] = column.cast(float64(), safe=False).to_numpy()
        elif any(is_kind(kind) for is_kind in texts):
            found[name] = np.array(column.to_pylist(), dtype=object)
        else:
            unfit.append(f"{name} ({kind})")
    if unfit:
        raise DataError(
            f"{path} must hold numbers, texts and times, got {', '.join(unfit[:8])}{', ...' if unfit[8:] else ''}"
        )
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"') or "nan")
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
