"""Logits in, the next ids out: pure functions, in the order penalty, temperature, top-k, top-p, min-p, draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next byte is drawn."""

    temperature: float = 1.0
    """Divide logits by it; 0 takes the likeliest byte."""
    top_k: int | None = None
    """Draw among the so many likeliest bytes."""
    top_p: float | None = None
    """Draw among the likeliest bytes that together have at least this probability (arXiv 1904.09751)."""
    min_p: float | None = None
    """Draw among bytes at least this share as likely as the likeliest (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Divide positive logits of ids that have occurred by it, multiply negative ones (arXiv 1909.05858)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1: off)")


def penalize(logits: Tensor, occurred: Tensor, penalty: float) -> Tensor:
    """Makes ids that have occurred less likely: logits (B, V), occurred (B, V) bool -> (B, V)."""
    return torch.where(occurred, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Applies temperature and the filters: logits (B, V) -> (B, V), -inf where excluded; the likeliest always stays."""
    if config.temperature == 0:
        return logits
    logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        smallest = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        excluded = before >= config.top_p
        excluded[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(excluded).scatter(1, order, excluded), -torch.inf)
    if config.min_p is not None:
        probabilities = logits.softmax(-1)
        floor = config.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < floor, -torch.inf)
    return logits


def sample(logits: Tensor, noise: Tensor | None) -> Tensor:
    """One id a row from filtered logits (B, V) -> (B,): the likeliest, or drawn with `noise` (B, V) from Exp(1)."""
    if noise is None:
        return logits.argmax(-1)
    # Exponential race: argmax of p / e with e ~ Exp(1) is distributed as p, without a sum that rounding can exceed.
    return (logits.softmax(-1) / noise).argmax(-1)


def choose(
    logits: Tensor, allowed: Tensor, occurred: Tensor | None, noise: Tensor | None, config: SamplingConfig
) -> Tensor:
    """All of it: logits (B, V), where `allowed` (V,) or (B, V) is True, to ids (B,)."""
    logits = logits.float()
    if occurred is not None:
        logits = penalize(logits, occurred, config.repetition_penalty)
    return sample(filter_logits(logits.masked_fill(~allowed, -torch.inf), config), noise)


class Noise:
    """What rows draw with: a row's k-th draw depends on its seed and k alone, not on the rows beside it."""

    BLOCK = 16

    def __init__(self, seeds: Sequence[int], vocab_size: int, device: torch.device):
        self.size, self.device = vocab_size, device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.blocks = [torch.empty(0, vocab_size, device=device) for _ in seeds]

    def take(self, rows: Sequence[int], count: int) -> Tensor:
        """The next `count` draws of these rows, (count, N, V)."""
        taken = []
        for row in rows:
            while len(self.blocks[row]) < count:
                fresh = torch.empty(self.BLOCK, self.size, device=self.device)
                fresh.exponential_(generator=self.generators[row])
                self.blocks[row] = torch.cat((self.blocks[row], fresh))
            taken.append(self.blocks[row][:count])
            self.blocks[row] = self.blocks[row][count:]
        return torch.stack(taken, dim=1)


@dataclass
class Utf8:
    """Where each row stands inside a UTF-8 character (RFC 3629), and so which bytes may follow."""

    state: Tensor
    """(B,), row of the transition table; 0 is between characters."""

    @classmethod
    def after(cls, prompts: Sequence[bytes], device: torch.device | str = "cpu") -> "Utf8":
        """After these bytes, of which the last four matter; an invalid end counts as between characters."""
        states = []
        for prompt in prompts:
            # The longest valid end decides: a character that the prompt has begun is to be finished.
            ends = (prompt[-count:] for count in (3, 2, 1) if count <= len(prompt))
            found = next((state for end in ends if end[0] >= 0xC2 and (state := _run(end)) > 0), 0)
            states.append(found)
        return cls(torch.tensor(states, device=device))

    @property
    def complete(self) -> Tensor:
        """(B,) bool: the row stands between characters."""
        return self.state == 0

    def allowed(self, left: Tensor | int) -> Tensor:
        """(B, 256) bool: bytes after which the character can still be finished with `left` (B, 1) bytes in all.

        Where a character was begun that needs more than that, the bytes that go on with it.
        """
        following = TRANSITIONS.to(self.state.device)[self.state]
        valid = following >= 0
        fits = valid & (MISSING.to(self.state.device)[following.clamp(min=0)] < left)
        return torch.where(fits.any(-1, keepdim=True), fits, valid)

    def advance(self, values: Tensor) -> "Utf8":
        """After one allowed byte (B,) more in each row."""
        return Utf8(TRANSITIONS.to(self.state.device)[self.state, values])

    def select(self, rows: Sequence[int]) -> "Utf8":
        """These rows alone."""
        return Utf8(self.state[torch.as_tensor(rows, device=self.state.device)])


def _transitions() -> Tensor:
    """(8, 256): next state or -1. RFC 3629, section 4: second bytes after E0, ED, F0 and F4 have their own ranges."""
    table = torch.full((8, 256), -1)
    table[0, 0x00:0x80] = 0
    table[0, 0xC2:0xE0] = 1
    table[0, 0xE1:0xF0] = 2
    table[0, 0xE0], table[0, 0xED] = 4, 5
    table[0, 0xF1:0xF4] = 3
    table[0, 0xF0], table[0, 0xF4] = 6, 7
    for state, following, low, high in (
        (1, 0, 0x80, 0xC0),
        (2, 1, 0x80, 0xC0),
        (3, 2, 0x80, 0xC0),
        (4, 1, 0xA0, 0xC0),
        (5, 1, 0x80, 0xA0),
        (6, 2, 0x90, 0xC0),
        (7, 2, 0x80, 0x90),
    ):
        table[state, low:high] = following
    return table


TRANSITIONS = _transitions()
MISSING = torch.tensor([0, 1, 2, 3, 2, 2, 3, 3])
"""(8,): bytes that a character in this state still lacks."""


def _run(data: bytes) -> int:
    state = 0
    for value in data:
        state = int(TRANSITIONS[state, value])
        if state < 0:
            return -1
    return state
