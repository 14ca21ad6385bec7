"""What makes training fast and lean, put on a model from outside: the model knows nothing of it.

`accelerated` compiles blocks and the loss and lets blocks forget their activations,
`keep_memory` and `give_back` tell the C library when to keep memory and when not to. docs/performance.md has what each
is worth.
"""

import contextlib
import ctypes
import functools
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from byteloom.models.config import ModelConfig
from byteloom.models.multiscale import Multiscale
from byteloom.sizing import flops_per_byte
from byteloom.train.optim import sparse_gradients

WORTH_SECONDS = 120.0
"""From so long a run on, a CPU earns back by compiling what it cost: 20 seconds, then a fifth off every step."""
FLOPS = 3e11
"""Per second: what two cores of a CPU with bf16 matrix units reach in training, roughly."""


@contextlib.contextmanager
def accelerated(
    model: Multiscale, compiled: bool, recompute: Sequence[int] = (), sparse: bool = True
) -> Iterator[None]:
    """Inside, a model trains as asked; after, it is as it was.

    `compiled` compiles each stage's block (all layers of a stage share the code) and the head with its loss, at first
    use; heads that are chosen by modality are not compiled. Blocks of the stages in `recompute` keep their inputs only
    and run again in the backward pass. `sparse` gives tables of hashed strings `sparse_gradients`.
    """
    chosen = [block for stage in recompute for block in model.stacks[stage].blocks]
    every = [block for stack in model.stacks for block in stack.blocks] if compiled else []
    for block in chosen:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    for block in every:  # its forward alone: what FSDP2 does before and after stays outside
        block.forward = torch.compile(block.forward, dynamic=False)
    scored = compiled and model.config.heads == "shared"
    if scored:
        model.score = torch.compile(model.score, dynamic=False)
    try:
        with sparse_gradients(model.string_tables if sparse else ()):
            yield
    finally:
        for block in {*chosen, *every}:
            del block.forward
        if scored:
            del model.score


def worth_compiling(bytes_planned: float, seconds_planned: float, model: ModelConfig, device: torch.device) -> bool:
    """Whether a run of so many bytes or seconds, whichever ends first, is long enough, and a compiler works here."""
    seconds = min(seconds_planned, 3 * flops_per_byte(model) * bytes_planned / FLOPS)
    return (device.type == "cuda" or seconds >= WORTH_SECONDS) and can_compile(device)


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works: on a CPU it needs a C++ compiler and Python's headers, on CUDA Triton."""
    try:
        torch.compile(torch.sin, dynamic=False)(torch.zeros(64, device=device))
    except Exception:
        return False
    return True


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "bf16" or "fp32": for "auto" bf16 on CUDA, and on a CPU that multiplies it at least 1.3 times as fast."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        seconds[dtype] = min(timed(lambda a=a: a @ a) for _ in range(8))
    return "bf16" if seconds[torch.bfloat16] * 1.3 < seconds[torch.float32] else "fp32"


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch uses deterministic algorithms only, where wanted; what held before holds again after."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def available_memory(device: torch.device) -> int | None:
    """Bytes of memory that are free for tensors; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    if (info := Path("/proc/meminfo")).exists():
        found += [int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if "MemAvailable" in line]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        found.append(max(int(most) - int(used.read_text()), 0))
    return min(found, default=None)


def keep_memory() -> None:
    """Lets glibc keep what tensors give back, for the next ones.

    By default it returns every large block to the kernel, which hands it out again page by page, filled with zeros: a
    fifth of a training step on a CPU. Does nothing where the C library is another one.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    if (libc := _glibc()) is not None:
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def give_back() -> None:
    """Returns memory that nobody uses to the system: what compiling left behind is as much as a small model."""
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
