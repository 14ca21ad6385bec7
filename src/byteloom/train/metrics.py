"""What a run reports: `metrics.jsonl`, one object a line, and a progress bar in the terminal.

A line holds `step`, `bytes` (seen so far), `seconds`, `loss` (nats per byte since the last line), `bits_per_byte`,
`learning_rate`, and where measured `valid_bits_per_byte`. Where there is more than one modality, `by_modality` and
`valid_by_modality` are bits per byte of each by name; a fused model has its streams there.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsLog:
    """Appends to metrics.jsonl; every line is on its way to the disk when `write` returns."""

    def __init__(self, path: Path, after_step: int):
        """Opens the file and drops lines of later steps than `after_step`, and a line that a crash cut."""
        kept = [row for row in read_metrics(path) if row["step"] <= after_step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 -- closed by close()

    def write(self, **values: Any) -> None:
        """Adds one line."""
        self.file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Waits for the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


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
