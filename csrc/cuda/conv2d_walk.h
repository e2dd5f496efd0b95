// How the fast kernels of conv2d count through images and filters.
#pragma once
#include "tile_product.h"

namespace pydiff {
namespace {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Keeps nvcc from computing x again wherever it is used, to save a register.
__device__ __forceinline__ void compute_once([[maybe_unused]] int64_t& x) {
#if defined(__CUDACC__)
    asm("" : "+l"(x));
#endif
}

// A place (outer, middle, inner) in a box of any number x middles x inners, walked in the order of memory: a tap with a
// channel (a, b, c), or a pixel (n, i, j). Steps are short, so counting is cheaper than dividing.
struct Walk {
    int64_t outer;
    int middle, inner, middles, inners;

    __device__ __forceinline__ Walk(int64_t at, int64_t middles, int64_t inners)
        : middles(middles ? int(middles) : 1), inners(inners ? int(inners) : 1) {  // an empty box is not walked
        outer = at / this->inners / this->middles;
        middle = int(at / this->inners % this->middles), inner = int(at % this->inners);
    }
    __device__ __forceinline__ void advance(int steps) {
        for (inner += steps; inner >= inners; inner -= inners)
            if (++middle == middles) middle = 0, ++outer;
    }
};

}  // namespace
}  // namespace pydiff
