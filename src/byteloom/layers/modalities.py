"""Vectors for many modalities: tagged ids (B, K*P) -> patch vectors (B, K, D), by one of four embedders.

"plain" is a `PatchEmbedder` as it is. "specific" has one of its own for each kind, "universal" one for all and a vector
for each kind, "fusion" one for each of several time-aligned streams and a layer that makes one vector of them. A kind
is a modality, or in a fused model a stream. Cost: that of one `PatchEmbedder` a patch; a kind that a batch lacks costs
nothing and gets no gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from byteloom.layers.linear import Linear
from byteloom.layers.patching import PatchConfig, PatchEmbedder, Pooling
from byteloom.losses import VOCABULARY

EmbedderKind = Literal["plain", "specific", "universal", "fusion"]
Role = Literal["given", "predicted", "past"]
ROLES: tuple[Role, ...] = ("given", "predicted", "past")
RESERVED = VOCABULARY.end_of_reserved - VOCABULARY.num_bytes


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One of several time-aligned streams that a fused model reads."""

    name: str
    """What it is called in reports."""
    size: int
    """Its bytes in one patch."""
    role: Role = "predicted"
    """"predicted" is learned; "past" is context from patches before, "given" from the patch being predicted too."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"StreamConfig.size of {self.name} is {self.size}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """How patches of different modalities become vectors."""

    kind: EmbedderKind = "plain"
    """"plain": one for all; "specific": one for each modality; "universal": one and a vector for each modality;
    "fusion": one for each of the streams, made one by a fusion layer."""
    bottleneck: int | None = None
    """Width that a patch's bytes are reduced to before they are projected to the stage; None: no such step."""
    pooling: Pooling = "concat"
    """A patch's bytes side by side, or "attention": a few trained queries over them."""
    dropout: float = 0.0
    """Dropout on patch vectors, in training."""
    positions: int = 0
    """Bytes after which a trained position within the segment repeats, such as those of a picture; 0: no positions."""
    streams: tuple[StreamConfig, ...] = ()
    """For "fusion", in the order in which a patch holds them: given, predicted, past."""
    fuse: Literal["sum", "attention"] = "sum"
    """How streams become one vector: a gated sum, or attention across them."""
    stream_dropout: float = 0.0
    """Share of sequences in which a stream (but the first predicted one) is left out in training."""

    def __post_init__(self) -> None:
        if not isinstance(self.streams, tuple):
            object.__setattr__(self, "streams", tuple(self.streams))
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"EmbedderConfig.bottleneck is {self.bottleneck}; it must be at least 1, or None")
        if self.positions < 0:
            raise ValueError(f"EmbedderConfig.positions is {self.positions}; it must be at least 0")
        for field in ("dropout", "stream_dropout"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"EmbedderConfig.{field} is {getattr(self, field)}; it must be at least 0 and below 1")
        if self.kind == "plain" and self.positions:
            raise ValueError('EmbedderConfig.positions are those of a modality; take kind "universal" or "specific"')
        if (self.kind == "fusion") != bool(self.streams):
            raise ValueError(f'EmbedderConfig.streams are for kind "fusion", and it needs some; kind is "{self.kind}"')
        if self.stream_dropout and not self.streams:
            raise ValueError('EmbedderConfig.stream_dropout leaves out streams; it is for kind "fusion"')
        roles = [ROLES.index(stream.role) for stream in self.streams]
        if roles != sorted(roles):
            raise ValueError("EmbedderConfig.streams must come in the order given, predicted, past")
        if self.streams and "predicted" not in [stream.role for stream in self.streams]:
            raise ValueError("EmbedderConfig.streams has none that is predicted")
        if len({stream.name for stream in self.streams}) < len(self.streams):
            raise ValueError("EmbedderConfig.streams has two of the same name")


