"""One model over three vocabularies of real discrete codes: text, pictures and speech, each with its own head.

    python benchmarks/tokens.py SUITE OUT [--train-seconds 600] [--json FILE]

SUITE is the folder of benchmarks/suite.py. Nothing is downloaded; what is made is kept in OUT and made once:

    bpe.json            a byte-level BPE of `tokenizers`, learned from text_wiki_en
    vq.safetensors      a VQ autoencoder, learned from image_rgb32 with vector-quantize-pytorch: 8 x 8 codes a tile
    SPLIT/VOCABULARY    prepared corpora: articles, tiles, and spoken prompts in Codec 2 (pycodec2)
    run                 the trained model
    samples             a text, a tile and a prompt of the test split: as it is, through its tokenizer, and continued

Speech is Codec 2 at 700 bit/s (mode 700C): the one of its modes that quantises as neural codecs do, in two residual
stages. A frame of 40 ms has 28 bits: two stages of 9 bits for the shape of the spectrum, 4 for loudness, 6 for pitch.
They are the four codebooks of a frame, and a patch of the model, which has four ids, is a frame.

Reported for each modality: bits per token of the test split, beside two coders that know no context but the codebook of
each token: one that knows how often each occurs in the training split, and one that knows it of the test split itself.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycodec2
import torch
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from byteloom import ModelConfig, StageConfig, codecs, evaluate
from byteloom.codecs import audio, image
from byteloom.corpus import Corpus
from byteloom.documents import Document, Segment
from byteloom.generation import generate_documents
from byteloom.models.config import EmbedderConfig
from byteloom.shards import is_prepared, open_prepared, write
from byteloom.tokenizers import mono_samples, mono_segment, text_segment, text_tokenizer
from byteloom.train.loop import RunConfig, TrainConfig, train
from byteloom.train.optim import OptimConfig
from byteloom.vocabularies import Block, Tokenizer, blocks, marks, modalities, vocab_size

SPLITS = ("train", "valid", "test")
SIDE = 32
"""Of a tile, in pixels."""
GRID = 8
"""Of its codes."""
RATE = 8000
"""Samples of speech a second."""


class Codec2:
    """Speech at 8 kHz as Codec 2's frames of four codes, see above. No header: the rate never differs."""

    sizes = (512, 512, 16, 64)
    header_bytes = 0
    widths = (9, 9, 4, 6)

    def read(self, path: Any) -> Segment:
        """A sound file as mono 16-bit samples at 8 kHz."""
        return audio.encode(path, audio.AudioConfig(coding="pcm16", rate=RATE, mono=True))[0]

    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        """Codes (frames, 4); the last frame is filled up with silence."""
        codec = pycodec2.Codec2(700)  # it remembers the frame before
        hop = codec.samples_per_frame()
        samples = (mono_samples(segment, RATE) * 32768).astype(np.int16)
        samples = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
        packed = b"".join(codec.encode(frame) for frame in samples)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(len(samples), -1), axis=1)
        fields = np.split(bits, np.cumsum(self.widths), axis=1)[: len(self.widths)]
        return np.stack([field @ (1 << np.arange(field.shape[1])[::-1]) for field in fields], axis=1), b""

    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        """Codes (frames, 4) as speech."""
        codec = pycodec2.Codec2(700)
        columns = zip(codes.T, self.widths, strict=True)
        fields = [column[:, None] >> np.arange(width)[::-1] & 1 for column, width in columns]
        packed = np.packbits(np.concatenate(fields, axis=1).astype(np.uint8), axis=1)
        frames = [codec.decode(frame.tobytes()) for frame in packed]
        return mono_segment(np.concatenate([np.zeros(0, np.int16), *frames]) / 32768, RATE)

    def num_frames(self, header: bytes) -> int | None:
        """Speech ends where it ends."""
        return None


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.layers(x)


