// The weight gradient of conv2d, for every kernel, stride and padding; conv2d.cpp has the equation. With (b, c) for the
// columns of one row a of the kernel, which lie side by side in a line of x:
//
//   dw[a, (b, c), o] = sum over pixels (n, i, j) of x[n, i stride_h + a - pad_top, (j stride_w - pad_left, 0) + (b, c)]
//                                                   dy[n, i, j, o]
//
// That is a product with x transposed for each a. From one pixel of a line to the next, its operand moves by
// stride_w cin floats; so x is multiplied where it lies, and so is dy. Where the kernel hangs over the image's edge,
// the product has fewer rows: only the taps inside the image are taken.
//
// A row of dy must be whole vectors to be multiplied where it lies. Otherwise the two change places, dw^T = dy^T x, if
// a pixel of x is whole vectors, and if neither is, dy is copied to wider rows.
//
// Order of summation: dw and dbias add up the blocks of pixels of fixed parts of the batch, then the parts.
#include <algorithm>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

// dw adds up blocks of at most so many pixels: by shapes only.
int64_t weight_block_pixels(const Conv2dShape& s) {
    constexpr int64_t cache_floats = 48 << 10;  // a fifth of 1 MB of L2
    return std::clamp<int64_t>(cache_floats / std::max<int64_t>(1, s.stride_w * s.cin + s.cout), 64, 512);
}

enum Slot { dy_slot, partial_slot, bias_slot };

// How the work is cut, by shapes only: the pixels into blocks of an image's lines and columns, and the blocks into
// parts, each with a sum of its own; the depth (a, b, c) of dw into groups.
struct Plan {
    int64_t kernel_row, depth, rows, down, columns, across, blocks, part, parts, group, groups;
    bool exchanged;

    explicit Plan(const Conv2dShape& s) : kernel_row(s.kw * s.cin), depth(s.kh * kernel_row) {
        constexpr int64_t items = 32, cache_floats = 48 << 10;  // of a group's rows of dw
        const int64_t block_pixels = weight_block_pixels(s);
        exchanged = s.cout % simd_width != 0 && s.cin % simd_width == 0;
        across = ceil_div(s.ow, block_pixels);
        columns = ceil_div(s.ow, across);
        down = ceil_div(s.oh, std::max<int64_t>(1, block_pixels / columns));
        rows = ceil_div(s.oh, down);
        blocks = s.n * down * across;
        const int64_t size = std::max<int64_t>(1, depth * s.cout);
        part = blocks_of_a_part(s, blocks, rows * columns, 256);
        parts = ceil_div(blocks, part);
        const int64_t unit = exchanged ? tile_columns : tile_rows;
        const int64_t wanted = std::max(ceil_div(items, parts), ceil_div(size, cache_floats));
        group = std::max<int64_t>(1, ceil_div(ceil_div(depth, wanted), unit)) * unit;
        groups = std::max<int64_t>(1, ceil_div(depth, group));
    }
};

// Pixels (i, j) .. (i + rows - 1, j + columns - 1) of image n.
struct Block {
    int64_t n, i, rows, j, columns;
};

Block block_at(const Conv2dShape& s, const Plan& plan, int64_t index) {
    const int64_t i = index / plan.across % plan.down * plan.rows, j = index % plan.across * plan.columns;
    return {index / plan.across / plan.down, i, std::min(plan.rows, s.oh - i), j, std::min(plan.columns, s.ow - j)};
}

// Calls f(j, count, b, end) for the pixels [j, j + count) of the block's lines of which the taps [b, end) lie in the
// image: those that have all of them at once, and each at the left and the right edge.
template <class F>
void for_segments(const Conv2dShape& s, const Block& block, F&& f) {
    const int64_t begin = block.j, end = begin + block.columns, room = s.w + s.pad_left - s.kw;
    const int64_t whole = std::clamp(ceil_div(s.pad_left, s.stride_w), begin, end);
    const int64_t behind = std::clamp(room < 0 ? whole : room / s.stride_w + 1, whole, end);
    for (int64_t j = begin, count; j < end; j += count) {
        count = j == whole && behind > whole ? behind - whole : 1;
        const int64_t edge = s.pad_left - j * s.stride_w, b = std::clamp<int64_t>(edge, 0, s.kw);
        if (b < std::min(edge + s.w, s.kw)) f(j, count, b, std::min(edge + s.w, s.kw));
    }
}

