"""A stack of pre-norm Transformer layers: (B, T, D) -> (B, T, D), all at once or one position at a time.

`Stack.forward` costs one pass over T positions, `Stack.extend` the same for a stretch that goes on where another ended.
`Stack.start` makes a `StackState`, `extend` fills it from a prompt, and `Stack.step` then takes one position a row and
costs the weights plus the cache that the position sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byteloom.layers.attention import (
    Backend,
    Reach,
    alibi_slopes,
    attend,
    attend_cached,
    attention_bias,
    choose_backend,
)
from byteloom.layers.linear import Linear
from byteloom.layers.state import Kept, Past, Place, StackState

Position = Literal["rope", "learned", "rope+learned", "alibi", "none"]
Norm = Literal["rms", "layer"]
MLPKind = Literal["relu", "gelu", "relu2", "swiglu"]

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),  # arXiv 2109.08668
    "swiglu": F.silu,
}


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What the layers of one stage are made of."""

    dim: int
    """Width."""
    num_layers: int
    """Number of layers."""
    num_heads: int
    """Attention heads."""
    num_kv_heads: int | None = None
    """Heads of keys and values: fewer than num_heads is grouped-query, 1 is multi-query attention; None: num_heads."""
    head_dim: int | None = None
    """Width of a head; None: dim / num_heads."""
    position: Position = "rope"
    """How positions are told apart: rotary, a learned table, both, ALiBi's linear bias, or not at all."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    max_positions: int | None = None
    """Rows of the learned position table, and so a limit on length; needed where position is learned."""
    norm: Norm = "rms"
    """RMSNorm or LayerNorm, before each sublayer and after the last."""
    norm_eps: float = 1e-6
    """Added to the variance in norms."""
    qk_norm: bool = True
    """Normalise queries and keys of each head (RMS, no weights)."""
    mlp: MLPKind = "relu2"
    """Activation of the MLP; "swiglu" has a gate."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of dim."""
    attention_bias: bool = False
    """Biases in the attention's linear layers."""
    mlp_bias: bool = False
    """Biases in the MLP's linear layers."""
    token_shift: bool = False
    """Before each sublayer the second half of the channels is taken from the position before."""
    dropout: float = 0.0
    """Dropout on what each sublayer adds, in training; never on embeddings."""
    window: int | None = None
    """A position sees itself and window - 1 before it, across patch borders; None: its patch (coarsest stage: all)."""
    zero_init: bool = True
    """Start with the output projections of attention and MLP at zero."""
    residual_scalars: bool = False
    """Each layer starts from a * x + b * x0 with trained scalars a, b, where x0 is the stack's input."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("dim", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}.{field} is {getattr(self, field)}; it must be at least 1")
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"{name}.num_heads is {self.num_heads}, which does not divide dim {self.dim}; set head_dim"
            )
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"{name}.head_dim is {self.head_dim}; it must be at least 1")
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            raise ValueError(f"{name}.num_kv_heads is {self.num_kv_heads}; it must divide num_heads {self.num_heads}")
        if self.has_rope and self.width_of_head % 2:
            raise ValueError(f"{name}.head_dim is {self.width_of_head}; rotary positions need it to be even")
        if self.has_rope and self.rope_base <= 1:
            raise ValueError(f"{name}.rope_base is {self.rope_base}; it must be above 1")
        if self.max_positions is not None and not self.has_table:
            raise ValueError(f'{name}.max_positions is a limit for position "learned" only; leave it out')
        if self.max_positions is not None and self.max_positions < 1:
            raise ValueError(f"{name}.max_positions is {self.max_positions}; it must be at least 1")
        if self.token_shift and self.dim % 2:
            raise ValueError(f"{name}.dim is {self.dim}; token_shift halves the channels, so it must be even")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"{name}.dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.window is not None and self.window < 1:
            raise ValueError(f"{name}.window is {self.window}; it must be at least 1, or None for no window")
        if self.mlp_ratio <= 0 or round(self.dim * self.mlp_ratio) < 1:
            raise ValueError(f"{name}.mlp_ratio is {self.mlp_ratio}; the MLP would have no hidden unit")
        if self.norm_eps <= 0:
            raise ValueError(f"{name}.norm_eps is {self.norm_eps}; it must be above 0")

    @property
    def has_rope(self) -> bool:
        """Whether queries and keys are turned by their position."""
        return self.position in ("rope", "rope+learned")

    @property
    def has_table(self) -> bool:
        """Whether a learned vector is added at each position."""
        return self.position in ("learned", "rope+learned")

    @property
    def width_of_head(self) -> int:
        """d, the width of a head."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def groups(self) -> int:
        """G, the number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads


def make_norm(kind: Norm, dim: int, eps: float) -> nn.Module:
    """RMSNorm or LayerNorm over `dim` channels."""
    return nn.RMSNorm(dim, eps=eps) if kind == "rms" else nn.LayerNorm(dim, eps=eps)


def rope_table(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, d/2) in fp32 for integer positions (T,) (arXiv 2104.09864, section 3.2.2).

    The angles are computed in fp64: in fp32 a position near a million would be off by several hundredths of a radian.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i of each head against channel i + d/2: x (..., H, d), cos and sin (..., 1, d/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def shift_tokens(x: Tensor, reach: Reach, before: Tensor | None = None) -> Tensor:
    """The second half of the channels comes from the position before, or is zero at a start: (B, T, D) -> (B, T, D).

    `before` (B, 1, D/2) is what the first position takes; None: zero.
    """
    own, moved = x.chunk(2, dim=-1)
    moved = F.pad(moved, (0, 0, 1, -1)) if before is None else torch.cat((before, moved[:, :-1]), dim=1)
    if reach.patch_size is not None:
        starts = torch.arange(x.shape[1], device=x.device) % reach.patch_size == 0
        moved = moved.masked_fill(starts.unsqueeze(-1), 0.0)
    return torch.cat((own, moved), dim=-1)


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values from the same positions."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        heads, groups, width = config.num_heads, config.groups, config.width_of_head
        self.query = Linear(config.dim, heads * width, bias=config.attention_bias)
        self.key = Linear(config.dim, groups * width, bias=config.attention_bias)
        self.value = Linear(config.dim, groups * width, bias=config.attention_bias)
        self.out = Linear(heads * width, config.dim, bias=config.attention_bias)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> queries (..., H, d), keys and values (..., G, d), normalised and turned."""
        width = self.config.width_of_head
        q, k, v = (layer(x).unflatten(-1, (-1, width)) for layer in (self.query, self.key, self.value))
        if self.config.qk_norm:
            q, k = (F.rms_norm(y, (width,), eps=self.config.norm_eps) for y in (q, k))
        if rope is not None:
            cos, sin = (table.to(q.dtype) for table in rope)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q.to(v.dtype), k.to(v.dtype), v

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        reach: Reach,
        bias: Tensor | None,
        backend: Backend,
        past: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Queries (B, T, H, d) over keys and values (B, T, G, d) -> (B, T, D); the rest as `attend`."""
        return self.out(attend(q, k, v, reach, bias, backend, past).flatten(-2))


class MLP(nn.Module):
    """Up, activation (with a gate for SwiGLU), down."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        hidden = round(config.dim * config.mlp_ratio)
        self.activation = ACTIVATIONS[config.mlp]
        self.up = Linear(config.dim, hidden, bias=config.mlp_bias)
        self.gate = Linear(config.dim, hidden, bias=config.mlp_bias) if config.mlp == "swiglu" else None
        self.down = Linear(hidden, config.dim, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.gate is not None:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """One layer: attention, then MLP, each behind a norm and added to the stream."""

    def __init__(self, config: BlockConfig, reach: Reach):
        super().__init__()
        self.reach, self.token_shift = reach, config.token_shift
        self.attention_norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        if config.residual_scalars:
            self.stream_scale = nn.Parameter(torch.ones(()))
            self.input_scale = nn.Parameter(torch.zeros(()))

    def mix_input(self, x: Tensor, x0: Tensor) -> Tensor:
        """a * x + b * x0 where the config asks for residual scalars."""
        if hasattr(self, "stream_scale"):
            return self.stream_scale * x + self.input_scale * x0
        return x

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        backend: Backend,
        past: Kept | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Kept | None]:
        """(B, T, D) -> (B, T, D), and all that later positions can see where `keep` asks for it."""
        x = self.mix_input(x, x0)
        before = (None, None) if past is None or past.shifted is None else past.shifted
        h = shift_tokens(x, self.reach, before[0]) if self.token_shift else x
        first = x
        q, k, v = self.attention.project(narrow(self.attention_norm(h)), rope)
        seen = None if past is None else (past.keys, past.values)
        x = x + self.dropout(self.attention.mix(q, k, v, self.reach, bias, backend, seen))
        h = shift_tokens(x, self.reach, before[1]) if self.token_shift else x
        second = x
        x = x + self.dropout(self.mlp(narrow(self.mlp_norm(h))))
        if not keep:
            return x, None
        halves = (first.chunk(2, dim=-1)[1], second.chunk(2, dim=-1)[1]) if self.token_shift else None
        return x, Kept(k, v, halves)

    def step(self, x: Tensor, x0: Tensor, layer: int, place: Place, state: StackState) -> Tensor:
        """One position a row: (N, D) -> (N, D). The slow twin is `forward`."""
        x = self.mix_input(x, x0)
        h = state.shift(x, layer, 0, place) if self.token_shift else x
        q, k, v = self.attention.project(narrow(self.attention_norm(h)), place.rope)
        keys, values = state.write(layer, k, v, place)
        mixed = attend_cached(q.to(keys.dtype), keys, values, place.bias)
        x = x + self.attention.out(mixed.flatten(-2))
        h = state.shift(x, layer, 1, place) if self.token_shift else x
        return x + self.mlp(narrow(self.mlp_norm(h)))


