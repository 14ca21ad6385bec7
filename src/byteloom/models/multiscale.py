"""The multiscale model: ids (B, T) -> logits (B, T, V), `logits[:, t]` for `ids[:, t]` given all ids before it.

Stage 0 is the coarsest. One position of stage s stands for `span` bytes, the product of the patch sizes from s on.
A position's input is what the sibling before it stands for (a start vector where there is none) plus its share of its
parent's output, so nothing at or after byte t reaches the logits at t. `forward` costs about 2 FLOPs per parameter and
position of each stage; `step` costs the finest stage's weights per byte and a coarser stage's once per patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from byteloom.layers.patching import Expander, PatchEmbedder
from byteloom.layers.transformer import Stack, StackState, autocast_dtype
from byteloom.losses import Loss, cross_entropy, summed_loss
from byteloom.models.config import ModelConfig


@dataclass
class State:
    """Where a batch of sequences stands, and what each stage remembers of it."""

    ids: Tensor
    """(B, max_length), the bytes so far."""
    lengths: Tensor
    """(B,) on the host: bytes so far in each row, so that no step has to ask the device."""
    stacks: list[StackState]
    """One for each stage."""
    parents: list[Tensor]
    """For each stage but the coarsest, (B, P, D): what the current parent gives to each of its children."""
    logits: Tensor
    """(B, V), of each row's next byte."""

    def select(self, rows: Tensor | Sequence[int]) -> "State":
        """The state of these rows alone, copied: (N,) indices, which may repeat."""
        rows = torch.as_tensor(rows, device=self.ids.device)
        return State(
            ids=self.ids[rows],
            lengths=self.lengths[rows.cpu()],
            stacks=[stack.select(rows) for stack in self.stacks],
            parents=[parent[rows] for parent in self.parents],
            logits=self.logits[rows],
        )


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
        self.head = None if config.tied_head else nn.Linear(config.stages[-1].dim, config.vocab_size, bias=False)
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

    def loss(self, ids: Tensor, *, mark: Tensor | None = None, counted: Tensor | None = None) -> Loss:
        """Summed nats of ids (B, T) and what they are a sum over.

        `mark` (B,) is the mark in force before the first position (default: none), `counted` (B, T) leaves positions
        out of the sums where it is False; PAD is always left out.
        """
        if ids.shape[1] == 0:
            return summed_loss(self.starts[0].new_zeros(ids.shape), ids)
        return summed_loss(cross_entropy(self(ids), ids), ids, mark, counted)

    def check_length(self, length: int) -> None:
        """Raise ValueError where `length` bytes are more than learned positions allow."""
        limit = self.config.max_length
        if limit is not None and length > limit:
            raise ValueError(f"{length} bytes are more than the {limit} that this model's learned positions allow")

    def hidden(self, ids: Tensor) -> Tensor:
        """The finest stage's output (B, T', D), T' >= T, with the last patch padded to full."""
        length = max(ids.shape[1], 1)
        ids = F.pad(
            ids, (0, -length % self.spans[0] + length - ids.shape[1])
        )  # causal: what the padding is cannot matter
        parent, h = None, ids
        for i, stack in enumerate(self.stacks):
            h = stack(self.inputs(i, ids, parent))
            parent = self.expanders[i](h) if i < len(self.expanders) else None
        return self.merge_late(h) if self.config.late_parent else h

    def inputs(self, stage: int, ids: Tensor, parent: Tensor | None) -> Tensor:
        """The input (B, K, D) of a stage for ids (B, K * span): the sibling before, and a share of the parent."""
        content = self.embedders[stage](ids)
        start = self.starts[stage].to(content.dtype)
        if parent is not None and self.config.late_parent:
            content = content + parent
        reach = self.stacks[stage].reach
        if reach.patch_size is None:
            x = torch.cat((start.expand(content.shape[0], 1, -1), content[:, :-1]), dim=1)
        else:
            content = rearrange(content, "b (k p) d -> b k p d", p=self.config.siblings(stage))
            first = start.expand(*content.shape[:2], 1, -1)
            x = torch.cat((first, content), dim=2)[:, :, : reach.patch_size].flatten(1, 2)
        return x if parent is None or self.config.late_parent else x + parent

    def merge_late(self, h: Tensor) -> Tensor:
        """Of P + 1 outputs a patch (B, K * (P + 1), D), those that predict bytes 0, 1, ... (B, K * P + 1, D)."""
        h = rearrange(h, "b (k q) d -> b k q d", q=self.stacks[-1].reach.patch_size)
        return torch.cat((h[:, 0, :1], h[:, :, 1:].flatten(1, 2)), dim=1)

    def logits(self, h: Tensor) -> Tensor:
        """The finest stage's output (..., D) -> logits (..., V)."""
        weight = self.embedders[-1].table.weight if self.head is None else self.head.weight
        logits = F.linear(h, weight, self.head_bias)
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    # -- one byte at a time ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, batch: int, max_length: int | None = None) -> State:
        """A state for `batch` empty rows that take up to `max_length` bytes (default: the config's context).

        Its `logits` (B, V) are those of the first byte. Raises ValueError where learned positions end before.
        """
        max_length = self.config.context if max_length is None else max_length
        self.check_length(max_length)
        weight = self.starts[0]
        device, dtype = weight.device, autocast_dtype(weight.device) or weight.dtype
        stacks, parents = [], []
        for i, stack in enumerate(self.stacks):
            positions = max_length // self.spans[i] + 1
            if i:
                siblings = self.config.siblings(i)
                parents.append(torch.zeros(batch, siblings, self.config.stages[i].dim, dtype=dtype, device=device))
            stacks.append(stack.start(batch, positions, dtype, device))
        state = State(
            ids=torch.zeros(batch, max_length, dtype=torch.long, device=device),
            lengths=torch.zeros(batch, dtype=torch.long),
            stacks=stacks,
            parents=parents,
            logits=torch.empty(batch, self.config.vocab_size, device=device),
        )
        self.advance(state)
        return state

    def room(self, state: State) -> int:
        """The most bytes a row can have and still be asked for the next: a learned table has no row after its last."""
        limit = self.config.max_length
        return state.ids.shape[1] if limit is None else min(state.ids.shape[1], limit - 1)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State) -> Tensor:
        """Append ids (B,), one byte a row, and return the logits (B, V) of the byte after it. Changes `state`.

        Raises ValueError where a row is full.
        """
        if int(state.lengths.max()) >= self.room(state):
            raise ValueError(f"the state is full: it has room for {self.room(state)} bytes a row")
        rows = torch.arange(ids.shape[0], device=ids.device)
        state.ids[rows, state.lengths.to(ids.device)] = ids
        state.lengths = state.lengths + 1
        if self.config.late_parent:
            self.finish_late(state)
        self.advance(state)
        return state.logits

    def advance(self, state: State) -> None:
        """Run each stage in the rows where its next position begins, coarsest first."""
        for i, span in enumerate(self.spans):
            due = (state.lengths % span == 0).nonzero().flatten()
            if due.numel():
                positions = state.lengths[due] // span
                self.run(i, due, positions, state)

    def run(self, stage: int, rows: Tensor, positions: Tensor, state: State) -> None:
        """Run `positions` (N,) of a stage in these rows (N,), both on the host."""
        device = state.ids.device
        stack, longest = self.stacks[stage], int(positions.max())
        siblings = self.config.siblings(stage)
        first = positions == 0 if stack.reach.patch_size is None else positions % siblings == 0
        everywhere = bool(first.all())
        # With late parents a patch's first byte was predicted by the patch before, save in the first patch.
        kept = ((positions == 0) | ~first).nonzero().flatten().to(device)
        rows, positions, first = (x.to(device) for x in (rows, positions, first))
        x = self.starts[stage].expand(rows.shape[0], -1)
        late = self.config.late_parent
        if not everywhere:
            content = self.last_content(stage, rows, positions, state)
            if siblings and late:
                content = content + state.parents[stage - 1][rows, (positions - 1) % siblings]
            x = torch.where(first.unsqueeze(-1), x.to(content.dtype), content)
        if siblings and not late:
            x = x + state.parents[stage - 1][rows, positions % siblings]
        if self.is_late(stage):
            positions = positions + positions // siblings  # a patch has one position more
            longest = longest + longest // siblings
        h = stack.step(x, positions, state.stacks[stage], rows, longest)
        if stage < len(self.expanders):
            share = self.expanders[stage](h.unsqueeze(1))
            state.parents[stage][rows] = share.to(state.parents[stage].dtype)
        elif late:
            state.logits[rows[kept]] = self.logits(h[kept]).to(state.logits.dtype)
        else:
            state.logits[rows] = self.logits(h).to(state.logits.dtype)

    def last_content(self, stage: int, rows: Tensor, positions: Tensor, state: State) -> Tensor:
        """What the position before each of `positions` stands for, (N, D)."""
        span, embedder = self.spans[stage], self.embedders[stage]
        back = torch.arange(-embedder.halo - span, 0, device=rows.device)
        places = positions[:, None] * span + back
        ids = state.ids[rows[:, None], places.clamp(min=0)]
        return embedder(ids, embedder.halo, places >= 0).squeeze(1)

    def finish_late(self, state: State) -> None:
        """Where a patch is full, its extra position predicts the first byte of the next one."""
        stage, siblings = len(self.stacks) - 1, self.config.siblings(len(self.stacks) - 1)
        rows = (state.lengths % siblings == 0).nonzero().flatten()
        if rows.numel() == 0:
            return
        lengths = state.lengths[rows]
        device_rows, positions = rows.to(state.ids.device), lengths.to(state.ids.device)
        content = self.last_content(stage, device_rows, positions, state)
        x = content + state.parents[stage - 1][device_rows, siblings - 1]
        index = positions + positions // siblings - 1
        longest = int(lengths.max()) * (siblings + 1) // siblings - 1
        h = self.stacks[stage].step(x, index, state.stacks[stage], device_rows, longest)
        state.logits[device_rows] = self.logits(h).to(state.logits.dtype)

    @torch.no_grad()
    def prefill(self, ids: Tensor, lengths: Tensor | Sequence[int], state: State) -> Tensor:
        """Take the prompts ids (B, T), of which row b has lengths[b] bytes, at once; return logits (B, V) as `step`.

        `state` must be fresh from `start`. What stands right of a row's prompt is ignored. Where patches do not see
        each other only the unfinished patch of a finer stage is run, so a long prompt costs little more than stage 0.
        Raises ValueError where a prompt does not fit or the state is not fresh.
        """
        lengths = torch.as_tensor(lengths, device="cpu")
        if bool((state.lengths != 0).any()):
            raise ValueError("prefill needs a state fresh from start()")
        if lengths.shape != (ids.shape[0],) or ids.shape[0] != state.ids.shape[0]:
            raise ValueError(f"{state.ids.shape[0]} rows need as many prompts and lengths, not {tuple(ids.shape)}")
        if bool((lengths < 0).any()) or bool((lengths > min(ids.shape[1], self.room(state))).any()):
            raise ValueError(
                f"a prompt is longer than its row of ids or than the {self.room(state)} bytes of the state"
            )
        longest = int(lengths.max()) if lengths.numel() else 0
        if longest == 0:
            return state.logits
        ids = ids[:, :longest]
        state.ids[:, :longest] = ids
        state.lengths = lengths.clone()
        device = state.ids.device
        rows, ends = torch.arange(ids.shape[0], device=device), lengths.to(device)
        ids = F.pad(ids, (0, (longest // self.spans[0] + 1) * self.spans[0] - longest))
        # From this stage on, patches are isolated in all finer stages too, so that the last patch is enough.
        connected = max(i for i, stack in enumerate(self.stacks) if i == 0 or not stack.reach.isolated)
        connected = len(self.stacks) - 1 if self.config.late_parent else connected
        parent, h = None, ids
        for i, stack in enumerate(self.stacks):
            place = ends // self.spans[i]
            if i <= connected:
                x = self.inputs(i, ids, parent)
                last = place + place // self.config.siblings(i) if self.is_late(i) else place
                h = stack(x, state.stacks[i], last)
                current = h[rows, last]
            else:
                siblings = self.config.siblings(i)
                x = self.patch_inputs(i, ids, place // siblings) + state.parents[i - 1]
                current = stack(x, state.stacks[i], place % siblings)[rows, place % siblings]
            if i < len(self.expanders):
                share = self.expanders[i](current.unsqueeze(1))
                state.parents[i][:] = share.to(state.parents[i].dtype)
                parent = self.expanders[i](h) if i < connected else None
            elif self.config.late_parent:
                state.logits[:] = self.logits(self.merge_late(h)[rows, ends]).to(state.logits.dtype)
            else:
                state.logits[:] = self.logits(current).to(state.logits.dtype)
        return state.logits

    def is_late(self, stage: int) -> bool:
        """Whether this stage has one position more in each patch."""
        return self.config.late_parent and stage == len(self.stacks) - 1

    def patch_inputs(self, stage: int, ids: Tensor, patches: Tensor) -> Tensor:
        """The inputs (B, P, D) of one patch (B,) a row of a stage with isolated patches, without the parent's share."""
        embedder, siblings = self.embedders[stage], self.config.siblings(stage)
        size = self.spans[stage] * siblings
        places = patches[:, None] * size + torch.arange(-embedder.halo, size, device=ids.device)
        content = embedder(ids.gather(1, places.clamp(min=0)), embedder.halo, places >= 0)
        return torch.cat((self.starts[stage].to(content.dtype).expand(ids.shape[0], 1, -1), content[:, :-1]), dim=1)
