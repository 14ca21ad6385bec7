"""Blocks of ids: codes in and out, whatever a model writes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byteloom import codecs
from byteloom.documents import VOCAB_SIZE, Document, Segment, from_ids, to_ids
from byteloom.vocabularies import Block, blocks, marks, modalities, vocab_size


class Frames:
    """A tokenizer whose segment of bytes holds its codes, one a byte, and whose header says how many frames."""

    header_bytes = 1

    def __init__(self, *sizes: int):
        self.sizes = sizes

    def read(self, path: str | Path) -> Segment:
        return codecs.read(path, "bytes").segments[0]

    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        codes = segment.data.astype(np.int64).reshape(-1, len(self.sizes))
        return codes, bytes([len(codes)])

    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        return Segment(modality="bytes", data=codes.astype(np.uint8).reshape(-1))

    def num_frames(self, header: bytes) -> int | None:
        return header[0] if header else None


def block(*sizes: int) -> Block:
    """The second of two vocabularies."""
    return blocks({"other": Frames(7), "frames": Frames(*sizes)})[1]


def test_vocabularies_lie_one_after_another() -> None:
    laid = blocks({"words": Frames(1000), "sound": Frames(512, 512, 16, 64), "picture": Frames(256)})
    places = [(block.name, block.mark, block.first_id, block.num_ids, block.frame) for block in laid]
    assert places == [("words", 280, 320, 1000, 1), ("sound", 281, 1320, 1104, 4), ("picture", 282, 2424, 256, 1)]
    assert vocab_size(laid) == 2680 and vocab_size(()) == VOCAB_SIZE
    assert marks(laid) == {**codecs.MARKS, "words": 280, "sound": 281, "picture": 282}
    declared = [(m.name, m.mark, m.first_id, m.num_ids) for m in modalities(laid)]
    assert declared == [place[:4] for place in places]


def test_names_and_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="text is a modality of bytes"):
        blocks({"text": Frames(3)})
    blocks({str(i): Frames(3) for i in range(24)})
    with pytest.raises(ValueError, match="25 vocabularies are too many; 24"):
        blocks({str(i): Frames(3) for i in range(25)})


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4), frames=st.integers(0, 20), data=st.data())
def test_codes_in_are_codes_out(sizes: list[int], frames: int, data: st.DataObject) -> None:
    codes = [data.draw(st.integers(0, size - 1)) for _ in range(frames) for size in sizes]
    source = Segment(modality="bytes", data=np.array(codes, np.uint8))
    vocabulary = block(*sizes)
    tokens = vocabulary.encode(source)
    assert tokens.modality == "frames" and tokens.header == bytes([frames])
    starts = VOCAB_SIZE + 7 + np.cumsum([0, *sizes[:-1]])
    assert tokens.data.tolist() == (np.array(codes, int).reshape(-1, len(sizes)) + starts).reshape(-1).tolist()
    assert vocabulary.payload_size(tokens.header) == len(tokens.data)
    assert vocabulary.decode(tokens) == source
    # ... also through a stream of ids.
    known = marks(blocks({"other": Frames(7), "frames": Frames(*sizes)}))
    (read,) = from_ids(to_ids(Document(segments=(tokens,)), known, 3), known).segments
    assert read == tokens


def test_a_file_is_read_by_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "codes").write_bytes(bytes([0, 1, 2, 1]))
    assert block(3, 2).encode(tmp_path / "codes").data.tolist() == [327, 331, 329, 331]


@pytest.mark.parametrize(
    ("ids", "header", "expected"),
    [
        ([327, 331, 329, 330], b"", [0, 1, 2, 0]),
        ([327, 331, 329], b"", [0, 1]),
        ([331, 327, 331, 331, 329, 330], b"", [0, 1, 2, 0]),
        ([327, 65, 5000, 331, 320, 329, 330], b"", [0, 1, 2, 0]),
        ([327, 327, 331], b"\x02", [0, 1, 0, 0]),
        ([327, 331, 329, 330], b"\x01", [0, 1]),
        ([], b"\x02", [0, 0, 0, 0]),
        ([], b"", []),
        ([332], b"", []),
    ],
    ids="whole cut shifted foreign short long nothing empty beyond".split(),
)
def test_whatever_a_model_writes_is_decoded(ids: list[int], header: bytes, expected: list[int]) -> None:
    segment = Segment(modality="frames", data=np.array(ids, np.uint16), header=header)
    assert block(3, 2).decode(segment).data.tolist() == expected


@given(ids=st.lists(st.integers(0, 400), max_size=40), header=st.binary(max_size=1))
def test_no_garbage_is_an_error(ids: list[int], header: bytes) -> None:
    decoded = block(10, 20, 30).decode(Segment(modality="frames", data=np.array(ids, np.uint16), header=header))
    codes = decoded.data.reshape(-1, 3)
    assert (codes < [10, 20, 30]).all()
    assert not header or len(codes) == header[0]


def test_large_vocabularies_have_wide_ids() -> None:
    laid = blocks({"words": Frames(50257), "picture": Frames(16384), "sound": Frames(8, 8)})
    zeros = Segment(modality="bytes", data=np.zeros(2, np.uint8))
    assert [b.encode(zeros).data.dtype for b in laid] == [np.uint16, np.uint32, np.uint32]
    assert laid[2].encode(zeros).data.tolist() == [320 + 50257 + 16384, 320 + 50257 + 16384 + 8]
