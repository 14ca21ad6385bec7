"""Text: UTF-8 and everything that calls itself text.

In: a path. Out: a segment whose data is the file, memory-mapped read-only, byte for byte: invalid UTF-8, a byte order
mark and any line ends survive. Cost: no memory; pages are read when they are touched.
"""

from os import PathLike

from byteloom.codecs import raw
from byteloom.documents import Segment

MODALITY = "text"
MARK = 260
FILE_IS_PAYLOAD = True
SUFFIXES = frozenset(
    """.asm .bat .bib .c .cc .cfg .cmake .conf .cpp .cs .css .csv .cu .cxx .diff .f90 .go .h .hpp .hs .htm .html .hxx
    .ini .ipynb .java .jl .js .json .jsonl .kt .log .lua .m .md .patch .php .pl .po .ps1 .py .pyi .r .rb .rs .rst .scala
    .sh .sql .srt .svg .swift .tex .toml .tsv .tsx .txt .vue .xhtml .xml .yaml .yml""".split()
)


def encode(path: str | PathLike[str]) -> Segment:
    """The file as it is. Raises DataError when it cannot be mapped."""
    return Segment(modality=MODALITY, data=raw.map_file(path))


def decode(segment: Segment) -> bytes:
    """The bytes of the segment. Raises ValueError when its ids are not bytes."""
    return raw.decode(segment)