class TileVQ(nn.Module):
    """Tiles (B, 3, 32, 32) from -1 to 1 as 8 x 8 codes of 512, and back."""

    def __init__(self, width: int = 64, dim: int = 16, num_codes: int = 512):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), Residual(width), nn.Conv2d(width, width, 4, 2, 1), Residual(width),
            Residual(width), nn.Conv2d(width, dim, 1),
        )  # fmt: skip
        self.quantizer = VectorQuantize(
            dim=dim, codebook_size=num_codes, decay=0.99, kmeans_init=True, threshold_ema_dead_code=2,
            commitment_weight=0.25, accept_image_fmap=True,
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1), Residual(width), Residual(width),
            nn.ConvTranspose2d(width, width, 4, 2, 1), Residual(width), nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tiles as they come back, their codes (B, 8, 8), and the loss that keeps vectors close to their codes."""
        quantized, codes, loss = self.quantizer(self.encoder(tiles))
        return self.decoder(quantized), codes, loss.sum()


class TileTokenizer:
    """Tiles of 32 x 32 pixels in RGB as 64 codes, row by row. No header: the size never differs."""

    header_bytes = 0

    def __init__(self, model: TileVQ):
        self.model = model.eval()
        self.sizes = (model.quantizer.codebook_size,)

    def read(self, path: Any) -> Segment:
        """A picture file in RGB."""
        return image.encode(path, image.ImageConfig(channels="rgb"))[0]

    @torch.inference_mode()
    def encode(self, segment: Segment) -> tuple[np.ndarray, bytes]:
        """Codes (64, 1) of a tile. Raises ValueError for a picture of another shape."""
        pixels = image.to_array(segment)
        if pixels.shape != (SIDE, SIDE, 3):
            raise ValueError(f"a tile has {SIDE} x {SIDE} pixels in RGB, not {pixels.shape}")
        _, codes, _ = self.model.quantizer(self.model.encoder(normalised(pixels[None])))
        return codes.reshape(-1, 1).numpy(), b""

    @torch.inference_mode()
    def decode(self, codes: np.ndarray, header: bytes) -> Segment:
        """Codes (64, 1) as a tile; more are cut, and missing ones are code 0."""
        grid = np.zeros(GRID * GRID, np.int64)
        grid[: len(codes)] = codes[: len(grid), 0]
        vectors = self.model.quantizer.get_output_from_indices(torch.from_numpy(grid).view(1, GRID, GRID))
        pixels = (self.model.decoder(vectors)[0].permute(1, 2, 0) + 1) * 127.5
        return image.from_array(pixels.round().clamp(0, 255).to(torch.uint8).numpy())

    def num_frames(self, header: bytes) -> int | None:
        """A tile has 64."""
        return GRID * GRID


def normalised(pixels: np.ndarray) -> Tensor:
    """Pixels (B, H, W, 3) uint8 as a model sees them: (B, 3, H, W) from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def tiles_of(suite: Path, split: str) -> np.ndarray:
    """The tiles of a split (N, 32, 32, 3) uint8."""
    return np.fromfile(suite / "image_rgb32" / f"{split}.bin", np.uint8).reshape(-1, SIDE, SIDE, 3)


def train_vq(tiles: np.ndarray, max_seconds: float, batch_size: int = 64, learning_rate: float = 2e-3) -> TileVQ:
    """A VQ autoencoder of these tiles, trained for so long on one core or more."""
    torch.manual_seed(0)
    model = TileVQ()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    began, step = time.monotonic(), 0
    while (done := (time.monotonic() - began) / max_seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50, (1 - done) / 0.4)
        batch = normalised(tiles[torch.randint(len(tiles), (batch_size,)).numpy()])
        restored, _, commitment = model(batch)
        loss = (restored - batch).square().mean() + commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return model.eval()


@torch.inference_mode()
def reconstruction(model: TileVQ, tiles: np.ndarray) -> dict[str, float]:
    """How well tiles survive: `mse` of pixel values 0 to 255, `psnr` in dB, and how many codes are `used`."""
    parts = [model(normalised(tiles[i : i + 256])) for i in range(0, len(tiles), 256)]
    restored, codes, _ = zip(*parts, strict=True)
    wrong = (torch.cat(restored).clamp(-1, 1) - normalised(tiles)) * 127.5
    mse = float(wrong.square().mean())
    return {"mse": mse, "psnr": 10 * float(np.log10(255**2 / mse)), "used": len(torch.cat(codes).unique())}


