"""conv2d at the 3 x 3 convolutions of Stable Diffusion 1.5: bench_conv2d.py with its shapes WIDE.

    python -m benchmarks.conv2d_wide [--json FILE] [--threads N] [--simd avx2|baseline]

They are apart because they take long: nearly all of it goes into the truth in float64.
"""

import sys

from benchmarks import harness
from benchmarks.bench_conv2d import WIDE, cases


def wide_cases(settings):
    """Three cases a shape."""
    return cases(settings, WIDE)


if __name__ == "__main__":
    sys.exit(harness.main(wide_cases, __doc__))
