"""Other libraries' models, ready to train, to score and to write, for the programs beside this file.

Their usual shape is that of all tables in docs/performance.md: 512 x 6 layers and 256 x 4 layers, patches of 8,
context 2048.
Peers: `megabyte-pytorch` and `mblm` (pip), a byte-level Llama of the same size from `transformers` (pip), and
shjwudp/megabyte, which is no package: name a checkout with --shjwudp FOLDER to have it beside the others.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from byteloom import ModelConfig, Multiscale, StageConfig

PATCH, CONTEXT, BATCH = 8, 2048, 4
OURS = ModelConfig(
    stages=(
        StageConfig(dim=512, num_layers=6, num_heads=8, patch_size=PATCH),
        StageConfig(dim=256, num_layers=4, num_heads=4),
    ),
    context=CONTEXT,
)
PLAIN = {
    "num_kv_heads": 1, "norm": "layer", "norm_eps": 1e-5, "qk_norm": False, "mlp": "gelu", "mlp_bias": True,
    "zero_init": False,
}  # fmt: skip
OURS_LIKE_SHJWUDP = ModelConfig(
    stages=(
        StageConfig(
            dim=512, num_layers=6, num_heads=8, patch_size=PATCH, position="learned", max_positions=CONTEXT // PATCH,
            embed_dim=64, projection=False, expand="slice", expand_bias=True, **PLAIN,
        ),
        StageConfig(dim=256, num_layers=4, num_heads=4, position="none", **PLAIN),
    ),
    context=CONTEXT, tied_head=False, head_bias=True,
)  # fmt: skip
"""Multi-query attention, LayerNorm, GELU and biases, as shjwudp/megabyte has them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a peer is; stages coarsest first."""

    dims: tuple[int, ...]
    """Widths."""
    num_layers: tuple[int, ...]
    """Layers."""
    patch_size: int = PATCH
    """Bytes in a patch, where there are patches."""
    context: int = CONTEXT
    """Most bytes at once."""
    rotary: bool = False
    """Rotary positions in megabyte-pytorch, which by default tells no positions apart; the others always have them."""


TWO_STAGES = Shape(dims=(512, 256), num_layers=(6, 4))
ONE_STAGE = Shape(dims=(512,), num_layers=(8,))


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A model and what it is asked for."""

    name: str
    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    """ids (B, T) -> mean nats."""
    logits: Callable[[Tensor], Tensor]
    """ids (B, T) -> logits (B, T - 1, 256 or more) of all ids but the first, each given those before it."""
    next_logits: Callable[[Tensor], Tensor] | None
    """ids (1, T) -> logits of what comes next: all that those without a cache offer; None: `generate` of its own."""

    @property
    def parameters(self) -> int:
        """How many numbers it trains."""
        return sum(p.numel() for p in self.model.parameters())


def megabyte_pytorch(shape: Shape = TWO_STAGES) -> Peer:
    """megabyte-pytorch 0.3.6. Its id 0 is padding, so bytes are one higher."""
    from MEGABYTE_pytorch import MEGABYTE

    model = MEGABYTE(
        num_tokens=257, dim=shape.dims, depth=shape.num_layers, dim_head=64, heads=max(1, shape.dims[0] // 64),
        max_seq_len=(shape.context // shape.patch_size, shape.patch_size), rel_pos=shape.rotary,
        flash_attn=True,
    )  # fmt: skip
    return Peer(
        name="megabyte-pytorch",
        model=model,
        loss=lambda ids: model(ids + 1, return_loss=True),
        logits=lambda ids: model(ids + 1)[:, :-1, 1:],
        next_logits=lambda ids: model(ids + 1)[:, -1, 1:],
    )


def mblm(shape: Shape = TWO_STAGES) -> Peer:
    """mblm 0.4.2."""
    import mblm as library
    from mblm.model.config import MBLMModelConfig, MBLMReturnType
    from mblm.model.transformer import TransformerBlock

    block = TransformerBlock(
        attn_head_dims=64, attn_num_heads=max(1, shape.dims[0] // 64), attn_use_rot_embs=True, ff_multiplier=4,
        use_flash_attn=True,
    )  # fmt: skip
    model = library.MBLM(
        MBLMModelConfig(
            num_tokens=257, pad_token_id=256, hidden_dims=shape.dims, num_layers=shape.num_layers,
            seq_lens=[shape.context // shape.patch_size, shape.patch_size], train_checkpoint_chunks=None, block=block,
        )
    )  # fmt: skip
    return Peer(
        name="mblm",
        model=model,
        loss=lambda ids: model(ids, return_type=MBLMReturnType.LOSS),
        logits=lambda ids: model(ids, return_type=MBLMReturnType.LOGITS)[:, :-1],
        next_logits=lambda ids: model(ids, return_type=MBLMReturnType.LOGITS)[:, -1],
    )


def shjwudp(checkout: Path) -> Peer:
    """shjwudp/megabyte from a checkout."""
    sys.path.insert(0, str(checkout))
    from model.megabyte import Megabyte, MegabyteConfig  # type: ignore[import-not-found]

    model = Megabyte(
        MegabyteConfig(
            V=320, P=PATCH, D_G=512 // PATCH, D_L=256, T_MAX=CONTEXT, g_nheads=8, g_nlayers=6, l_nheads=4, l_nlayers=4,
            initializer_range=0.02, pad_id=257, eos_id=258,
        )
    )  # fmt: skip

    def all_logits(ids: Tensor) -> Tensor:
        # It wants whole patches; what fills the last one cannot be seen from the places asked for.
        padded = F.pad(ids, (0, PATCH - ids.shape[1] % PATCH))
        return model(padded).lm_logits[:, : ids.shape[1] + 1]

    return Peer(
        name="shjwudp/megabyte",
        model=model,
        loss=lambda ids: model(ids, return_loss=True).loss,
        logits=lambda ids: all_logits(ids)[:, 1:-1],
        next_logits=lambda ids: all_logits(ids)[:, -1],
    )


def llama(shape: Shape = ONE_STAGE) -> Peer:
    """A byte-level Llama from transformers, of 25.6M parameters in its usual shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    (dim,), (num_layers,) = shape.dims, shape.num_layers
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=dim, num_hidden_layers=num_layers,
            num_attention_heads=dim // (64 if dim % 64 == 0 else 32), intermediate_size=-(-dim * 8 // 96) * 32,
            max_position_embeddings=shape.context,
        )
    )  # fmt: skip
    return Peer(
        name="HF Llama",
        model=model,
        loss=lambda ids: model(ids, labels=ids, use_cache=False).loss,
        logits=lambda ids: model(ids, use_cache=False).logits[:, :-1],
        next_logits=None,
    )


def ours(config: ModelConfig = OURS, name: str = "byteloom") -> Peer:
    """byteloom, not compiled."""
    model = Multiscale(config)
    return Peer(
        name=name,
        model=model,
        loss=lambda ids: model.loss(ids).nats / ids.numel(),
        logits=lambda ids: model(ids)[:, 1:],
        next_logits=None,
    )


def build(shjwudp_checkout: Path | None = None) -> list[Peer]:
    """All peers that are there."""
    found = []
    for make in (megabyte_pytorch, mblm, llama):
        with contextlib.suppress(ImportError), quiet():
            found.append(make())
    if shjwudp_checkout is not None:
        found.append(shjwudp(shjwudp_checkout))
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed: some peers greet."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
