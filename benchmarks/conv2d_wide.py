"""conv2d at the 3 x 3 convolutions of Stable Diffusion 1.5: bench_conv2d.py with its shapes WIDE.

    python -m benchmarks.conv2d_wide unet|batches|autoencoder [--json FILE] [--threads N] [--simd avx2|baseline]

They are apart because they take minutes, most of them for the truth in float64. The array path is not timed.
"""

import sys

from benchmarks import harness
from benchmarks.bench_conv2d import WIDE, cases


def cases_of_part(part):
    """cases(settings) of some of the shapes, for harness.main."""

    def of_part(settings):
        for case in cases(settings, WIDE[part]):
            case.contenders = [c for c in case.contenders if c.name != "array path"]
            yield case

    return of_part


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in WIDE:
        sys.exit(f"which shapes? one of {', '.join(WIDE)}")
    sys.exit(harness.main(cases_of_part(sys.argv.pop(1)), __doc__))
