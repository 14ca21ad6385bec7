"""Datasets of Hugging Face: a name in, documents out. The only file that imports `datasets`.

    NAME_OR_PATH[:split[:column]]

In: a folder or file of parquet, arrow, JSON, CSV, text, pictures, sounds or clips, a dataset that `save_to_disk` wrote,
or a name on the hub. Out: a document for each row. Cost: a row at a time; `read_corpus` keeps all payload in memory.

Only formats that are data are opened, and neither a dataset nor a row may name files outside of its folder.
"""

import contextlib
import dataclasses
import glob
import json
import os
import re
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from byteloom import codecs
from byteloom.codecs import DEFAULT_MEDIA, MediaConfig
from byteloom.corpus import Corpus, no_bytes
from byteloom.documents import DataError, Document, Segment
from byteloom.shards import write
from byteloom.sources import AnyPath

FORMATS = {"parquet", "arrow", "json", "csv", "text", "imagefolder", "audiofolder", "videofolder"}
"""What is opened. Others of `datasets` unpickle what they read, or are no rows of data."""
SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
"""The format of a file that is named itself."""
ARCHIVES = {"zip", "tar", "gzip", "bz2", "xz", "zstd"}
SAVED = ("dataset_dict.json", "state.json")
TYPED_ROWS = 100
BATCH_ROWS = 64
MAX_FILE_BYTES = 1 << 31


@dataclass(frozen=True)
class HubDataset:
    """What `NAME_OR_PATH[:split[:column]]` names; nothing has been opened."""

    name: str
    """A path that exists, or OWNER/NAME on the hub, or OWNER/NAME/CONFIG where the dataset has several."""
    split: str = ""
    """Such as "train", which is the default, as is the only split where there is one."""
    column: str = ""
    """The column to read, or several joined with "+", which become segments of one document; by default the obvious."""
    streaming: bool = False
    """Read while training, over and over, and keep nothing."""

    def __str__(self) -> str:
        return ":".join([self.name, self.split, self.column]).rstrip(":")

    @property
    def path(self) -> Path | None:
        """Where it lies, if it does not lie on the hub."""
        path = Path(self.name).expanduser()
        return path if path.exists() else None


def parse(text: str, streaming: bool = False) -> HubDataset:
    """A dataset from `NAME_OR_PATH[:split[:column]]`. Of a path with colons in it, as much as exists is the path.

    Raises:
        DataError: it is no path that exists, and cannot be a name.
    """
    for count in range(3):
        name, *rest = text.rsplit(":", count) if count else [text]
        if name and len(rest) == count and Path(name).expanduser().exists():
            return HubDataset(name, *rest, streaming=streaming)
    name, *rest = text.split(":", 2)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*){0,2}(:[\w.-]*(:.*)?)?", text):
        raise DataError(f"{text}: is no path that exists, and no name of a dataset; write NAME_OR_PATH:split:column")
    return HubDataset(name, *rest, streaming=streaming)


