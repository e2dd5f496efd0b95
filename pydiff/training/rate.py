"""The learning rate, a function of only the step and the options."""

from pydiff import optim


def learning_rate(step: int, options) -> float:
    """The learning rate of optimiser step 1, 2, .., for LoopOptions."""
    if options.lr_schedule == "constant":
        return options.lr * min(1.0, step / max(options.warmup, 1))
    return optim.warmup_cosine(step, options.steps, options.lr, min(options.warmup, options.steps - 1))
