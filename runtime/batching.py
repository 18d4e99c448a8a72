"""How many pictures go through the net at once, found while working."""

from dataclasses import dataclass

WORTH = 1.05
"""Pictures a second that a doubled batch must gain to be kept."""


@dataclass
class BatchSize:
    """Doubles while that makes pictures faster, and halves where memory runs out.

    The first batch of a size is not timed: it may allocate, and choose kernels.
    """

    size: int
    most: int
    settled: bool = False
    _rate: float = 0.0
    _warm: bool = False

    def took(self, count: int, seconds: float) -> None:
        """Tell that a batch of `count` pictures took so long."""
        if self.settled or count != self.size:
            return
        if not self._warm:
            self._warm = True
            return
        rate = count / max(seconds, 1e-9)
        if rate < WORTH * self._rate:
            self.size, self.settled = max(1, self.size // 2), True
        elif 2 * self.size > self.most:
            self.settled = True
        else:
            self._rate, self.size, self._warm = rate, 2 * self.size, False

    def ran_out(self, count: int) -> None:
        """Tell that memory did not hold `count` pictures: no more than half from now on."""
        self.size, self.settled = max(1, min(self.size, count // 2)), True