class Rows:
    """A split of a dataset whose rows are documents. Make one with `open_rows`."""

    def __init__(self, spec: HubDataset, dataset: Any, columns: Mapping[str, str], media: MediaConfig):
        self.spec = spec
        self.dataset = dataset  # datasets.IterableDataset with these columns and no others
        self.columns = dict(columns)  # modality of each
        self.media = media
        self.held = [0] * dataset.num_shards  # rows at the start of each shard that are not read

    @property
    def modalities(self) -> dict[int, str]:
        """Name of the modality of each MARK that may occur."""
        return {codecs.MARKS[modality]: modality for modality in self.columns.values()}

    def shard(self, number: int) -> Any:
        """The rows of a shard, such as one file, as a dataset of their own, without those held out."""
        return self.dataset.shard(len(self.held), number).skip(self.held[number])

    def each(
        self, rows: Any, first: int, shard: int, skipped: MutableSequence[tuple[str, str]]
    ) -> Generator[Document | None, None, None]:
        """The document of each row of a shard, which begin with row `first` of it; None for one that is `skipped`.

        Raises:
            DataError: the dataset is damaged, or out of reach.
        """
        place = self.spec.path.resolve().name if self.spec.path else self.spec.name
        with _reading(self.spec):
            for number, row in enumerate(rows, first):
                name = "/".join(filter(None, [place, self.spec.split, str(shard), str(number)]))
                try:
                    yield self._document(row, name)
                except DataError as error:
                    skipped.append((name, str(error)))
                    yield None

    def documents(self, skipped: MutableSequence[tuple[str, str]]) -> Iterator[Document]:
        """All documents in order; rows that give none go to `skipped`, name and reason. Raises DataError as `each`."""
        for number, first in enumerate(self.held):
            yield from filter(None, self.each(self.shard(number), first, number, skipped))

    def hold_out(self, num_bytes: int) -> Corpus:
        """The first documents that together have `num_bytes`, or all; they are not read again. Raises as `each`."""
        kept: list[Document] = []
        size, skipped = 0, deque[tuple[str, str]](maxlen=1)
        for number, first in enumerate(list(self.held)):
            if size >= num_bytes:
                break
            for document in self.each(self.shard(number), first, number, skipped):
                self.held[number] += 1
                if document is not None:
                    kept.append(document)
                    size += payload_of(document)
                if size >= num_bytes:
                    break
        if not kept:
            raise no_bytes(str(self.spec), skipped)
        return Corpus.from_documents(kept)

    def _document(self, row: Mapping[str, Any], name: str) -> Document:
        segments: list[Segment] = []
        for column, modality in self.columns.items():
            value = row.get(column)
            if modality in ("text", "bytes"):
                data = value.encode("utf-8") if isinstance(value, str) else value or b""
                segments.append(Segment(modality=modality, data=np.frombuffer(data, np.uint8)))
            elif value is None:
                raise DataError(f"has nothing in column {column!r}")
            else:
                segments += self._read_file(value, modality)
        document = Document(segments=tuple(segments), name=name)
        if not payload_of(document):
            raise DataError("holds no bytes")
        return document

    def _read_file(self, value: Any, modality: str) -> tuple[Segment, ...]:
        """A picture, sound or clip: the name of its file, or its content beside a name that tells the format."""
        path, content = (value, None) if isinstance(value, str) else (value.get("path"), value.get("bytes"))
        if path is None and content is None:
            raise DataError(f"has neither content nor a name of the {modality}")
        if content is None and not _may_read(path, self.spec):
            raise DataError(f"names {path}, which is not in the dataset; put the file into it")
        with contextlib.ExitStack() as files:
            file = Path(path or "")
            if content is not None or "://" in path:
                suffix = Path((path or "").split("::")[0]).suffix
                folder = files.enter_context(tempfile.TemporaryDirectory(prefix="byteloom-"))
                file = Path(folder, "file" + (suffix if suffix[1:].isalnum() and len(suffix) < 16 else ""))
                _fetch(path, content, file)
            try:
                return codecs.read(file, modality, self.media).segments
            except DataError as error:
                reason = str(error).removeprefix(f"{file}: ").replace(str(file), path or modality)
                raise DataError(reason) from error


def payload_of(document: Document) -> int:
    """Payload of a document, in ids."""
    return sum(len(segment.data) for segment in document.segments)


def open_rows(spec: HubDataset, media: MediaConfig = DEFAULT_MEDIA) -> Rows:
    """Opens a dataset. What lies on the hub is downloaded first, unless it is streamed.

    A text file is one document; line ends become those of Unix, as `datasets` has it.

    Args:
        spec: what to open.
        media: how pictures, sounds and clips become samples.

    Raises:
        DataError: it is not there, has another format, no such split or column, or several columns that could be meant.
        ModuleNotFoundError: `datasets` is not installed.
    """
    import datasets

    with _reading(spec):
        splits, names_files, parquet = _open(spec)
        split = spec.split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else "")
        if split not in splits:
            raise DataError(f"{spec}: has the splits {', '.join(map(str, splits))}; name one, as in {spec.name}:SPLIT")
        dataset = splits[split]
        if not isinstance(dataset, datasets.IterableDataset):
            dataset = dataset.to_iterable_dataset(num_shards=max(1, min(len(dataset.cache_files), len(dataset))))
        columns = _choose(spec, _kinds(dataset))
        if split in parquet:
            files = {"files": parquet[split], "columns": tuple(columns)}
            return Rows(spec, datasets.IterableDataset.from_generator(_read_parquet, gen_kwargs=files), columns, media)
        dataset = dataset.select_columns(list(columns))
        file = datasets.Value("string")
        stored = file if names_files else {"bytes": datasets.Value("binary"), "path": file}
        for column, modality in columns.items():
            if modality not in ("text", "bytes"):  # or `datasets` would decode it
                dataset = dataset.cast_column(column, stored)
    return Rows(spec, dataset, columns, media)


