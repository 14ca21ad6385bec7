"""What a run reports: `metrics.jsonl`, one object a line, and a progress bar in the terminal.

A line holds `step`, `bytes` (seen so far), `seconds`, `loss` (nats per byte since the last line), `bits_per_byte`,
`learning_rate`, and where measured `valid_bits_per_byte`. Where there is more than one modality, `by_modality` and
`valid_by_modality` are bits per byte of each by name; a fused model has its streams there.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from byteloom.evaluation import by_name
from byteloom.losses import Loss
from byteloom.train.distributed import World


class MetricsLog:
    """Appends to metrics.jsonl; every line is on its way to the disk when `write` returns."""

    def __init__(self, path: Path, after_step: int, writes: bool = True, tensorboard: bool = False):
        """Opens the file, in a folder made for it, and drops lines of later steps than `after_step`, and one cut short.

        Of several processes one `writes`, and the others only look as if. `tensorboard` writes beside it what
        TensorBoard reads; raises ModuleNotFoundError where it is not installed.
        """
        self.path, self.writes, self.board = path, writes, None
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(path) if row["step"] <= after_step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 -- closed by close()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=after_step + 1)

    def write(self, **values: Any) -> None:
        """Adds one line; makes the file anew where somebody has deleted it."""
        if not self.writes:
            return
        if not self.path.exists():
            self.file.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 -- as above
        self.file.write(json.dumps(values) + "\n")
        if self.board is not None:
            for name, value in values.items():
                for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                    self.board.add_scalar(f"{name}/{part}".rstrip("/"), number, values["step"])

    def close(self) -> None:
        """Waits for the disk."""
        if not self.writes:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.board is not None:
            self.board.close()


class Window:
    """Sums since the last line of metrics, left on the device until they are read."""

    def __init__(self) -> None:
        self.nats: Tensor | float = 0.0
        self.bytes: Tensor | float = 0.0
        self.table: Tensor | float = 0.0
        self.norm: Tensor | float = 0.0
        self.began = time.monotonic()

    def add(self, loss: Loss) -> None:
        """Adds a batch's sums."""
        self.nats = self.nats + loss.nats.detach().double()
        self.bytes = self.bytes + loss.bytes
        self.table = self.table + loss.table.detach().double()

    def read(self, world: World) -> tuple[float, int, bool]:
        """Nats, bytes, and whether all of it, gradients too, was finite: of all processes. Waits for the device."""
        nats, size, table = map(torch.as_tensor, (self.nats, self.bytes, self.table))
        sums = world.sum_tensor(torch.cat((torch.stack((nats, size.double())), table.flatten())))
        self.table = sums[2:].view(table.shape)
        return float(sums[0]), int(sums[1]), math.isfinite(float(sums[0])) and math.isfinite(float(self.norm))

    def by_modality(self, names: Mapping[int, str]) -> dict[str, float]:
        """Bits per byte of each modality that there was, by the names of the table's rows."""
        sums = by_name(torch.as_tensor(self.table)[:, [0, 2]].cpu().numpy(), names)
        return {name: entry["bits_per_byte"] for name, entry in sums.items()}

    def rate(self, size: int) -> float:
        """Bytes per second."""
        return size / max(time.monotonic() - self.began, 1e-9)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none where the file is missing. A line cut by a crash is left out."""
    rows = []
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


class ProgressBar:
    """A bar with bits per byte, speed and time left; lines of text where the output is no terminal."""

    def __init__(self, progress: float, show: bool):
        self.console = Console(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% · {task.fields[bits]:.3f} bits/byte · {task.fields[speed]} · left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (show and self.console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task("", total=1000, completed=round(1000 * progress), bits=float("nan"), speed="")

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, progress: float, bits_per_byte: float, bytes_per_second: float) -> None:
        """Moves the bar to `progress` in [0, 1]."""
        speed = f"{bytes_per_second / 1e3:.1f} kB/s"
        self.bar.update(self.task, completed=round(1000 * min(progress, 1.0)), bits=bits_per_byte, speed=speed)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self.console.print(line, markup=False)
