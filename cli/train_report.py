"""What `rfp train` and its kin show while they work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


@contextmanager
def reporter() -> Iterator["ConsoleReporter"]:
    """Progress on stderr: a bar where that is a terminal, else plain lines."""
    report = ConsoleReporter(Console(stderr=True))
    try:
        yield report
    finally:
        report.close()


class ConsoleReporter:
    """Shows phase, progress and time left on one line, and the latest losses, accuracy and images/s below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._live = Live(self._progress, console=console)
        self._task: Any = None
        self._phase = ""

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, phase: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """After every step; `metrics` only where they were logged."""
        figures = "  ".join(_figure(name, value) for name, value in metrics.items())
        if not self._console.is_terminal:
            if metrics:
                self.note(f"{phase} {step}/{steps}  {figures}")
            return
        if phase != self._phase:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._phase = self._progress.add_task(phase, total=steps), phase
            self._live.start()
        self._progress.update(self._task, completed=step, total=steps)
        if figures:
            self._live.update(Group(self._progress, Text(f"  {figures}", no_wrap=True, overflow="ellipsis")))

    def close(self) -> None:
        """End the bar, so that what follows starts on a line of its own."""
        self._live.stop()


def _figure(name: str, value: float) -> str:
    if name == "images_per_second":
        return f"{value:.3g} images/s"
    return f"{name} {value:.1%}" if name == "accuracy" else f"{name} {value:.3g}"
