"""Resampling to another rate by a polyphase windowed sinc (Smith and Gossett 1984; Crochiere and Rabiner 1983, chapter
4).

From rate a to b, with p = b / gcd and q = a / gcd, output sample n is at position n q / p of the input. The p different
fractions each have their own filter: the sinc that cuts off at the lower of the two Nyquist frequencies, in a Kaiser
window. Frequencies up to 0.9 of the lower Nyquist frequency pass unchanged, those above it are 90 dB down, so that
there is no aliasing.
"""

import math

import numpy as np

ZEROS = 64  # zero crossings of the sinc on either side
BETA = 9.0  # of the Kaiser window: 90 dB
PASS = 0.952  # cutoff over the lower Nyquist frequency: half way between that and the end of the pass band


def resample(x, rate: int, wanted: int) -> np.ndarray:
    """x (L, ...) at `rate` -> (ceil(L wanted / rate), ...) float64 at `wanted`. x counts as silent beyond its ends."""
    x = np.asarray(x, np.float64)
    if not (isinstance(rate, int) and isinstance(wanted, int) and rate > 0 and wanted > 0):
        raise ValueError(f"rates are whole numbers of at least 1, got {rate!r} and {wanted!r}")
    divisor = math.gcd(rate, wanted)
    p, q = wanted // divisor, rate // divisor
    length = -(-len(x) * p // q)
    if p == q or not length:
        return x[:length]
    scale = max(1.0, q / p)  # input samples between zero crossings, before PASS
    reach = math.ceil(ZEROS * scale / PASS)
    taps = np.arange(-reach, reach + 1)
    flat = x.reshape(len(x), -1)
    rows = -(-length // p)  # outputs of every phase
    after = max(0, (rows - 1) * q + q + reach + 1 - len(x))
    padded = np.pad(flat, ((reach, after), (0, 0)))
    y = np.empty((rows, p, flat.shape[1]))
    for phase in range(min(p, length)):
        whole, rest = divmod(phase * q, p)
        window = np.lib.stride_tricks.sliding_window_view(padded[whole:], 2 * reach + 1, axis=0)[
            : (rows - 1) * q + 1 : q
        ]
        y[:, phase] = window @ _filter(taps - rest / p, scale)
    return y.reshape(rows * p, -1)[:length].reshape(length, *x.shape[1:])


def _filter(distance, scale):
    """Weights of input samples at these distances (T,) from the output sample; they sum to 1."""
    at = distance * (PASS / scale)
    inside = np.clip(1.0 - (at / ZEROS) ** 2, 0.0, None)
    weights = np.where(np.abs(at) <= ZEROS, np.sinc(at) * np.i0(BETA * np.sqrt(inside)), 0.0)
    return weights / weights.sum()
