"""Names of documents by the million: they stay where they lie, in the file of a shard, until one is asked for.

In: sequences of strings, end to end. Out: one sequence. Cost: 8 bytes of memory a name where some were picked, else
none.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from byteloom.documents import DataError

ENCODING = ("utf-8", "surrogatepass")
"""How names lie in a file: a file's name that is no UTF-8 has lone surrogates in it, which come back."""
READ_AT_ONCE = 1 << 16


class Names(Sequence[str]):
    """Sequences of names end to end, or some of their names; equal to any sequence of the same strings.

    Args:
        parts: the sequences.
        rows: (N,) int64, which names of all, in which order; by default each once.
    """

    def __init__(self, parts: Iterable[Sequence[str]], rows: np.ndarray | None = None) -> None:
        self._parts = tuple(parts)
        self._starts = [0, *itertools.accumulate(map(len, self._parts))]
        self._rows = rows

    def __len__(self) -> int:
        return self._starts[-1] if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        row = index % len(self) if self._rows is None else int(self._rows[index])
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]

    def __iter__(self) -> Iterator[str]:
        if self._rows is None:
            return itertools.chain.from_iterable(self._parts)
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, itertools.islice(self, 3)))
        return f"Names({shown}{', ...' if len(self) > 3 else ''})"

    def take(self, rows: np.ndarray) -> "Names":
        """The names of these indices (N,) int64, in this order."""
        return Names(self._parts, rows if self._rows is None else self._rows[rows])


class NamesInFile(Sequence[str]):
    """Names end to end in mapped bytes.

    Args:
        text: (M,) uint8, the names in `ENCODING`.
        ends: (N,) int64, where each ends in it, in bytes.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start = int(self._ends[index - 1]) if index else 0
        return _decoded(self._text[start : int(self._ends[index])].tobytes())

    def __iter__(self) -> Iterator[str]:
        start = 0
        for low in range(0, len(self), READ_AT_ONCE):
            ends = self._ends[low : low + READ_AT_ONCE]
            text = self._text[start : int(ends[-1])].tobytes()
            for begin, end in itertools.pairwise([0, *(ends - start).tolist()]):
                yield _decoded(text[begin:end])
            start = int(ends[-1])


def _decoded(name: bytes) -> str:
    try:
        return name.decode(*ENCODING)
    except UnicodeDecodeError as error:
        raise DataError(f"the name {name!r:.80} in prepared data is no UTF-8; prepare them anew") from error
