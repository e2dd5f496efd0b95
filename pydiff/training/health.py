"""What a training reports at its end: steps skipped, a loss that rose, files that could not be written."""

import math
from typing import Any

SMOOTH = 50  # steps over which the loss is averaged
RISE, LARGE = math.log(10), math.log(1000)  # less than the first is never a rise, more than the second always is
NOISE = 6  # standard deviations of the step-to-step loss up to which it is not a rise
LASTING = 3  # steps that a rise between the two must last, and that the loss must be back for


class Health:
    """Sees every entry of the log, including those before a resume, and keeps a few numbers."""

    def __init__(self):
        self.skipped = 0
        self.first_skipped: Any = None  # (step, reason)
        self.failures: dict[
            str, list
        ] = {}  # name of the file -> [failures, first step, reason, whether it still fails]
        self.level, self.noise, self.seen, self.before = 0.0, 0.0, 0, None
        self.best, self.best_step = math.inf, 0
        self.rise: Any = None
        self.calm, self.rises = 0, []  # a rise: [first step, steps, highest, its step, step when back]

    def saw(self, entry: dict):
        """Records an entry of the log: its loss, and whether the step was skipped."""
        if entry.get("skipped"):
            self.skipped += 1
            self.first_skipped = self.first_skipped or (entry["step"], entry["skipped"])
        loss = entry.get("loss")
        if isinstance(loss, int | float) and 0 < loss < math.inf:
            self._rose_or_not(entry["step"], math.log(loss))

    def _rose_or_not(self, step, value):
        limit = self.best + max(RISE, min(NOISE * self.noise, LARGE))
        if value > limit:
            self.rise = self.rise or [step, 0, value, step, None]
            self.rise[1] += 1
            if value > self.rise[2]:
                self.rise[2:4] = value, step
            self.calm = 0
            return
        if self.before is not None:
            self.noise += (abs(value - self.before) - self.noise) / min(self.seen, SMOOTH)
        self.before = value
        self.seen += 1
        self.level += (value - self.level) / min(self.seen, SMOOTH)
        if self.level < self.best:
            self.best, self.best_step = self.level, step
        if self.rise:
            self.calm += 1
            if self.calm == 1:
                self.rise[4] = step
            if self.calm == LASTING:
                self._close()

    def _close(self):
        if self.rise[1] >= LASTING or self.rise[2] > self.best + LARGE:
            self.rises.append(self.rise)
        self.rise = None

    def failed(self, what: str, step: int, reason: str) -> bool:
        """Records that something could not be written. Returns whether it could be written before."""
        failure = self.failures.setdefault(what, [0, step, reason, False])
        news, failure[3] = not failure[3], True
        failure[0] += 1
        failure[2] = reason
        return news

    def worked(self, what: str):
        """Records that this could be written again."""
        if what in self.failures:
            self.failures[what][3] = False

    def sentences(self, lr: float) -> list[str]:
        """What a user should know, most important first; empty if nothing happened."""
        told = []
        for what, (times, step, reason, still) in self.failures.items():
            often = "once" if times == 1 else f"{times:,} times"
            end = "and not since" if still else "and then it could again"
            told.append(f"{what} could not be written {often}, from step {step:,} on ({reason}), {end}")
        if self.rise:
            self._close()
        if self.rises:
            _, _, highest, step, back = max(self.rises, key=lambda rise: rise[2])
            often = "" if len(self.rises) == 1 else f", the worst of {len(self.rises)} times"
            came = "did not come back" if back is None else f"was back at step {back:,}"
            told.append(
                f"the loss rose from {math.exp(self.best):.3g} to {math.exp(highest):,.4g} at step {step:,} and {came}"
                f"{often}; the result may be worse for it: a smaller lr than {lr:g} may help"
            )
        if self.skipped:
            step, reason = self.first_skipped
            told.append(f"{self.skipped:,} steps were skipped, the first of them step {step:,}: {reason}")
        return told