def read_corpus(spec: HubDataset, media: MediaConfig = DEFAULT_MEDIA) -> Corpus:
    """All documents of a dataset, decoded once and kept in memory.

    Raises:
        DataError: as `open_rows`, or no row has any bytes.
    """
    skipped: list[tuple[str, str]] = []
    documents = list(open_rows(spec, media).documents(skipped))
    if not documents:
        raise no_bytes(str(spec), skipped)
    return dataclasses.replace(Corpus.from_documents(documents), skipped=tuple(skipped))


def prepare(
    specs: Sequence[HubDataset],
    out: AnyPath,
    *,
    media: MediaConfig = DEFAULT_MEDIA,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes datasets as one prepared corpus, a row at a time, and returns what `shards.prepare` does.

    Raises:
        DataError: as `open_rows`, `out` is taken, or no row has any bytes.
    """
    skipped: list[tuple[str, str]] = []
    sizes: dict[str, int] = {}

    def documents() -> Iterator[Document]:
        for rows in [open_rows(spec, media) for spec in specs]:
            for document in rows.documents(skipped):
                for segment in document.segments:
                    sizes[segment.modality] = sizes.get(segment.modality, 0) + len(segment.data)
                yield document
        if not sizes:
            raise no_bytes(", ".join(map(str, specs)), skipped)

    options = json.loads(json.dumps(dataclasses.asdict(media)))  # as a manifest has it: lists for tuples
    manifest = write(documents(), out, media=options, shard_bytes=shard_bytes, overwrite=overwrite)
    return {
        **{key: manifest[key] for key in ("documents", "segments", "bytes")},
        "modalities": sizes,
        "skipped": [{"file": name, "reason": reason} for name, reason in skipped],
    }


def _open(spec: HubDataset) -> tuple[Any, bool, dict[str, list[str]]]:
    """The splits of a dataset, whether their media are names of files, and their parquet files on this machine."""
    import datasets

    path = spec.path
    if path is not None and any((path / name).is_file() for name in SAVED):
        found = datasets.load_from_disk(str(path))
        splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
        _check_inside(spec, [file["filename"] for dataset in splits.values() for file in dataset.cache_files])
        return splits, False, {}
    options: dict[str, Any] = {}
    if path is None:
        parts = spec.name.split("/")
        options = {"path": "/".join(parts[:2]), "name": "/".join(parts[2:]) or None}
    elif path.is_dir():
        if glob.escape(str(path.resolve())) != str(path.resolve()):
            raise DataError(f"{spec}: has [, ? or * in its path, which datasets takes for a pattern; rename the folder")
        options = {"path": str(path.resolve())}
    elif path.suffix.lower() in SUFFIXES:
        options = {"path": SUFFIXES[path.suffix.lower()], "data_files": [glob.escape(str(path.resolve()))]}
    else:
        raise DataError(f"{spec}: is no {', '.join(SUFFIXES)} file and no folder; give it as a file of data")
    builder = datasets.load_dataset_builder(**options)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in FORMATS:
        raise DataError(f"{spec}: is {kind}, which is not read from datasets; convert it to parquet")
    if kind == "text":  # or every line would be a document
        builder = datasets.load_dataset_builder(**options, sample_by="document")
    if path is not None:
        _check_inside(spec, [str(file) for files in (builder.config.data_files or {}).values() for file in files])
    if path is not None or spec.streaming:
        files: Any = builder.config.data_files if path is not None and kind == "parquet" else {}
        parquet = {
            str(split): [*map(str, names)] for split, names in files.items() if not any("::" in n for n in names)
        }
        return builder.as_streaming_dataset(), kind.endswith("folder"), parquet
    builder.download_and_prepare()
    return builder.as_dataset(), False, {}


def _read_parquet(files: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of parquet files on this machine, a few at a time.

    `datasets` reads ahead in threads, which hang or abort a process that ends meanwhile, and reads all columns.
    """
    import pyarrow.parquet

    for name in files:
        with pyarrow.parquet.ParquetFile(name, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()


def _kinds(dataset: Any) -> dict[str, str | None]:
    """The modality of each column by its type, None where it has none; by the first rows where it has no type yet."""
    import datasets

    found: dict[str, str | None] = {}
    if dataset.features is None:
        for row in dataset.take(TYPED_ROWS):
            for column, value in row.items():
                found[column] = found.get(column) or {str: "text", bytes: "bytes"}.get(type(value))
        return found
    media = {datasets.Image: "image", datasets.Audio: "audio", datasets.Video: "video"}
    for column, feature in dataset.features.items():
        dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
        found[column] = media.get(type(feature)) or ("text" if "string" in dtype else None)
        found[column] = found[column] or ("bytes" if "binary" in dtype else None)
    return found


def _choose(spec: HubDataset, kinds: Mapping[str, str | None]) -> dict[str, str]:
    """The columns to read, each with its modality. Raises DataError where it is not clear which."""
    usable = {column: modality for column, modality in kinds.items() if modality is not None}
    there = ", ".join(f"{column} ({modality or 'neither text nor media'})" for column, modality in kinds.items())
    if spec.column:
        wanted = [spec.column] if spec.column in kinds else spec.column.split("+")
    else:
        wanted = [column for column in usable if column == "text" or usable[column] != "text"] or list(usable)
        if len(wanted) != 1:
            raise DataError(
                f"{spec}: has the columns {there}; name one, or several joined with +, as in "
                f"{spec.name}:{spec.split or 'train'}:COLUMN"
            )
    for column in wanted:
        if column not in usable:
            raise DataError(f"{spec}: has no column {column!r} of text or media; it has {there}")
    return {column: usable[column] for column in wanted}


def _check_inside(spec: HubDataset, files: Sequence[str]) -> None:
    """Raises DataError where a dataset on this machine is made of files outside of its folder."""
    for file in files:
        if not _may_read(file, spec):
            raise DataError(f"{spec}: names {file}, which lies outside of it; put the file into it")


def _may_read(path: str, spec: HubDataset) -> bool:
    """Whether a file, perhaps in an archive, as in "zip://a.png::/b.zip", belongs to a dataset."""
    *members, file = path.split("::")
    if any(member.partition("://")[0] not in ARCHIVES for member in members):
        return False
    if "://" in file:
        return spec.path is None and file.startswith("hf://")
    if spec.path is not None:
        roots = [spec.path if spec.path.is_dir() else spec.path.parent]
    else:
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        roots = [Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]
    return any(Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root)) for root in roots)


