"""The multiscale model: ids (B, T) -> logits (B, T, V), `logits[:, t]` for `ids[:, t]` given all ids before it.

Stage 0 is the coarsest. One position of stage s stands for `span` bytes, the product of the patch sizes from s on.
A position's input is what the sibling before it stands for (a start vector where there is none) plus its share of its
parent's output, so nothing at or after byte t reaches the logits at t. `forward` costs about 2 FLOPs per parameter and
position of each stage; `step` costs the finest stage's weights per byte and a coarser stage's once per patch.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from byteloom.layers.continuous import UniversalPatchEmbedder
from byteloom.layers.linear import Linear, multiply
from byteloom.layers.matches import Matches, matches
from byteloom.layers.modalities import Embedder, ModalEmbedder, Tagged, through_kinds
from byteloom.layers.patching import Expander, PatchEmbedder, as_ids, draw_waves
from byteloom.layers.prediction import distances, of_bytes
from byteloom.layers.state import Past
from byteloom.layers.transformer import Stack
from byteloom.losses import VOCABULARY, Loss, cross_entropy, marks_in_force, places_in_segment, summed_loss
from byteloom.models import decoding
from byteloom.models.config import ModelConfig
from byteloom.models.decoding import State
from byteloom.models.embedders import make_embedder
from byteloom.models.guesses import predictions

Inputs = Sequence[tuple[str | int | Tensor, Tensor]]
"""Continuous inputs: the modality of each, as `UniversalPatchEmbedder` takes it, and its features (B, ...)."""


class Multiscale(nn.Module):
    """A multiscale decoder over bytes (arXiv 2305.07185, section 2), with any number of stages."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedders = cast(list[Embedder], nn.ModuleList())
        self.stacks = cast(list[Stack], nn.ModuleList())
        self.expanders = cast(list[Expander], nn.ModuleList())
        self.starts = nn.ParameterList()
        for i, stage in enumerate(config.stages):
            siblings = config.siblings(i)
            if siblings and config.late_parent and stage.patch_size is None:
                siblings += 1  # one more, which predicts the first byte of the next patch
            self.embedders.append(make_embedder(config, i))
            self.stacks.append(Stack(stage, siblings or None, stage.cross_patch))
            self.starts.append(nn.Parameter(torch.empty(stage.dim)))
            if stage.patch_size is not None:
                self.expanders.append(Expander(stage, dim=stage.dim, child_dim=config.stages[i + 1].dim))
        self.head, self.heads = None, None
        if not config.tied_head and config.heads == "shared":
            self.head = Linear(config.stages[-1].dim, config.vocab_size, bias=False)
        elif not config.tied_head:
            sizes = (kind.rows for kind in config.kinds)
            self.heads = nn.ModuleList(Linear(config.stages[-1].dim, size, bias=False) for size in sizes)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None
        self.conditions = UniversalPatchEmbedder(config.inputs, config.stages[0].dim) if config.inputs else None
        self.matches = Matches(config.matches, config.stages[-1].dim) if config.matches else None
        self.guesses = nn.Embedding(VOCABULARY.num_bytes, config.stages[-1].dim) if config.told else None
        self.spans = tuple(config.span(i) for i in range(len(config.stages)))
        self._kind_of_mark: Tensor | None = None
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
        for module in self.modules():
            if isinstance(module, PatchEmbedder):
                module.init_bytes(std, self.config.init_waves)
            elif isinstance(module, Matches):
                module.init_trust()
        if self.guesses is not None and self.config.init_waves is not None:
            draw_waves(self.guesses.weight, std, self.config.init_waves)
        for stack in self.stacks:
            if stack.config.zero_init:
                for block in stack.blocks:
                    nn.init.zeros_(block.attention.out.weight)
                    nn.init.zeros_(block.mlp.down.weight)

    # -- all positions at once ---------------------------------------------------------------------------------------

    def forward(
        self, ids: Tensor, *, mark: Tensor | None = None, since: Tensor | None = None, inputs: Inputs = ()
    ) -> Tensor:
        """Logits (B, T, V) of ids (B, T): those at t are the distribution of byte t given the bytes before it.

        T = 0 gives (B, 1, V), the distribution of the first byte. Where ids begin inside a document, `mark` (B,) is the
        mark in force there and `since` (B,) how much of its segment's data came before. `inputs` are continuous inputs
        that the coarsest stage reads first. Raises ValueError where learned positions end, or for what are no ids.
        """
        ids, prefix = as_ids(ids), self.prefix(inputs)
        length = max(ids.shape[1], 1)
        self.check_length(length, prefix)
        tagged = self.tag(self.pad(ids), mark, since)
        h = self.finer(tagged, self.coarsest(tagged, prefix))[:, :length]
        seen = tagged.map(lambda x: x[:, :length])
        return self.logits(h, seen.kinds, seen.predictions)

    def loss(
        self,
        ids: Tensor,
        *,
        mark: Tensor | None = None,
        since: Tensor | None = None,
        counted: Tensor | None = None,
        chunk: int | None = None,
        inputs: Inputs = (),
    ) -> Loss:
        """Summed nats of ids (B, T) and what they are a sum over.

        `counted` (B, T) leaves positions out of the sums where it is False; PAD, and the streams of a fused model that
        are context only, are always left out. The rest is as in `forward` and `nats`.
        """
        ids = as_ids(ids)
        if ids.shape[1] == 0:
            return summed_loss(self.starts[0].new_zeros(ids.shape), ids)
        if self.training and self.config.embedder.stream_dropout:
            ids = self.drop_streams(ids)
        nats = self.nats(ids, chunk, mark=mark, since=since, inputs=inputs)
        predicted, rows = self.counted_places(ids.shape[1], ids.device), None
        if predicted is not None:
            counted = predicted.expand(ids.shape) if counted is None else predicted & counted.to(torch.bool)
            rows = (self.streams(ids.shape[1], ids.device) + 1).expand(ids.shape)
        return summed_loss(nats, ids, mark, counted, rows)

    def nats(
        self,
        ids: Tensor,
        chunk: int | None = None,
        *,
        mark: Tensor | None = None,
        since: Tensor | None = None,
        inputs: Inputs = (),
    ) -> Tensor:
        """Nats (B, T) of each of ids (B, T); `mark`, `since` and `inputs` as in `forward`.

        With `chunk`, all but the coarsest stage, the head and the loss take about so many bytes of the batch at a time
        and are run again in the backward pass, save for the last chunk: the memory of their activations does not grow
        with T. The numbers are the same.
        """
        ids, prefix = as_ids(ids), self.prefix(inputs)
        length = ids.shape[1]
        self.check_length(length, prefix)
        tagged = self.tag(self.pad(ids), mark, since)
        padded = tagged.ids
        h = self.coarsest(tagged, prefix)
        if chunk is None or self.config.late_parent or chunk >= padded.numel():
            seen = tagged.map(lambda x: x[:, :length])
            return self.score(self.finer(tagged, h)[:, :length], seen.ids, seen.kinds, seen.predictions)
        each = math.ceil(h.shape[1] / math.ceil(padded.numel() / chunk))
        pasts: list[Past | None] = [None] * (len(self.stacks) - 1)
        nats = []
        for begin in range(0, h.shape[1], each):
            part = h[:, begin : begin + each]
            if torch.is_grad_enabled() and begin + each < h.shape[1]:
                found, pasts = checkpoint(self.nats_of, tagged, part, begin, pasts, use_reentrant=False)
            else:
                found, pasts = self.nats_of(tagged, part, begin, pasts)
            nats.append(found)
        return torch.cat(nats, dim=1)[:, :length]

    def nats_of(
        self, tagged: Tagged, h: Tensor, begin: int, pasts: "list[Past | None]"
    ) -> "tuple[Tensor, list[Past | None]]":
        """Nats of the bytes under the coarsest stage's outputs h (B, K, D), whose first position is `begin`."""
        pasts = list(pasts)
        first = begin * self.spans[0]
        h = self.finer(tagged, h, begin, pasts)
        here = tagged.map(lambda x: x[:, first : first + h.shape[1]])
        return self.score(h, here.ids, here.kinds, here.predictions), pasts

    def score(self, h: Tensor, ids: Tensor, kinds: Tensor | None = None, predicted: Tensor | None = None) -> Tensor:
        """The finest stage's output (B, T, D), what is read there, ids (B, T), of which kind, what is taken: (B, T)."""
        if self.config.heads == "shared" or kinds is None:
            return cross_entropy(self.shared_logits(h, predicted), ids)

        def part(kind: int) -> Callable[[Tensor, Tensor], Tensor]:
            own = self.config.kinds[kind].own
            return lambda h, ids: cross_entropy(self.own_logits(h, kind), own(ids))

        parts = [part(kind) for kind in range(len(self.config.kinds))]
        return through_kinds(kinds.flatten(), parts, h.flatten(0, 1), ids.flatten()).view(ids.shape)

    def check_length(self, length: int, prefix: Tensor | None = None) -> None:
        """Raise ValueError where `length` bytes, after a prefix (B, K, D), are more than learned positions allow."""
        limit = self.config.max_length
        taken = 0 if prefix is None else prefix.shape[1] * self.spans[0]
        if limit is not None and length + taken > limit:
            raise ValueError(
                f"{length + taken} bytes are more than the {limit} that this model's learned positions allow"
            )

    def pad(self, ids: Tensor) -> Tensor:
        """ids (B, T) with the last patch filled, and at least one; causal: what the padding is cannot matter."""
        length = max(ids.shape[1], 1)
        return F.pad(ids, (0, -length % self.spans[0] + length - ids.shape[1]))

    def tag(self, ids: Tensor, mark: Tensor | None = None, since: Tensor | None = None) -> Tagged:
        """Ids (B, T) with their kinds and their places in their segments; bare where the model has one kind only."""
        found = matches(self.config.matches, ids) if self.config.matches else None
        if not self.config.kinds:
            return Tagged(ids, predictions=found)
        if self.config.embedder.streams:
            kinds = self.streams(ids.shape[1], ids.device).expand(ids.shape)
            return Tagged(ids, kinds, places_in_segment(ids, since, self.spans[0]))
        kinds = self.kind_of_mark(ids.device)[marks_in_force(ids, mark)]
        places = places_in_segment(ids, since)
        if not self.config.predictors:
            return Tagged(ids, kinds, places, found)
        taken = predictions(self.config, ids, kinds, places)
        return Tagged(distances(ids, taken), kinds, places, taken if found is None else taken + found)

    def kind_of_mark(self, device: torch.device) -> Tensor:
        """(marks,), for each mark the index of its modality among the config's kinds; 0 where it has none."""
        if self._kind_of_mark is None or self._kind_of_mark.device != device:
            table = [0] * VOCABULARY.end_of_marks
            for i, modality in enumerate(self.config.modalities):
                table[modality.mark] = i + 1
            with torch.inference_mode(False):  # or training could not use what generation left behind
                self._kind_of_mark = torch.tensor(table, device=device)
        return self._kind_of_mark

    def streams(self, length: int, device: torch.device) -> Tensor:
        """(T,), of a fused model the index of the stream at each position."""
        one = [i for i, stream in enumerate(self.config.embedder.streams) for _ in range(stream.size)]
        return torch.tensor(one, device=device).repeat(-(-length // len(one)))[:length]

    def counted_places(self, length: int, device: torch.device) -> Tensor | None:
        """(T,) bool, of a fused model the positions of streams that are predicted; None where all are."""
        if not self.config.embedder.streams:
            return None
        predicted = torch.tensor([stream.role == "predicted" for stream in self.config.embedder.streams], device=device)
        return predicted[self.streams(length, device)]

    def drop_streams(self, ids: Tensor) -> Tensor:
        """Ids (B, T) of fused patches with some streams of some rows left out, never the first predicted one."""
        streams = self.config.embedder.streams
        dropped = torch.rand(ids.shape[0], len(streams), device=ids.device) < self.config.embedder.stream_dropout
        dropped[:, [stream.role for stream in streams].index("predicted")] = False
        data = (ids < VOCABULARY.num_bytes) | (ids >= VOCABULARY.end_of_reserved)
        return ids.masked_fill(data & dropped[:, self.streams(ids.shape[1], ids.device)], VOCABULARY.pad_id)

    def prefix(self, inputs: Inputs) -> Tensor | None:
        """Continuous inputs as vectors (B, K, D) for the coarsest stage; None for none. Raises ValueError."""
        if not inputs:
            return None
        if self.conditions is None:
            raise ValueError("this model has no continuous inputs; name them in ModelConfig.inputs")
        return torch.cat([self.conditions(x, modality) for modality, x in inputs], dim=1)

    def coarsest(self, tagged: Tagged, prefix: Tensor | None = None) -> Tensor:
        """The coarsest stage's output (B, K, D) over all of ids (B, K * span), after what it reads first."""
        x = self.inputs(0, tagged, None, 0, tagged.ids.shape[1] // self.spans[0])
        if prefix is None:
            return self.stacks[0](x)
        return self.stacks[0](torch.cat((prefix.to(x.dtype), x), dim=1))[:, prefix.shape[1] :]

    def finer(self, tagged: Tagged, h: Tensor, begin: int = 0, pasts: "list[Past | None] | None" = None) -> Tensor:
        """All stages but the coarsest: from its outputs h (B, K, D), the first at `begin`, to the finest's (B, T', D).

        With `pasts`, one for each of these stages, h goes on where they end, and they are replaced.
        """
        for i in range(1, len(self.stacks)):
            h = self.expanders[i - 1](h)
            first = begin * self.spans[0] // self.spans[i]
            x = self.inputs(i, tagged, h, first, first + h.shape[1])
            if pasts is None:
                h = self.stacks[i](x)
            else:
                h, pasts[i - 1] = self.stacks[i].extend(x, pasts[i - 1])
        return self.merge_late(h) if self.config.late_parent else h

    def embed(self, stage: int, tagged: Tagged, halo: int = 0, real: Tensor | None = None) -> Tensor:
        """What a stretch of ids (B, halo + K * span) stands for in a stage, (B, K, D)."""
        return self.embedders[stage](tagged.ids, halo, real, tagged.kinds, tagged.since)

    def content(self, stage: int, tagged: Tagged, begin: int, end: int) -> Tensor:
        """What positions begin to end - 1 of a stage stand for, (B, end - begin, D), from all of ids (B, T)."""
        halo, span = self.embedders[stage].halo, self.spans[stage]
        if begin == 0:
            return self.embed(stage, tagged.map(lambda x: x[:, : end * span]))
        missing = max(0, halo - begin * span)
        part = tagged.map(lambda x: F.pad(x[:, begin * span - halo + missing : end * span], (missing, 0)))
        real = None
        if missing:
            real = (torch.arange(part.ids.shape[1], device=part.ids.device) >= missing).expand_as(part.ids)
        return self.embed(stage, part, halo, real)

    def inputs(self, stage: int, tagged: Tagged, parent: Tensor | None, begin: int, end: int) -> Tensor:
        """The input of positions begin to end - 1 of a stage: the sibling before, and a share of the parent (B, K, D).

        Where the stage has patches, begin and end are their borders.
        """
        start, reach = self.starts[stage], self.stacks[stage].reach
        if reach.patch_size is None and begin:
            x = self.content(stage, tagged, begin - 1, end - 1)
        elif reach.patch_size is None:
            x = self.content(stage, tagged, 0, end)[:, :-1]
            x = torch.cat((start.to(x.dtype).expand(x.shape[0], 1, -1), x), dim=1)
        else:
            content = self.content(stage, tagged, begin, end)
            if parent is not None and self.config.late_parent:
                content = content + parent
            content = rearrange(content, "b (k p) d -> b k p d", p=self.config.siblings(stage))
            first = start.to(content.dtype).expand(*content.shape[:2], 1, -1)
            x = torch.cat((first, content), dim=2)[:, :, : reach.patch_size].flatten(1, 2)
        late = self.config.late_parent and reach.patch_size is not None
        x = x.to(start.dtype)  # under autocast too the stream between layers is as wide as the weights
        if stage == len(self.stacks) - 1 and tagged.predictions is not None:
            x = self.tell(x, tagged.predictions[:, begin:end])
        return x if parent is None or late else x + parent

    def tell(self, x: Tensor, predicted: Tensor | None) -> Tensor:
        """The finest stage's input (..., D) with what is guessed of the byte to be predicted there, (...)."""
        if self.guesses is not None and predicted is not None:
            x = x + self.guesses(predicted % VOCABULARY.num_bytes)
        return x if self.matches is None or predicted is None else self.matches(x, predicted)

    def merge_late(self, h: Tensor) -> Tensor:
        """Of P + 1 outputs a patch (B, K * (P + 1), D), those that predict bytes 0, 1, ... (B, K * P + 1, D)."""
        h = rearrange(h, "b (k q) d -> b k q d", q=self.stacks[-1].reach.patch_size)
        return torch.cat((h[:, 0, :1], h[:, :, 1:].flatten(1, 2)), dim=1)

    def logits(self, h: Tensor, kinds: Tensor | None = None, predicted: Tensor | None = None) -> Tensor:
        """The finest stage's output (..., D), and of which kind what comes there is (...) -> logits (..., V).

        `predicted` (...) is what is taken from bytes there. With a head for each modality, ids that are neither of its
        data nor reserved have -inf.
        """
        if predicted is not None and self.config.predictors:
            return of_bytes(self.read_logits(h, kinds, predicted), predicted)
        return self.read_logits(h, kinds, predicted)

    def read_logits(self, h: Tensor, kinds: Tensor | None, predicted: Tensor | None) -> Tensor:
        """As `logits`, of what is read: of distances where bytes are guessed."""
        if self.config.heads == "by_modality" and kinds is not None:

            def part(kind: int) -> Callable[[Tensor], Tensor]:
                ids = self.config.kinds[kind].ids(h.device)

                def spread(h: Tensor) -> Tensor:
                    own = self.own_logits(h, kind)
                    everywhere = own.new_full((h.shape[0], self.config.vocab_size), float("-inf"))
                    return everywhere.index_copy(1, ids, own)

                return spread

            parts = [part(kind) for kind in range(len(self.config.kinds))]
            return through_kinds(kinds.flatten(), parts, h.flatten(0, -2)).unflatten(0, h.shape[:-1])
        return self.shared_logits(h, predicted)

    def shared_logits(self, h: Tensor, predicted: Tensor | None) -> Tensor:
        """As `read_logits`, of the one head over all ids."""
        logits = self.head(h) if self.head is not None else multiply(h, self.table.weight)
        if self.matches is not None and predicted is not None:
            logits = self.matches.point(logits, h, predicted)
        return self.capped(logits if self.head_bias is None else logits + self.head_bias)

    @property
    def table(self) -> nn.Embedding:
        """The finest stage's table of all ids, which is the head of a model without one."""
        embedder = self.embedders[-1]
        return embedder.table if isinstance(embedder, PatchEmbedder) else embedder.parts[0].table

    @property
    def string_tables(self) -> list[nn.Embedding]:
        """The tables of hashed strings of all stages."""
        parts = (module for module in self.modules() if isinstance(module, PatchEmbedder))
        return [part.strings for part in parts if part.strings is not None]

    def own_logits(self, h: Tensor, kind: int) -> Tensor:
        """Logits of one kind's own head: h (N, D) -> (N, its ids and the reserved ones)."""
        ids = self.config.kinds[kind].ids(h.device)
        if self.heads is not None:
            logits = self.heads[kind](h)
        else:
            embedder = self.embedders[-1]
            weight = embedder.weight(kind) if isinstance(embedder, ModalEmbedder) else self.table.weight[ids]
            logits = multiply(h, weight)
        return self.capped(logits if self.head_bias is None else logits + self.head_bias[ids])

    def capped(self, logits: Tensor) -> Tensor:
        """Logits squashed softly where the config asks for it."""
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    # -- one byte at a time: models/decoding.py ----------------------------------------------------------------------

    def start(
        self,
        batch: int,
        max_length: int | None = None,
        compiled: bool = False,
        *,
        mark: Tensor | None = None,
        since: Tensor | None = None,
        inputs: Inputs = (),
    ) -> State:
        """A state for `batch` empty rows that take up to `max_length` bytes (default: the config's context).

        Its `logits` (B, V) are those of the first byte. `mark`, `since` and `inputs` as in `forward`. `compiled` runs a
        stage that all rows enter together as one function compiled by torch.compile: some seconds a stage at first,
        then two to four times as fast on a CPU.
        Raises ValueError where learned positions end before.
        """
        return decoding.start(self, batch, max_length, compiled, mark, since, self.prefix(inputs))

    def prefill(
        self, ids: Tensor, lengths: Tensor | Sequence[int], state: State, chunk: int = decoding.PREFILL_CHUNK
    ) -> Tensor:
        """Take the prompts ids (B, T), of which row b has lengths[b] bytes, at once; return logits (B, V) as `step`.

        `state` must be fresh from `start`. What stands right of a row's prompt is ignored. Finer stages run only over
        what can still be seen: their last patch, or the stretch that their windows reach through all layers, about
        `chunk` bytes of the batch at a time; so a long prompt costs little more than stage 0.
        Raises ValueError where a prompt does not fit or the state is not fresh.
        """
        return decoding.prefill(self, as_ids(ids), lengths, state, chunk)

    def step(self, ids: Tensor, state: State, rows: Sequence[int] | None = None) -> Tensor:
        """Append ids (N,), one byte to each of `rows` (None: to all), and return the logits (B, V) of the next bytes.

        Changes `state`; rows that are not named stand where they stood. Raises ValueError where a row is full.
        """
        return decoding.step(self, as_ids(ids, 1), state, rows)

    def room(self, state: State) -> int:
        """The most bytes a row can have and still be asked for the next: a learned table has no row after its last."""
        limit = self.config.max_length
        return state.ids.shape[1] if limit is None else min(state.ids.shape[1], limit - 1)

    def is_late(self, stage: int) -> bool:
        """Whether this stage has one position more in each patch."""
        return self.config.late_parent and stage == len(self.stacks) - 1