class Stack(nn.Module):
    """The layers of one stage and the norm after them.

    `patch_size` says how many siblings share a parent; None for the coarsest stage. Attention does not cross that
    border unless `config.window` is set (then it is ignored) or `lookback` reaches over it.
    """

    def __init__(self, config: BlockConfig, patch_size: int | None = None, lookback: int = 0):
        super().__init__()
        self.config = config
        self.reach = (
            Reach(window=config.window)
            if config.window is not None or patch_size is None
            else Reach(patch_size=patch_size, lookback=lookback)
        )
        if config.has_table:
            rows = self.reach.patch_size if self.reach.isolated else config.max_positions
            if rows is None:
                raise ValueError(f'{type(config).__name__}.max_positions must be set for position "learned"')
            self.positions = nn.Parameter(torch.empty(rows, config.dim))
        self.blocks = cast(list[Block], nn.ModuleList(Block(config, self.reach) for _ in range(config.num_layers)))
        self.norm = make_norm(config.norm, config.dim, config.norm_eps)
        self._rope: tuple[tuple[int, int, torch.device], tuple[Tensor, Tensor]] | None = None

    @property
    def max_positions(self) -> int | None:
        """The longest sequence this stack takes; None: any."""
        return self.config.max_positions if self.config.has_table and not self.reach.isolated else None

    @property
    def field(self) -> int:
        """How many positions before its own an output, and the cache, depend on through all layers; patches whole."""
        sublayers = 2 * self.config.num_layers if self.config.token_shift else 0
        if self.reach.patch_size is not None:
            return (self.config.num_layers * (self.reach.lookback > 0) + 1) * self.reach.patch_size
        return (self.config.num_layers + 1) * (self.reach.window or 0) + sublayers

    def index(self, positions: Tensor) -> Tensor:
        """The row of the position tables: within its patch where patches do not see each other."""
        size = self.reach.patch_size
        return positions % size if size is not None and self.reach.isolated else positions

    def slopes(self, device: torch.device) -> Tensor | None:
        """ALiBi's slopes (H,), if this stack uses them."""
        return alibi_slopes(self.config.num_heads, device) if self.config.position == "alibi" else None

    def rope(self, begin: int, length: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Tables (T, 1, d/2) for these positions, if this stack uses rotary positions; the last ones are kept."""
        if not self.config.has_rope:
            return None
        key = (begin, length, device)
        if self._rope is None or self._rope[0] != key:
            with torch.inference_mode(False):  # or training could not use what generation left behind
                positions = self.index(torch.arange(begin, begin + length, device=device))
                cos, sin = rope_table(positions, self.config.width_of_head, self.config.rope_base)
            self._rope = key, (cos.unsqueeze(-2), sin.unsqueeze(-2))
        return self._rope[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), positions 0 to T - 1."""
        return self.run(x, None, False)[0]

    def extend(
        self, x: Tensor, past: Past | None, state: StackState | None = None, last: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """(B, T, D) -> (B, T, D) for the T positions after `past` (None: the first), and the past of those after them.

        Where patches see each other through `lookback` or not at all, a stretch has whole patches. With a state, it is
        filled up to position `last` (B,) of each row. Raises ValueError where attention has no limit and there is a
        past: then there is no tail to hand on, and all positions have to come at once.
        """
        if self.reach.limit is None and past is not None:
            raise ValueError("a stack whose attention has no limit cannot be extended")
        h, kept = self.run(x, past, True)
        begin = past.length if past else 0
        if state is not None and last is not None:
            for i, layer in enumerate(kept):
                state.fill(i, layer, begin, last)
        back = self.reach.back
        if back is None:
            return h, Past(begin + x.shape[1], ())
        if past is not None and past.layers and x.shape[1] < back:
            kept = [a.join(b) for a, b in zip(past.layers, kept, strict=True)]
        return h, Past(begin + x.shape[1], tuple(layer.tail(back) for layer in kept))

    def run(self, x: Tensor, past: Past | None, keep: bool) -> tuple[Tensor, list[Kept]]:
        """All layers over a stretch of positions."""
        begin, length = past.length if past else 0, x.shape[1]
        if self.config.has_table:
            # What stands past the table is padding, which no other position sees.
            positions = self.index(torch.arange(begin, begin + length, device=x.device))
            x = x + self.positions[positions.clamp(max=self.positions.shape[0] - 1)]
        layers = past.layers if past else ()
        before = layers[0].keys.shape[1] if layers else 0
        backend = choose_backend(self.reach, length, x.device, autocast_dtype(x.device) or x.dtype)
        bias = attention_bias(self.reach, length, before, self.slopes(x.device), backend, x.device)
        rope, x0, kept = self.rope(begin, length, x.device), x, []
        for i, block in enumerate(self.blocks):
            x, layer = block(x, x0, rope, bias, backend, layers[i] if layers else None, keep)
            kept.append(layer)
        return self.norm(x), kept

    def start(self, batch: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> StackState:
        """An empty state for `batch` rows of at most `max_positions` positions."""
        config = self.config
        size, limit = max_positions, self.reach.limit
        if limit is not None:
            size = limit if self.reach.patch_size is not None else min(limit, max(max_positions, 1))
        table = self.reach.patch_size if self.reach.isolated else max_positions

        def zeros(*shape: int) -> list[Tensor]:
            return [torch.zeros(batch, *shape, dtype=dtype, device=device) for _ in self.blocks]

        half = config.dim // 2
        return StackState(
            keys=zeros(config.groups, size, config.width_of_head),
            values=zeros(config.groups, size, config.width_of_head),
            shifted=list(zip(zeros(half), zeros(half), strict=True)) if config.token_shift else [],
            rope=self.rope(0, table or 0, device),
        )

    def step(self, x: Tensor, positions: Sequence[int], state: StackState, rows: Tensor | None = None) -> Tensor:
        """One position a row: x (N, D) at `positions` (N) of the batch's `rows` (N,) (None: all) -> (N, D)."""
        size = self.reach.patch_size if self.reach.isolated else None
        index = [p % size if size else p for p in positions]
        place = state.place(self.reach, positions, index, rows, self.slopes(x.device))
        if self.config.has_table:
            x = x + self.positions[torch.tensor(index, device=x.device)]
        return self.walk(x, place, state)

    def step_on_device(self, x: Tensor, positions: Tensor, state: StackState) -> Tensor:
        """As `step` of all rows, with positions (N,) on the device: shapes and Python's path never change."""
        place = state.place_of(self.reach, positions, self.slopes(x.device))
        if self.config.has_table:
            x = x + self.positions[self.index(positions)]
        return self.walk(x, place, state)

    def walk(self, x: Tensor, place: Place, state: StackState) -> Tensor:
        """All layers for one position a row, (N, D) -> (N, D)."""
        x0 = x
        for i, block in enumerate(self.blocks):
            x = block.step(x, x0, i, place, state)
        return self.norm(x)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in on this device; None where it is off, or unknown to the device (meta)."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def narrow(x: Tensor) -> Tensor:
    """Cast to autocast's type once, where several matrices read the same input; the stream itself stays in fp32."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None else x.to(dtype)
