"""Text: UTF-8 and everything that calls itself text.

In: a path. Out: a segment whose data is the file, memory-mapped read-only, byte for byte: invalid UTF-8, a byte order
mark and any line ends survive. Cost: no memory; pages are read when they are touched.
"""

from os import PathLike

from byteloom.codecs import raw
from byteloom.documents import Segment

MODALITY = "text"
MARK = 260
HEADER_BYTES = 0
FILE_SUFFIX = ".txt"
FILE_IS_PAYLOAD = True
SUFFIXES = frozenset(
    """.asm .bat .bib .c .cc .cfg .cmake .conf .cpp .cs .css .csv .cu .cxx .diff .f90 .go .h .hpp .hs .htm .html .hxx
    .ini .ipynb .java .jl .js .json .jsonl .kt .log .lua .m .md .patch .php .pl .po .ps1 .py .pyi .r .rb .rs .rst .scala
    .sh .sql .srt .svg .swift .tex .toml .tsv .tsx .txt .vue .xhtml .xml .yaml .yml""".split()
)


def encode(path: str | PathLike[str]) -> tuple[Segment, ...]:
    """The file as it is. Raises DataError when it cannot be mapped."""
    return (Segment(modality=MODALITY, data=raw.map_file(path)),)


def decode(segment: Segment, suffix: str = "") -> bytes:
    """The bytes of the segment, whatever the suffix. Raises ValueError when its ids are not bytes."""
    return raw.decode(segment)


def payload_size(header: bytes) -> int | None:
    """None: a text is as long as it is."""
    return None
