"""Rows of Hugging Face datasets as they lie on disk: parquet, arrow, JSON; or of the hub, with ``datasets``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.json_records import is_json, read_json_records

__all__ = ["TableRows", "open_rows", "table_files"]

TABLES = (".parquet", ".arrow")
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NOT_SPLITS = {"data", ""}  # what shards are called where there are no splits
ROWS = 64  # that are read at a time; their audio is in memory together


class TableRows(ABC):
    """Rows in a fixed order."""

    columns: list[str]
    files: list[Path]

    @abstractmethod
    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | BadData]]:
        """Where a row stands, and its cells in these columns; lists of numbers are arrays."""


class ArrowRows(TableRows):
    """Rows of parquet and arrow files, with pyarrow (extra ``hf``)."""

    def __init__(self, files: list[Path]) -> None:
        _import_pyarrow()
        self.files = files
        self.columns = list(dict.fromkeys(name for file in files for name in _schema(file)))

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | BadData]]:
        """Cells of these columns, and of no others: audio that is not asked for is not read."""
        for file in self.files:
            row = 0
            for batch in _batches(file, columns):
                for i in range(batch.num_rows):
                    names = batch.schema.names
                    yield f"{file}, row {row}", {name: _cell(batch.column(k)[i]) for k, name in enumerate(names)}
                    row += 1


class JsonRows(TableRows):
    """Objects of JSON files."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        found: dict[str, None] = {}
        for file in files:
            for _, record in read_json_records(file):
                found |= dict.fromkeys(record) if isinstance(record, dict) else {}
        self.columns = list(found)

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | BadData]]:
        """Values of these keys; one that an object lacks is None."""
        for file in self.files:
            for where, record in read_json_records(file):
                yield where, record if isinstance(record, BadData) else {name: record.get(name) for name in columns}


class HubRows(TableRows):
    """Rows of a dataset of the hub, streamed with ``datasets`` (extra ``hub``)."""

    def __init__(self, name: str, split: str | None) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"there is no file or folder {name}; as a dataset of the hub it needs datasets: "
                "pip install 'fac-lightning[hub]'"
            ) from error
        self.name, self.split, self.files = name, split or "train", []
        rows = datasets.load_dataset(name, split=self.split, streaming=True)
        for column, feature in (rows.features or {}).items():
            if type(feature).__name__ == "Audio":  # read here, as it is stored
                rows = rows.cast_column(column, datasets.Audio(decode=False))
        self.rows, self.columns = rows, list(rows.column_names)

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | BadData]]:
        """Cells of these columns."""
        for number, row in enumerate(self.rows.select_columns(list(columns))):
            yield f"{self.name} ({self.split}), row {number}", row


def open_rows(source: Path, written: str, split: str | None = None) -> TableRows:
    """Rows of a file, of all files of a folder, or of a dataset of the hub.

    Args:
        source: Where it would be on disk.
        written: As the user wrote it: a hub id, where nothing is on disk.
        split: Which part, where there are several.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A library is missing, there are several splits and none is chosen, or no files.
    """
    if not source.exists():
        if HUB_ID.fullmatch(written) and not is_json(source) and source.suffix not in TABLES:
            return HubRows(written, split)
        raise FileNotFoundError(
            f"{written} does not exist; name a file, a folder, or a dataset of the hub (owner/name)"
        )
    files = table_files(source, split)
    return JsonRows(files) if is_json(files[0]) else ArrowRows(files)


def table_files(source: Path, split: str | None = None) -> list[Path]:
    """Files with the rows of a source, in order.

    Raises:
        ValueError: There are none, of this split or at all, or a split must be chosen.
    """
    if source.is_file():
        return [source]
    files = [path for path in sorted(source.rglob("*")) if path.suffix in TABLES and "cache-" not in path.name]
    if not files:
        skip = ("dataset_info.json", "dataset_dict.json", "state.json")
        files = [path for path in sorted(source.rglob("*.json*")) if is_json(path) and path.name not in skip]
    if not files:
        raise ValueError(f"{source} holds no parquet, arrow or JSON files")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split(file, source), []).append(file)
    if split is None and len(splits) > 1:
        raise ValueError(f"{source} has the splits {', '.join(splits)}; choose one: split=... (--set split=...)")
    chosen = next(iter(splits)) if split is None else split
    if chosen not in splits:
        raise ValueError(f"{source} has no split {split!r}; it has {', '.join(splits)}")
    return splits[chosen]


def _split(file: Path, source: Path) -> str:
    """Name of the split that a file is of."""
    match = SHARD.match(file.name)
    if match and match[1] not in NOT_SPLITS:
        return match[1]
    parent = file.parent.name
    return parent if file.parent != source and parent not in NOT_SPLITS else "train"


def _import_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError("parquet and arrow files need pyarrow: pip install 'fac-lightning[hf]'") from error
    return pyarrow


def _schema(file: Path) -> list[str]:
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            return list(pyarrow.parquet.read_schema(file).names)
        with _arrow_reader(file) as reader:
            return list(reader.schema.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(
            "FAC-D15", "file that is no table", str(file), str(error), "parquet or arrow", "Fetch it again."
        ) from error


def _batches(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet

    if file.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(file) as table:
            names = [name for name in columns if name in table.schema_arrow.names]
            yield from table.iter_batches(ROWS, columns=names)
        return
    with _arrow_reader(file) as reader:
        streamed = isinstance(reader, pyarrow.RecordBatchStreamReader)
        batches = reader if streamed else (reader.get_batch(i) for i in range(reader.num_record_batches))
        names = [name for name in columns if name in reader.schema.names]
        for batch in batches:
            yield batch.select(names)


def _arrow_reader(file: Path) -> Any:
    """Reader of an arrow file: ``datasets`` writes streams, others the file format."""
    import pyarrow

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))


def _cell(scalar: Any) -> Any:
    """A cell in Python; lists of numbers stay arrays, for an ``array`` of audio has millions."""
    import pyarrow

    if not scalar.is_valid:
        return None
    if pyarrow.types.is_struct(scalar.type):
        return {name: _cell(scalar[name]) for name in (field.name for field in scalar.type)}
    if pyarrow.types.is_list(scalar.type) or pyarrow.types.is_large_list(scalar.type):
        inner = scalar.type.value_type
        if (pyarrow.types.is_integer(inner) or pyarrow.types.is_floating(inner)) and not scalar.values.null_count:
            return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()