def train_bpe(text: Path, path: Path, num_ids: int = 1000) -> None:
    """Writes a byte-level BPE tokenizer that loses nothing."""
    tokenizer = JsonTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(vocab_size=num_ids, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(text)], trainer)
    tokenizer.save(str(path))


def vocabularies(suite: Path, out: Path, vq_seconds: float) -> tuple[Block, ...]:
    """The three tokenizers, trained where they are not yet, with their places among the ids."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "bpe.json").exists():
        train_bpe(suite / "text_wiki_en" / "train.txt", out / "bpe.json")
    model = TileVQ()
    if not (out / "vq.safetensors").exists():
        save_file(train_vq(tiles_of(suite, "train"), vq_seconds).state_dict(), out / "vq.safetensors")
    model.load_state_dict(load_file(out / "vq.safetensors"))
    tokenizers: dict[str, Tokenizer] = {
        "bpe": text_tokenizer(out / "bpe.json"),
        "vq": TileTokenizer(model),
        "codec2": Codec2(),
    }
    return blocks(tokenizers)


def items(suite: Path, name: str, split: str) -> Iterator[tuple[str, Segment]]:
    """Name and content of each article, tile or prompt of a split."""
    if name == "vq":
        for number, tile in enumerate(tiles_of(suite, split)):
            yield f"tile {number}", image.from_array(tile)
        return
    folder, suffix = {"bpe": ("text_wiki_en", "txt"), "codec2": ("audio_speech", "s16le")}[name]
    data = (suite / folder / f"{split}.{suffix}").read_bytes()
    begin = 0
    for item, size in json.loads((suite / folder / f"{split}.index.json").read_text()):
        part = data[begin : begin + size]
        begin += size
        yield item, text_segment(part.decode()) if name == "bpe" else audio.from_array(np.frombuffer(part, "<i2"), RATE)


def prepare(suite: Path, out: Path, laid: tuple[Block, ...]) -> dict[str, dict[str, Corpus]]:
    """The corpora, by split and vocabulary, written where they are not there yet."""
    corpora: dict[str, dict[str, Corpus]] = {}
    for split in SPLITS:
        for block in laid:
            folder = out / split / block.name
            if not is_prepared(folder):
                parts = ((name, block.encode(part)) for name, part in items(suite, block.name, split))
                documents = (Document(segments=(part,), name=name) for name, part in parts)
                write(documents, folder, marks=marks(laid))
            corpora.setdefault(split, {})[block.name] = open_prepared(folder)
    return corpora


def counts_of(corpus: Corpus, block: Block) -> np.ndarray:
    """How often each id of a block occurs."""
    ids = np.concatenate([corpus.payload(segment) for segment in range(len(corpus.segment_lengths))])
    return np.bincount(ids.astype(np.int64) - block.first_id, minlength=block.num_ids)


def entropies(learned: np.ndarray, tested: np.ndarray, sizes: tuple[int, ...]) -> tuple[float, float]:
    """Bits per token of the test split by a coder that knows each codebook's frequencies: the training and its own."""
    bits = np.zeros(2)
    for known, seen in zip(*(np.split(counts, np.cumsum(sizes)[:-1]) for counts in (learned, tested)), strict=True):
        for i, weights in enumerate((known + 1.0, seen.astype(float))):
            used = seen > 0
            bits[i] -= (seen[used] * np.log2(weights[used] / weights.sum())).sum()
    own, known = bits[1] / tested.sum(), bits[0] / tested.sum()
    return float(known), float(own)


def recipe(laid: tuple[Block, ...], seconds: float) -> RunConfig:
    """The unified model: text-small's stages, with patches of four ids, and tables and heads for each vocabulary."""
    return RunConfig(
        model=ModelConfig(
            stages=(
                StageConfig(dim=256, num_layers=2, num_heads=4, patch_size=4, token_shift=True),
                StageConfig(dim=128, num_layers=4, num_heads=2, window=32, token_shift=True),
            ),
            vocab_size=vocab_size(laid),
            modalities=modalities(laid),
            embedder=EmbedderConfig(kind="specific"),
            heads="by_modality",
            context=1024,
            init_std=0.08,
        ),
        optim=OptimConfig(warmup=0.05),
        train=TrainConfig(
            batch_size=4,
            max_seconds=seconds,
            mixture=(0.55, 0.3, 0.15),
            compile="off",  # every batch has other numbers of positions for each head
            validations=4,
            valid_bytes=16384,
        ),
    )


