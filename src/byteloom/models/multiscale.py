"""The multiscale model: ids (B, T) -> logits (B, T, V), `logits[:, t]` for `ids[:, t]` given all ids before it.

Stage 0 is the coarsest. One position of stage s stands for `span` bytes, the product of the patch sizes from s on.
A position's input is what the sibling before it stands for (a start vector where there is none) plus its share of its
parent's output, so nothing at or after byte t reaches the logits at t. `forward` costs about 2 FLOPs per parameter and
position of each stage; `step` costs the finest stage's weights per byte and a coarser stage's once per patch.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from byteloom.layers.linear import Linear, multiply
from byteloom.layers.patching import Expander, PatchEmbedder
from byteloom.layers.state import Past
from byteloom.layers.transformer import Stack
from byteloom.losses import Loss, cross_entropy, summed_loss
from byteloom.models import decoding
from byteloom.models.config import ModelConfig
from byteloom.models.decoding import State


class Multiscale(nn.Module):
    """A multiscale decoder over bytes (arXiv 2305.07185, section 2), with any number of stages."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedders = cast(list[PatchEmbedder], nn.ModuleList())
        self.stacks = cast(list[Stack], nn.ModuleList())
        self.expanders = cast(list[Expander], nn.ModuleList())
        self.starts = nn.ParameterList()
        for i, stage in enumerate(config.stages):
            siblings = config.siblings(i)
            if siblings and config.late_parent and stage.patch_size is None:
                siblings += 1  # one more, which predicts the first byte of the next patch
            self.embedders.append(
                PatchEmbedder(
                    stage,
                    vocab_size=config.vocab_size,
                    span=config.span(i),
                    embed_dim=config.embed_dim(i),
                    dim=stage.dim,
                    projection=config.projection(i),
                )
            )
            self.stacks.append(Stack(stage, siblings or None, stage.cross_patch))
            self.starts.append(nn.Parameter(torch.empty(stage.dim)))
            if stage.patch_size is not None:
                self.expanders.append(Expander(stage, dim=stage.dim, child_dim=config.stages[i + 1].dim))
        self.head = None if config.tied_head else Linear(config.stages[-1].dim, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None
        self.spans = tuple(config.span(i) for i in range(len(config.stages)))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew, from torch's global generator; safe on the meta device."""
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "stream_scale" or (parameter.ndim == 1 and leaf == "weight"):
                nn.init.ones_(parameter)
            elif leaf in ("bias", "input_scale", "head_bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
        for stack in self.stacks:
            if stack.config.zero_init:
                for block in stack.blocks:
                    nn.init.zeros_(block.attention.out.weight)
                    nn.init.zeros_(block.mlp.down.weight)

    # -- all positions at once ---------------------------------------------------------------------------------------

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of ids (B, T): those at t are the distribution of byte t given the bytes before it.

        T = 0 gives (B, 1, V), the distribution of the first byte. Raises ValueError where learned positions end.
        """
        length = max(ids.shape[1], 1)
        self.check_length(length)
        return self.logits(self.hidden(ids)[:, :length])

    def loss(
        self, ids: Tensor, *, mark: Tensor | None = None, counted: Tensor | None = None, chunk: int | None = None
    ) -> Loss:
        """Summed nats of ids (B, T) and what they are a sum over.

        `mark` (B,) is the mark in force before the first position (default: none), `counted` (B, T) leaves positions
        out of the sums where it is False; PAD is always left out. `chunk` as in `nats`.
        """
        if ids.shape[1] == 0:
            return summed_loss(self.starts[0].new_zeros(ids.shape), ids)
        return summed_loss(self.nats(ids, chunk), ids, mark, counted)

    def nats(self, ids: Tensor, chunk: int | None = None) -> Tensor:
        """Nats (B, T) of each of ids (B, T).

        With `chunk`, all but the coarsest stage, the head and the loss take about so many bytes of the batch at a time
        and are run again in the backward pass, save for the last chunk: the memory of their activations does not grow
        with T. The numbers are the same.
        """
        self.check_length(ids.shape[1])
        length = ids.shape[1]
        padded = self.pad(ids)
        h = self.stacks[0](self.inputs(0, padded, None, 0, padded.shape[1] // self.spans[0]))
        if chunk is None or self.config.late_parent or chunk >= padded.numel():
            return self.score(self.finer(padded, h)[:, :length], ids)
        each = math.ceil(h.shape[1] / math.ceil(padded.numel() / chunk))
        pasts: list[Past | None] = [None] * (len(self.stacks) - 1)
        nats = []
        for begin in range(0, h.shape[1], each):
            part = h[:, begin : begin + each]
            if torch.is_grad_enabled() and begin + each < h.shape[1]:
                found, pasts = checkpoint(self.nats_of, padded, part, begin, pasts, use_reentrant=False)
            else:
                found, pasts = self.nats_of(padded, part, begin, pasts)
            nats.append(found)
        return torch.cat(nats, dim=1)[:, :length]

    def nats_of(
        self, ids: Tensor, h: Tensor, begin: int, pasts: "list[Past | None]"
    ) -> "tuple[Tensor, list[Past | None]]":
        """Nats of the bytes under the coarsest stage's outputs h (B, K, D), whose first position is `begin`."""
        pasts = list(pasts)
        span = self.spans[0]
        h = self.finer(ids, h, begin, pasts)
        return self.score(h, ids[:, begin * span : begin * span + h.shape[1]]), pasts

    def score(self, h: Tensor, ids: Tensor) -> Tensor:
        """The finest stage's output (B, T, D) and what comes there, ids (B, T) -> nats (B, T)."""
        return cross_entropy(self.logits(h), ids)

    def check_length(self, length: int) -> None:
        """Raise ValueError where `length` bytes are more than learned positions allow."""
        limit = self.config.max_length
        if limit is not None and length > limit:
            raise ValueError(f"{length} bytes are more than the {limit} that this model's learned positions allow")

    def pad(self, ids: Tensor) -> Tensor:
        """ids (B, T) with the last patch filled, and at least one; causal: what the padding is cannot matter."""
        length = max(ids.shape[1], 1)
        return F.pad(ids, (0, -length % self.spans[0] + length - ids.shape[1]))

    def hidden(self, ids: Tensor) -> Tensor:
        """The finest stage's output (B, T', D), T' >= T, with the last patch padded to full."""
        ids = self.pad(ids)
        return self.finer(ids, self.stacks[0](self.inputs(0, ids, None, 0, ids.shape[1] // self.spans[0])))

    def finer(self, ids: Tensor, h: Tensor, begin: int = 0, pasts: "list[Past | None] | None" = None) -> Tensor:
        """All stages but the coarsest: from its outputs h (B, K, D), the first at `begin`, to the finest's (B, T', D).

        With `pasts`, one for each of these stages, h goes on where they end, and they are replaced.
        """
        for i in range(1, len(self.stacks)):
            h = self.expanders[i - 1](h)
            first = begin * self.spans[0] // self.spans[i]
            x = self.inputs(i, ids, h, first, first + h.shape[1])
            if pasts is None:
                h = self.stacks[i](x)
            else:
                h, pasts[i - 1] = self.stacks[i].extend(x, pasts[i - 1])
        return self.merge_late(h) if self.config.late_parent else h

    def content(self, stage: int, ids: Tensor, begin: int, end: int) -> Tensor:
        """What positions begin to end - 1 of a stage stand for, (B, end - begin, D), from all of ids (B, T)."""
        embedder, span = self.embedders[stage], self.spans[stage]
        if begin == 0:
            return embedder(ids[:, : end * span])
        missing = max(0, embedder.halo - begin * span)
        ids = F.pad(ids[:, begin * span - embedder.halo + missing : end * span], (missing, 0))
        real = None if not missing else (torch.arange(ids.shape[1], device=ids.device) >= missing).expand_as(ids)
        return embedder(ids, embedder.halo, real)

    def inputs(self, stage: int, ids: Tensor, parent: Tensor | None, begin: int, end: int) -> Tensor:
        """The input of positions begin to end - 1 of a stage: the sibling before, and a share of the parent (B, K, D).

        Where the stage has patches, begin and end are their borders.
        """
        start, reach = self.starts[stage], self.stacks[stage].reach
        if reach.patch_size is None and begin:
            x = self.content(stage, ids, begin - 1, end - 1)
        elif reach.patch_size is None:
            x = self.content(stage, ids, 0, end)[:, :-1]
            x = torch.cat((start.to(x.dtype).expand(x.shape[0], 1, -1), x), dim=1)
        else:
            content = self.content(stage, ids, begin, end)
            if parent is not None and self.config.late_parent:
                content = content + parent
            content = rearrange(content, "b (k p) d -> b k p d", p=self.config.siblings(stage))
            first = start.to(content.dtype).expand(*content.shape[:2], 1, -1)
            x = torch.cat((first, content), dim=2)[:, :, : reach.patch_size].flatten(1, 2)
        late = self.config.late_parent and reach.patch_size is not None
        x = x.to(start.dtype)  # under autocast too the stream between layers is as wide as the weights
        return x if parent is None or late else x + parent

    def merge_late(self, h: Tensor) -> Tensor:
        """Of P + 1 outputs a patch (B, K * (P + 1), D), those that predict bytes 0, 1, ... (B, K * P + 1, D)."""
        h = rearrange(h, "b (k q) d -> b k q d", q=self.stacks[-1].reach.patch_size)
        return torch.cat((h[:, 0, :1], h[:, :, 1:].flatten(1, 2)), dim=1)

    def logits(self, h: Tensor) -> Tensor:
        """The finest stage's output (..., D) -> logits (..., V)."""
        logits = multiply(h, self.embedders[-1].table.weight) if self.head is None else self.head(h)
        if self.head_bias is not None:
            logits = logits + self.head_bias
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    # -- one byte at a time: models/decoding.py ----------------------------------------------------------------------

    def start(self, batch: int, max_length: int | None = None, compiled: bool = False) -> State:
        """A state for `batch` empty rows that take up to `max_length` bytes (default: the config's context).

        Its `logits` (B, V) are those of the first byte. `compiled` runs a stage that all rows enter together as one
        function compiled by torch.compile: some seconds a stage at first, then two to four times as fast on a CPU.
        Raises ValueError where learned positions end before.
        """
        return decoding.start(self, batch, max_length, compiled)

    def prefill(
        self, ids: Tensor, lengths: Tensor | Sequence[int], state: State, chunk: int = decoding.PREFILL_CHUNK
    ) -> Tensor:
        """Take the prompts ids (B, T), of which row b has lengths[b] bytes, at once; return logits (B, V) as `step`.

        `state` must be fresh from `start`. What stands right of a row's prompt is ignored. Finer stages run only over
        what can still be seen: their last patch, or the stretch that their windows reach through all layers, about
        `chunk` bytes of the batch at a time; so a long prompt costs little more than stage 0.
        Raises ValueError where a prompt does not fit or the state is not fresh.
        """
        return decoding.prefill(self, ids, lengths, state, chunk)

    def step(self, ids: Tensor, state: State, rows: Sequence[int] | None = None) -> Tensor:
        """Append ids (N,), one byte to each of `rows` (None: to all), and return the logits (B, V) of the next bytes.

        Changes `state`; rows that are not named stand where they stood. Raises ValueError where a row is full.
        """
        return decoding.step(self, ids, state, rows)

    def room(self, state: State) -> int:
        """The most bytes a row can have and still be asked for the next: a learned table has no row after its last."""
        limit = self.config.max_length
        return state.ids.shape[1] if limit is None else min(state.ids.shape[1], limit - 1)

    def is_late(self, stage: int) -> bool:
        """Whether this stage has one position more in each patch."""
        return self.config.late_parent and stage == len(self.stacks) - 1