class Kind(NamedTuple):
    """What is embedded and predicted in its own way: a modality or a stream, and the block of ids that its data use."""

    name: str
    first_id: int = 0
    num_ids: int = VOCABULARY.num_bytes

    @property
    def rows(self) -> int:
        """Rows of its own table: its block, then the reserved ids."""
        return self.num_ids + RESERVED

    def own(self, ids: Tensor) -> Tensor:
        """Ids of the stream as rows of its own table; what is foreign to it counts as PAD."""
        reserved = (ids >= VOCABULARY.num_bytes) & (ids < VOCABULARY.end_of_reserved)
        inside = (ids >= self.first_id) & (ids < self.first_id + self.num_ids)
        other = torch.where(reserved, ids - VOCABULARY.num_bytes + self.num_ids, self.num_ids)
        return torch.where(inside, ids - self.first_id, other)

    def ids(self, device: torch.device) -> Tensor:
        """(rows,), the id in the stream of each row of its table."""
        return torch.cat(
            (
                torch.arange(self.first_id, self.first_id + self.num_ids, device=device),
                torch.arange(VOCABULARY.num_bytes, VOCABULARY.end_of_reserved, device=device),
            )
        )


@dataclass(frozen=True)
class Tagged:
    """Ids (B, L) with what the ids before each say of it; a model of one kind needs no tags."""

    ids: Tensor
    """(B, L), bytes with a prediction as their distance from it."""
    kinds: Tensor | None = None
    """(B, L): index of the kind in force before each position."""
    since: Tensor | None = None
    """(B, L): how many ids of the segment's data stand before it."""
    predictions: Tensor | None = None
    """(B, L): what was taken from each byte, modulo 256, and what followed an earlier match (layers/matches.py)."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Tagged":
        """The same change made to all of them."""
        return Tagged(
            change(self.ids),
            None if self.kinds is None else change(self.kinds),
            None if self.since is None else change(self.since),
            None if self.predictions is None else change(self.predictions),
        )


def through_kinds(kinds: Tensor, parts: Sequence[Callable[..., Tensor]], *inputs: Tensor) -> Tensor:
    """Rows of inputs (N, ...), each through the part of its kind (N,): (N, ...). A part that no row has is not run."""
    if torch.compiler.is_compiling():  # there no path may depend on values
        out = parts[0](*inputs)
        for kind, part in enumerate(parts[1:], start=1):
            found = part(*inputs)
            out = torch.where((kinds == kind).view(-1, *(1 for _ in found.shape[1:])), found, out)
        return out
    # A fake tensor has no values: that all rows are of one kind costs what any mixture costs.
    valueless = isinstance(kinds, FakeTensor) or kinds.device.type == "meta"
    present = [len(parts) - 1] if valueless else kinds.unique().tolist()
    if len(present) < 2:
        return parts[present[0] if present else 0](*inputs)
    rows = [(kinds == kind).nonzero().squeeze(1) for kind in present]
    found = [parts[kind](*(x[index] for x in inputs)) for kind, index in zip(present, rows, strict=True)]
    return torch.cat(found)[torch.cat(rows).argsort()]


class Vectors(nn.Module):
    """A trained vector for each kind and, with `rows`, for each position of the stage in its segment, modulo rows.

    Separate parameters: one that a batch lacks gets no gradient, not a zero one.
    """

    def __init__(self, kinds: Sequence[Kind], dim: int, rows: int):
        super().__init__()
        self.rows = rows
        shape = (rows, dim) if rows else (dim,)
        self.vectors = nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in kinds)

    def forward(self, kinds: Tensor, places: Tensor) -> Tensor:
        """Kinds and places (N,) -> (N, D)."""

        def look_up(vectors: Tensor) -> Callable[[Tensor], Tensor]:
            if self.rows:
                return lambda place: vectors[place % self.rows]
            return lambda place: vectors.expand(place.shape[0], -1)

        return through_kinds(kinds, [look_up(vectors) for vectors in self.vectors], places)


class ModalEmbedder(nn.Module):
    """The embedders "specific" and "universal": patches of several kinds, each in its own way.

    Universal: U(x, m) = E(x) + v_m. Specific: E_m(x), with a table and a projection of its own. Both may add a trained
    position within the segment.
    """

    def __init__(
        self,
        config: PatchConfig,
        options: EmbedderConfig,
        kinds: Sequence[Kind],
        *,
        vocab_size: int,
        span: int,
        embed_dim: int,
        dim: int,
        projection: bool,
    ):
        super().__init__()
        self.span, self.kinds, self.universal = span, tuple(kinds), options.kind == "universal"

        def part(rows: int, of_bytes: bool) -> PatchEmbedder:
            return PatchEmbedder(
                config, vocab_size=rows, span=span, embed_dim=embed_dim, dim=dim, projection=projection,
                bottleneck=options.bottleneck, pooling=options.pooling, dropout=options.dropout,
                of_bytes=of_bytes,
            )  # fmt: skip

        tables = [(vocab_size, True)] if self.universal else [(kind.rows, kind.first_id == 0) for kind in kinds]
        self.parts = cast(list[PatchEmbedder], nn.ModuleList(part(*table) for table in tables))
        self.halo = self.parts[0].halo
        self.modality = Vectors(kinds, dim, 0) if self.universal else None
        self.positions = Vectors(kinds, dim, -(-options.positions // span)) if options.positions else None

    @property
    def convolutions(self) -> list[nn.Conv1d]:
        """Those that a byte goes through."""
        return self.parts[0].convolutions

    @property
    def matrices(self) -> list[nn.Module]:
        """What a patch of one kind is multiplied with."""
        return self.parts[-1].matrices

    @property
    def products(self) -> int:
        """Multiplications a patch, convolutions left out."""
        return self.parts[-1].products

    def weight(self, kind: int) -> Tensor:
        """The rows (R, E) of the byte table that belong to a kind: its block, then the reserved ids."""
        if self.universal:
            return self.parts[0].table.weight[self.kinds[kind].ids(self.parts[0].table.weight.device)]
        return self.parts[kind].table.weight

    def forward(
        self,
        ids: Tensor,
        halo: int = 0,
        real: Tensor | None = None,
        kinds: Tensor | None = None,
        since: Tensor | None = None,
    ) -> Tensor:
        """Ids, kinds and since (B, halo + K * span) -> (B, K, D); `halo` and `real` as in `PatchEmbedder`."""
        if kinds is None or since is None:
            raise ValueError("an embedder for several modalities needs to know the kind of each position")
        first = ids[:, halo :: self.span]
        # The patch in which a document begins is of no modality yet, whatever the one before it was.
        chosen = kinds[:, halo :: self.span].masked_fill(first == VOCABULARY.bos_id, 0).flatten()
        x = self.parts[0](ids, halo, real).flatten(0, 1) if self.universal else self._specific(ids, halo, real, chosen)
        places = torch.div(since[:, halo :: self.span], self.span, rounding_mode="floor").flatten()
        for vectors in (self.modality, self.positions):
            if vectors is not None:
                x = x + vectors(chosen, places).to(x.dtype)
        return x.unflatten(0, first.shape)

    def _specific(self, ids: Tensor, halo: int, real: Tensor | None, kinds: Tensor) -> Tensor:
        """Each patch with all that its embedder reads of it, (B * K, ...), through that of its kind: (B * K, D)."""
        first = self.parts[0]
        others = (
            first.gather_others(ids, halo, real).flatten(0, 1) if first.offsets else ids.new_empty(kinds.shape[0], 0)
        )
        strings = ids.new_empty(kinds.shape[0], 0)
        if first.strings is not None:
            strings = first.hash_strings(ids, halo, real).flatten(0, 1)
        seen = torch.ones_like(ids, dtype=torch.bool) if real is None else real
        edge = first.reach - halo  # of the ids that convolutions reach: those that are missing, or not needed
        size = first.reach + self.span
        windows, shown = (F.pad(x, (edge, 0)).unfold(1, size, self.span).flatten(0, 1) for x in (ids, seen))

        def own(kind: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
            part, ids_of = self.parts[kind], self.kinds[kind]

            def embed(ids: Tensor, real: Tensor, others: Tensor, strings: Tensor) -> Tensor:
                far = ids_of.own(others).unsqueeze(1) if part.offsets else None
                hashes = strings.unsqueeze(1) if part.ngrams else None
                shown = real if part.reach else None
                return part(ids_of.own(ids), part.reach, shown, others=far, hashes=hashes).squeeze(1)

            return embed

        return through_kinds(kinds, [own(kind) for kind in range(len(self.parts))], windows, shown, others, strings)


class FusedEmbedder(nn.Module):
    """The embedder "fusion" in the coarsest stage: each stream's bytes of a patch to a vector, and these to one.

    A stream that is missing in a patch (all PAD) is a trained vector. "sum": the vectors times gates of their own;
    "attention": a trained query attends to them.
    """

    halo = 0
    convolutions: tuple[nn.Conv1d, ...] = ()

    def __init__(self, config: PatchConfig, options: EmbedderConfig, *, embed_dim: int, dim: int):
        super().__init__()
        self.sizes, self.fuse = [stream.size for stream in options.streams], options.fuse
        plain = replace(config, projection=None)
        self.parts = cast(
            list[PatchEmbedder],
            nn.ModuleList(
                PatchEmbedder(
                    plain, vocab_size=VOCABULARY.end_of_reserved, span=size, embed_dim=embed_dim, dim=dim,
                    projection=True, bottleneck=options.bottleneck, pooling=options.pooling, dropout=options.dropout,
                )
                for size in self.sizes
            ),
        )  # fmt: skip
        self.absent = nn.ParameterList(nn.Parameter(torch.empty(dim)) for _ in self.sizes)
        kinds = [Kind(stream.name) for stream in options.streams]
        span = sum(self.sizes)
        self.positions = Vectors(kinds[:1], dim, -(-options.positions // span)) if options.positions else None
        if self.fuse == "sum":
            self.gates = cast(list[Linear], nn.ModuleList(Linear(dim, dim) for _ in self.sizes))
        else:
            self.query = nn.Parameter(torch.empty(dim))
            self.project_key, self.project_value = Linear(dim, dim, bias=False), Linear(dim, dim, bias=False)

    def forward(
        self,
        ids: Tensor,
        halo: int = 0,
        real: Tensor | None = None,
        kinds: Tensor | None = None,
        since: Tensor | None = None,
    ) -> Tensor:
        """Ids (B, K * P), each patch its streams one after another, -> (B, K, D)."""
        patches = ids.unflatten(1, (-1, sum(self.sizes)))
        vectors = []
        for i, part in enumerate(patches.split(self.sizes, dim=-1)):
            flat = part.flatten(0, 1)  # (B * K, size)
            present = (flat != VOCABULARY.pad_id).any(-1).long()
            vectors.append(through_kinds(present, [self._missing(i), self._part(i)], flat))
        x = torch.stack(vectors, dim=1)  # (B * K, streams, D)
        if self.fuse == "sum":
            gates = torch.stack([gate(x[:, i]) for i, gate in enumerate(self.gates)], dim=1).sigmoid()
            fused = (gates * x).sum(1)
        else:
            scores = (self.project_key(x) @ self.query.to(x.dtype)) * x.shape[-1] ** -0.5
            fused = (scores.softmax(-1).unsqueeze(-1) * self.project_value(x)).sum(1)
        if self.positions is not None and since is not None:
            places = since[:, :: sum(self.sizes)].flatten() // sum(self.sizes)
            fused = fused + self.positions(torch.zeros_like(places), places).to(fused.dtype)
        return fused.unflatten(0, patches.shape[:2])

    @property
    def matrices(self) -> list[nn.Module]:
        """What a patch is multiplied with."""
        fuse = list(self.gates) if self.fuse == "sum" else [self.project_key, self.project_value]
        return [matrix for part in self.parts for matrix in part.matrices] + fuse

    @property
    def products(self) -> int:
        """Multiplications a patch."""
        dim = self.absent[0].shape[0]
        each = dim * dim if self.fuse == "sum" else 2 * dim * dim + 2 * dim
        return sum(part.products + each for part in self.parts)

    def _part(self, stream: int) -> Callable[[Tensor], Tensor]:
        part = self.parts[stream]
        # PAD and structure keep their ids: a stream's table has the bytes and all reserved ids.
        return lambda ids: part(ids.clamp(max=VOCABULARY.end_of_reserved - 1)).squeeze(1)

    def _missing(self, stream: int) -> Callable[[Tensor], Tensor]:
        vector = self.absent[stream]
        return lambda ids: vector.expand(ids.shape[0], -1)


Embedder = PatchEmbedder | ModalEmbedder | FusedEmbedder
"""What a stage may have."""