def sample(model: Any, laid: tuple[Block, ...], test: dict[str, Corpus], folder: Path) -> list[str]:
    """Writes an item of each vocabulary as its tokenizer keeps it, and with its second half written by the model."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for block in laid:
        corpus = test[block.name]
        lengths = corpus.document_lengths
        item = corpus[int(np.flatnonzero(lengths >= np.median(lengths))[0])].segments[0]
        half = len(item.data) // 2 // block.frame * block.frame
        prompt = Segment(modality=block.name, data=item.data[:half], header=item.header)
        (document,) = generate_documents(
            model, [Document(segments=(prompt,))], max_bytes=len(item.data) - half, modalities=[block.name], seed=1
        )
        continued = next(segment for segment in document.segments if segment.modality == block.name)
        for name, segment in (("tokenized", item), ("prompt", prompt), ("continued", continued)):
            media = block.decode(segment)
            codec = codecs.by_modality(media.modality)
            path = folder / f"{block.name}.{name}{'.txt' if media.modality == 'text' else codec.FILE_SUFFIX}"
            path.write_bytes(codec.decode(media))
            written.append(path.name)
    return written


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    suite: tyro.conf.Positional[Path]
    """Folder of benchmarks/suite.py, with text_wiki_en, image_rgb32 and audio_speech."""
    out: tyro.conf.Positional[Path]
    """Where everything goes; what is there is used."""
    vq_seconds: float = 240.0
    """How long to train the VQ autoencoder."""
    train_seconds: float = 600.0
    """How long to train the model."""
    threads: int = 2
    """Cores to use."""
    json: Path | None = None
    """Write the figures here."""


def main(options: Options) -> None:
    """Runs the program."""
    torch.set_num_threads(options.threads)
    laid = vocabularies(options.suite, options.out, options.vq_seconds)
    corpora = prepare(options.suite, options.out, laid)
    tiles = reconstruction(laid[1].tokenizer.model, tiles_of(options.suite, "test"))
    figures: dict[str, Any] = {"reconstruction": tiles}
    config = recipe(laid, options.train_seconds)
    run = options.out / "run"
    trained = train(
        config,
        [options.out / "train" / block.name for block in laid],
        run,
        valid=[options.out / "valid" / block.name for block in laid],
        resume=run.exists(),
        show=True,
    )
    figures |= {"parameters": sum(p.numel() for p in trained.model.parameters()), **trained.summary()}
    table = Table("vocabulary", "ids", "training tokens", "test tokens", "training unigram", "own unigram", "model")
    for block in laid:
        learned, tested = (counts_of(corpora[split][block.name], block) for split in ("train", "test"))
        known, own = entropies(learned, tested, block.tokenizer.sizes)
        found = evaluate(trained.model, corpora["test"][block.name], method="sliding")
        figures[block.name] = {
            "ids": block.num_ids,
            "train_tokens": int(learned.sum()),
            "test_tokens": int(tested.sum()),
            "train_unigram_bits": known,
            "own_unigram_bits": own,
            "bits_per_token": found.bits_per_byte,
            "standard_error": found.standard_error,
        }
        row = figures[block.name]
        numbers = [f"{row[key]:,}" for key in ("ids", "train_tokens", "test_tokens")]
        bits = [f"{row[key]:.3f}" for key in ("train_unigram_bits", "own_unigram_bits", "bits_per_token")]
        table.add_row(block.name, *numbers, *bits)
    figures["samples"] = sample(trained.model, laid, corpora["test"], options.out / "samples")
    Console().print(table)
    print(f"VQ on test tiles: {tiles['psnr']:.2f} dB, squared error {tiles['mse']:.1f}, {tiles['used']} codes used")
    print(f"samples in {options.out / 'samples'}: {', '.join(figures['samples'])}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
