"""What a training will need, before it starts: memory, from a few small steps of its network, and time, from a few full
steps.

Between the forward and the backward pass, a step keeps arrays of every layer. Their size grows with the number of
samples and, for images in a convolutional network, with the number of pixels (and its square, if attention keeps its
scores). Small steps determine these rates; `benchmarks/forecast.py` compares the predictions with actual use.
"""

import time
import tracemalloc
from typing import NamedTuple

import numpy as np

from pydiff import backend, memory, nn
from pydiff.models import name_of

SIDES = (32, 64, 96)  # of images in the small steps; below these, fixed costs of layers matter
MARGIN = 1.3  # allocator overhead, see benchmarks/results/forecast.json
CONVOLUTIONAL = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL")  # take images of any size


class Need(NamedTuple):
    """Bytes that a step needs besides weights and optimiser: fixed + samples * (pixels * linear + pixels^2 * square).

    pixels: of one sample; 1 if it was measured at its actual size.
    """

    fixed: float
    linear: float
    square: float
    pixels: int

    def of(self, samples: int, pixels: int | None = None) -> float:
        """The bytes, with a margin, of a step with this many samples at once, of this many pixels each."""
        p = self.pixels if pixels is None else pixels
        return MARGIN * (self.fixed + samples * (p * self.linear + p * p * self.square))


def need_of(trainer) -> Need | None:
    """The memory that a step of this training needs, measured on small steps that change nothing; None if only a
    full-size step could tell.
    """
    batch = trainer.task.batch(1, np.arange(1))
    if not hasattr(batch, "corner"):
        return None
    x = batch.x0
    if x[0].size <= 4 * SIDES[-1] ** 2:
        more = min(3, trainer.options.batch_size)
        one, all_of_them = (peak(trainer, trainer.task.batch(1, np.arange(n))) for n in (1, more))
        each = max((all_of_them - one) / (more - 1), 0.0) if more > 1 else one
        return Need(max(one - each, 0.0), each, 0.0, 1)
    if (
        x.ndim != 4
        or min(x.shape[1:3]) < SIDES[-1]
        or name_of(getattr(trainer.task, "network", trainer.model)) not in CONVOLUTIONAL
    ):
        return None
    peaks = [peak(trainer, batch.corner(side)) for side in SIDES]
    pixels = np.array([float(s * s) for s in SIDES])
    fixed, linear, square = fitted(pixels, peaks, 0.02)  # less is rounding, not attention that keeps its scores
    return Need(max(fixed, 0.0), linear, square, x.shape[1] * x.shape[2])


def fitted(sizes, values, least=0.0):
    """(a, b, c) with a + b size + c size^2 = value at three sizes. If c's part of the last value would be less than
    `least` of b's, c = 0 and (a, b) is the line through the last two.
    """
    n, values = np.array(sizes, float), np.array(values, float)
    fixed, linear, square = np.linalg.solve(np.stack([n**0, n, n * n], 1), values)
    if square * n[-1] < least * linear:
        square, linear = 0.0, (values[2] - values[1]) / (n[2] - n[1])
        fixed = values[2] - linear * n[2]
    return fixed, linear, square


def peak(trainer, batch) -> int:
    """Peak bytes of memory that the loss and gradient of this batch use."""
    running = tracemalloc.is_tracing()
    with backend.use_device(trainer.device):
        if not running:
            tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with nn.training(trainer.options.seed, 1, np.arange(len(batch.x0))), np.errstate(all="ignore"):
                loss = trainer.task.losses(batch).mean()
                loss.backward()
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            trainer.optimizer.zero_grad()
            if not running:
                tracemalloc.stop()


def at_once(options) -> int:
    """The number of samples that are computed at a time."""
    return -(-options.batch_size // max(1, min(options.shards, options.batch_size)))


def check_room(trainer, free: int | None = None):
    """Raises ValueError if a training certainly does not fit into memory, with advice on what would fit.

    free: bytes; None asks the system. A training that is certainly small is not measured.
    """
    free = memory.free() if free is None and trainer.device == "cpu" else free
    if free is None or _certainly_small(trainer, free):
        return
    need = need_of(trainer)
    if need is None or need.of(at_once(trainer.options)) <= free:
        return
    options, taken = trainer.options, need.of(at_once(trainer.options))
    advice, fits = [], int((free / MARGIN - need.fixed) // ((need.of(1) - need.of(0)) / MARGIN))
    if fits >= 1:
        parts = -(-options.batch_size // fits)
        advice.append(
            f"batch_size = {fits}, or accumulate = {parts}, which takes the memory of {fits} samples at a time"
        )
    if need.pixels > 1 and (side := _largest_side(need, at_once(options), free)):
        advice.append(f"size = {side}")
    raise ValueError(
        f"a step would take about {memory.told(taken)}, and {memory.told(free)} are free; "
        + (f"what fits is {', or '.join(advice)}" if advice else "not even one sample fits; use a smaller network")
    )


def _certainly_small(trainer, free) -> bool:
    """Whether it fits judging by shapes alone: a thousand arrays as wide as the widest layer, at full resolution."""
    config = getattr(trainer.model, "config", {})
    widest = max(config.get("block_out_channels", [1 << 12]))
    shape = getattr(getattr(trainer.task, "codec", None), "shape", (1 << 12,))
    return 4000 * at_once(trainer.options) * widest * int(np.prod(shape)) < free / 4


def _largest_side(need, samples, free) -> int:
    """The largest multiple of 8 for which a square image fits; 0 for none."""
    side = 8
    while need.of(samples, (side + 8) ** 2) <= free and side < 1 << 16:
        side += 8
    return side if need.of(samples, side**2) <= free else 0


def forecast(trainer, steps=3) -> str:
    """A few lines: memory, free memory, and time. It takes some steps with this trainer, which must not be used
    afterwards.
    """
    options, free, need = trainer.options, memory.free(), need_of(trainer)
    optimizer = trainer.optimizer
    size = 5 * optimizer.p.nbytes + (0 if optimizer.low is None else optimizer.low.nbytes)
    lines = [f"weights and optimiser: {memory.told(size)} ({optimizer.p.size:,} parameters)"]
    count = (
        f"{at_once(options)} at a time" if at_once(options) < options.batch_size else f"{options.batch_size} samples"
    )
    step = "not known before it is taken" if need is None else f"about {memory.told(need.of(at_once(options)))}"
    lines.append(f"a step ({count}): {step}" + ("" if free is None else f"; {memory.told(free)} are free"))
    check_room(trainer)
    if (each := pace(trainer, steps)) is not None:
        whole = duration(each * options.steps)
        lines.append(f"time: {each:.3g} s a step, {whole} for {options.steps:,} steps; checkpoints and samples beside")
    return "\n".join(lines)


def pace(trainer, steps=3) -> float | None:
    """Seconds per step: the median of a few steps of this trainer, which must not be used afterwards; None if it has
    only one step.
    """
    from pydiff.training.loop import training_steps

    times = []
    for _, _state in zip(range(min(steps + 1, trainer.options.steps)), training_steps(trainer), strict=False):
        times.append(time.perf_counter())
    return float(np.median(np.diff(times))) if len(times) > 1 else None


def duration(seconds: float) -> str:
    """Seconds in words: "2.4 minutes"."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