def _fetch(path: str | None, content: bytes | None, file: Path) -> None:
    """Writes content, or what lies at an address, to a file. Raises DataError where nothing is there, or too much."""
    if content is not None or path is None:
        file.write_bytes(content or b"")
        return
    import fsspec

    found: Any = fsspec.open(path, "rb")
    try:
        with found as source, open(file, "xb") as target:
            while chunk := source.read(1 << 20):
                if target.tell() + len(chunk) > MAX_FILE_BYTES:
                    raise DataError(f"{path}: has more than {MAX_FILE_BYTES:,} bytes; cut it into parts")
                target.write(chunk)
    except (FileNotFoundError, KeyError) as error:
        raise DataError(f"{path}: is not there; put the file into the dataset") from error


@contextlib.contextmanager
def _reading(spec: HubDataset) -> Iterator[None]:
    """Whatever `datasets` raises inside becomes one error that names the dataset. Raises DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # it raises errors of its own, of pyarrow, of the network, of the system, ...
        cause: BaseException = error
        while type(cause).__name__.startswith("DatasetGeneration") and cause.__cause__ is not None:
            cause = cause.__cause__  # which only says that something went wrong
        place = "the files" if spec.path else "the name and the network; a path must exist"
        raise DataError(
            f"{spec}: cannot be read ({str(cause)[:300] or type(cause).__name__}); check {place}"
        ) from error
