"""Rows out of tables: Parquet files, and datasets that Hugging Face's `save_to_disk` left in a folder. Needs pyarrow (`lorimer[data]`)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lorimer.data.raw import BROKEN_UTF8, Chunk, RawRow, as_table_row
from lorimer.data.sources import ROWS_A_CHUNK, Opened, Source, check_unique
from lorimer.errors import ConfigError, DataError
from lorimer.storage import digest_of_file

DICT_FILE, STATE_FILE, INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"  # of `datasets.save_to_disk`


class Batch(NamedTuple):
    """Some rows of a table, by column."""

    first_row: int
    table: Any
    """A pyarrow.RecordBatch."""
    class_names: Mapping[str, tuple[str, ...]]
    """Columns that hold a number for a name, and the names."""

    def rows(self) -> Iterator[RawRow]:
        """One a row; a text that is not UTF-8 spoils its own row alone."""
        try:
            values = self.table.to_pylist()
        except UnicodeDecodeError:
            values = [_one_row(self.table, number) for number in range(self.table.num_rows)]
        for number, value in enumerate(values, self.first_row):
            if value is None:
                yield RawRow(number, None, BROKEN_UTF8)
            else:
                yield as_table_row(number, self._with_names(value))

    def _with_names(self, value: dict[str, Any]) -> dict[str, Any]:
        for column, names in self.class_names.items():
            number = value[column]
            if number is not None and 0 <= number < len(names):
                value[column] = names[number]
        return value


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """One Parquet file."""

    path: Path
    name: str
    pyarrow: ModuleType = field(repr=False)

    @property
    def num_bytes(self) -> int | None:
        """The file's size."""
        return self.path.stat().st_size

    def chunks(self) -> Iterator[Chunk]:
        """See `Source.chunks`."""
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                check_unique(file.schema_arrow.names, f"{self.name}: the table")
                names = _class_names(file.schema_arrow.metadata)
                row = 1
                for batch in file.iter_batches(batch_size=ROWS_A_CHUNK):
                    yield Batch(row, batch, names)
                    row += batch.num_rows
        except (self.pyarrow.ArrowException, OSError) as exc:
            raise DataError(f"{str(self.path)!r} cannot be read as Parquet ({_first_line(exc)}): is it whole?") from exc

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`."""
        return {"file": self.name, "sha256": digest_of_file(self.path), "num_bytes": self.path.stat().st_size}


@dataclass(frozen=True, slots=True)
class ArrowSource:
    """The Arrow files of one split of a saved dataset."""

    files: tuple[Path, ...]
    name: str
    pyarrow: ModuleType = field(repr=False)

    @property
    def num_bytes(self) -> int | None:
        """The files' sizes."""
        return sum(path.stat().st_size for path in self.files)

    def chunks(self) -> Iterator[Chunk]:
        """See `Source.chunks`."""
        row = 1
        for path in self.files:
            try:
                with self.pyarrow.memory_map(str(path)) as mapped, self.pyarrow.ipc.open_stream(mapped) as stream:
                    check_unique(stream.schema.names, f"{self.name}: the table")
                    names = _class_names(stream.schema.metadata)
                    for batch in stream:
                        for at in range(0, batch.num_rows, ROWS_A_CHUNK):
                            part = batch.slice(at, ROWS_A_CHUNK)
                            yield Batch(row, part, names)
                            row += part.num_rows
            except (self.pyarrow.ArrowException, OSError) as exc:
                raise DataError(f"{str(path)!r} cannot be read as an Arrow stream ({_first_line(exc)}): is it whole?") from exc

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`; of several files, the digest of their digests."""
        digests = [digest_of_file(path) for path in self.files]
        whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return {"file": self.name, "sha256": whole, "num_bytes": self.num_bytes}


def open_parquet(path: Path, name: str) -> Source:
    """A Parquet file as a source.

    Raises:
        ConfigError: if pyarrow is not installed.
    """
    return ParquetSource(path, name, _import_pyarrow(path))


def is_hugging_face(folder: Path) -> bool:
    """Whether `save_to_disk` made this folder."""
    return (folder / DICT_FILE).is_file() or (folder / STATE_FILE).is_file()


def open_hugging_face(folder: Path) -> Opened:
    """A saved dataset, or all splits of several; the one called `test` is kept apart.

    Raises:
        ConfigError: if pyarrow is not installed.
        DataError: if a file is missing or says what cannot be.
    """
    pyarrow = _import_pyarrow(folder)
    if (folder / STATE_FILE).is_file():
        return Opened((ArrowSource(_data_files(folder), folder.name, pyarrow),), (), ())
    splits = _read_json(folder / DICT_FILE).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise DataError(f"{str(folder / DICT_FILE)!r} names no splits: save the dataset again")
    by_name: dict[str, Source] = {split: ArrowSource(_data_files(folder / split), f"{folder.name}/{split}", pyarrow) for split in splits}
    test = tuple(source for split, source in by_name.items() if split == "test" and len(by_name) > 1)
    return Opened(tuple(source for source in by_name.values() if source not in test), test, ())


def _data_files(folder: Path) -> tuple[Path, ...]:
    state = _read_json(folder / STATE_FILE)
    if state.get("_indices_data_files"):
        raise DataError(f"{str(folder)!r} holds a selection of another table's rows: call `flatten_indices()` before `save_to_disk`")
    try:
        files = tuple(folder / str(each["filename"]) for each in state["_data_files"])
    except (KeyError, TypeError) as exc:
        raise DataError(f"{str(folder / STATE_FILE)!r} names no data files: save the dataset again") from exc
    absent = [str(path) for path in files if path.parent != folder or not path.is_file()]
    if absent or not files:
        raise DataError(f"saved dataset {str(folder)!r}: {', '.join(absent) or 'data'} is not there: save the dataset again")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(f"{str(path)!r} cannot be read ({type(exc).__name__}): save the dataset again") from exc
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} is not an object with keys: save the dataset again")
    return value


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Of the columns that `datasets` calls ClassLabel: what their numbers mean."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _one_row(table: Any, number: int) -> dict[str, Any] | None:
    try:
        (value,) = table.slice(number, 1).to_pylist()
    except UnicodeDecodeError:
        return None
    found: dict[str, Any] = value
    return found


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__


def _import_pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as exc:
        raise ConfigError(f"reading {str(path)!r} needs pyarrow: pip install 'lorimer[data]'") from exc
    module: ModuleType = pyarrow
    return module