// Rows [begin, end) of sum, which is dw (depth, cout), or with exchanged places columns of dw^T (cout, depth), plus the
// block's products. dy is of the block's first pixel, with rows of dy_pitch floats and lines of dy_line.
void add_products(const Conv2dShape& s, const Plan& plan, const Block& block, const float* dy, int64_t dy_pitch,
                  int64_t dy_line, const float* x, int64_t begin, int64_t end, float* sum) {
    const int64_t x_pitch = s.stride_w * s.cin, x_line = s.stride_h * s.w * s.cin;
    for (int64_t a = begin / std::max<int64_t>(1, plan.kernel_row); a * plan.kernel_row < end; ++a) {
        const int64_t first = a * plan.kernel_row;
        // lines of the block that see the image with row a of the kernel
        const int64_t above = std::max<int64_t>(0, s.pad_top - a), room = std::max<int64_t>(0, s.h + s.pad_top - a);
        const int64_t lo = std::max(block.i, ceil_div(above, s.stride_h));
        const int64_t hi = std::min(block.i + block.rows, ceil_div(room, s.stride_h));
        if (lo >= hi) continue;
        const int64_t line = (block.n * s.h + lo * s.stride_h + a - s.pad_top) * s.w;
        for_segments(s, block, [&](int64_t j, int64_t count, int64_t b, int64_t b_end) {
            const int64_t r = std::max(b * s.cin, begin - first), r_end = std::min(b_end * s.cin, end - first);
            if (r >= r_end) return;
            const float* const xj = x + ((line + j * s.stride_w - s.pad_left) * s.cin + r);
            const float* const dyj = dy + (lo - block.i) * dy_line + (j - block.j) * dy_pitch;
            const Start add{nullptr, true};
            if (plan.exchanged) {
                for (int64_t e = r; e < r_end; e += tile_columns)
                    gemm_panel(Order::columns, s.cout, std::min<int64_t>(tile_columns, r_end - e), count, dyj, dy_pitch,
                               xj + (e - r), x_pitch, add, sum + first + e, plan.depth, {hi - lo, dy_line, x_line});
            } else {
                for (int64_t o = 0; o < s.cout; o += tile_columns)
                    gemm_panel(Order::columns, r_end - r, std::min<int64_t>(tile_columns, s.cout - o), count, xj,
                               x_pitch, dyj + o, dy_pitch, add, sum + (first + r) * s.cout + o, s.cout,
                               {hi - lo, x_line, dy_line});
            }
        });
    }
}

// dbias (cout) += the sum of the block's rows of dy.
void add_bias(const Conv2dShape& s, const Block& block, const float* dy, int64_t dy_pitch, int64_t dy_line,
              float* dbias) {
    for (int64_t o = 0; o < s.cout; o += simd_width) {
        vfloat sum{};
        for (int64_t i = 0; i < block.rows; ++i)
            for (int64_t j = 0; j < block.columns; ++j)
                sum += load_upto(dy + i * dy_line + j * dy_pitch + o, s.cout - o);
        store_upto(dbias + o, load_upto(dbias + o, s.cout - o) + sum, s.cout - o);
    }
}

}  // namespace

void direct_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw, float* dbias) {
    const Plan plan(s);
    const int64_t size = plan.depth * s.cout, width = panel_width(s.cout);
    const bool in_place = s.cout % simd_width == 0 || plan.exchanged, direct = plan.parts == 1 && !plan.exchanged;
    float* const partial = direct ? dw : scratch(partial_slot, static_cast<size_t>(plan.parts * size));
    float* const biases = scratch(bias_slot, static_cast<size_t>(plan.parts * s.cout));
    // (1) the sum of each part
    parallel_for(plan.parts * plan.groups, 1, [&](int64_t item) {
        const int64_t part = item / plan.groups, begin = item % plan.groups * plan.group,
                      end = std::min(begin + plan.group, plan.depth);
        float* const sum = partial + part * size;
        float* const bias = dbias && begin == 0 ? biases + part * s.cout : nullptr;
        if (!plan.exchanged) std::fill(sum + begin * s.cout, sum + end * s.cout, 0.0f);
        for (int64_t o = 0; plan.exchanged && o < s.cout; ++o)
            std::fill(sum + o * plan.depth + begin, sum + o * plan.depth + end, 0.0f);
        if (bias) std::fill(bias, bias + s.cout, 0.0f);
        for (int64_t i = part * plan.part; i < std::min((part + 1) * plan.part, plan.blocks); ++i) {
            const Block block = block_at(s, plan, i);
            const float* from = dy + ((block.n * s.oh + block.i) * s.ow + block.j) * s.cout;
            if (bias) add_bias(s, block, from, s.cout, s.ow * s.cout, bias);
            if (in_place) {
                add_products(s, plan, block, from, s.cout, s.ow * s.cout, x, begin, end, sum);
            } else {
                float* const rows = scratch(dy_slot, static_cast<size_t>(block.rows * block.columns * width));
                const int64_t line = block.columns * width;
                for (int64_t r = 0; r < block.rows; ++r)
                    pack_panel(block.columns, s.cout, from + r * s.ow * s.cout, s.cout, rows + r * line);
                add_products(s, plan, block, rows, width, block.columns * width, x, begin, end, sum);
            }
        }
    });
    // (2) their sum
    if (!direct) {
        const int64_t strip = plan.exchanged ? 64 : 512, length = plan.exchanged ? plan.depth : size;
        parallel_for(ceil_div(length, strip), 4, [&](int64_t item) {
            const int64_t k0 = item * strip, count = std::min(strip, length - k0);
            for (int64_t o = 0; o < (plan.exchanged ? s.cout : 1); ++o)
                sum_parts(plan.parts, size, count, partial + o * plan.depth + k0);
            if (plan.exchanged)
                pack_transposed(s.cout, count, partial + k0, plan.depth, dw + k0 * s.cout, s.cout);
            else
                std::copy(partial + k0, partial + k0 + count, dw + k0);
        });
    }
    if (dbias) {
        sum_parts(plan.parts, s.cout, s.cout, biases);
        std::copy(biases, biases + s.cout, dbias);
    }
}

}  // namespace pydiff
