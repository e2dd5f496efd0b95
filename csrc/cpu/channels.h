// The channels of a pixel in blocks of a few vectors: what a loop over pixels needs of a block, constants and running
// sums, then stays in registers, and the inner loop has a fixed length and no test for the end of the row.
#pragma once
#include "simd.h"

namespace pydiff {

// `vectors` whole vectors from channel `first` on; or, as the last block of a row, the `count` channels that are left.
template <int vectors_, bool whole>
struct ChannelBlock {
    static constexpr int vectors = vectors_;
    int64_t first, count;

    vfloat load(const float* row, int v) const {
        row += first + v * simd_width;
        return whole ? pydiff::load(row) : load_partial(row, count);
    }
    void store(float* row, int v, vfloat value) const {
        row += first + v * simd_width;
        whole ? pydiff::store(row, value) : store_partial(row, value, count);
    }
};

// body(block) for blocks that cover c channels, in order. `most`: vectors in a block, 1, 2 or 4.
template <int most, class Body>
void for_channel_blocks(int64_t c, Body body) {
    int64_t first = 0;
    for (; first + most * simd_width <= c; first += most * simd_width) body(ChannelBlock<most, true>{first, 0});
    if constexpr (most > 1) {
        for_channel_blocks<most / 2>(c - first, [&](auto block) {
            block.first += first;
            body(block);
        });
    } else if (first < c) {
        body(ChannelBlock<1, false>{first, c - first});
    }
}

// body(block, begin, end) for all channels and pixels. Rows of a few vectors: all pixels at once. Longer ones: pixel by
// pixel, since blocks of them would be read out of memory's order, which processors do not prefetch well. So sums that
// the body keeps are loaded at its start and stored at its end.
template <class Body>
void for_pixels(int64_t pixels, int64_t c, Body body) {
    if (c <= 4 * simd_width)
        for_channel_blocks<4>(c, [&](auto block) { body(block, 0, pixels); });
    else
        for (int64_t p = 0; p < pixels; ++p) for_channel_blocks<2>(c, [&](auto block) { body(block, p, p + 1); });
}

}  // namespace pydiff
