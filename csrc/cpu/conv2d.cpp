// conv2d: cross-correlation over channels-last pictures, and its two gradients.
//
//   y[n, i, j, o] = bias[o] + sum_{a, b, c} x[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] w[a, b, c, o]
//
// with x = 0 outside the picture. Every direction is an implicit matrix product (S. Chetlur et al., "cuDNN: Efficient
// Primitives for Deep Learning", arXiv:1410.0759, 2014): the matrix of patches, one row a pixel (n, i, j) and one column a
// weight (a, b, c), is never stored whole; a panel of it is gathered where a product needs it.
//
//   forward          y  (pixels, cout)      = patches (pixels, kh kw cin)    w (kh kw cin, cout)
//   backward_input   dx (pixels of x, cin)  = patches of dy                  w flipped, with cin and cout exchanged
//   backward_weight  dw (kh kw cin, cout)   = patches^T                      dy (pixels, cout)
//
// A linear layer is the case of a 1 x 1 kernel, whose patches are x itself: nothing is gathered then.
//
// Order of summation: y and dx take (a, b, c) in blocks of panel_depth, whatever pixels are computed together, so a picture's
// result is the same alone and in any batch. dw and dbias add up the pixels within fixed parts of the batch, then the parts.
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "kernels.h"
#include "parallel.h"

namespace pydiff {
namespace {

constexpr int64_t block_pixels = 16 * tile_rows;  // a gathered panel of block_pixels x panel_depth stays in the L2 cache

enum Slot { patch_slot, panel_slot, weight_slot, partial_slot };

// out[0, end - begin) = row[begin, end), zero outside [valid_begin, valid_end).
void copy_clipped(const float* base, int64_t row, int64_t begin, int64_t end, int64_t valid_begin, int64_t valid_end,
                  float* out) {
    const int64_t lo = std::clamp(valid_begin, begin, end), hi = std::clamp(valid_end, lo, end);
    std::fill(out, out + (lo - begin), 0.0f);
    if (lo < hi) std::memcpy(out + (lo - begin), base + (row + lo), static_cast<size_t>(hi - lo) * sizeof(float));
    std::fill(out + (hi - begin), out + (end - begin), 0.0f);
}

// patches (m, k): the rows of pixels [p, p + m), the columns of weights [k0, k0 + k).
void gather_patches(const Conv2dShape& s, const float* x, int64_t p, int64_t m, int64_t k0, int64_t k, float* patches) {
    const int64_t kernel_row = s.kw * s.cin;  // these columns lie side by side in x as well
    int64_t j = p % s.ow, i = p / s.ow % s.oh, n = p / s.ow / s.oh;
    for (int64_t r = 0; r < m; ++r) {
        const int64_t left = j * s.stride_w - s.pad_left;
        const int64_t valid_begin = std::max<int64_t>(0, -left) * s.cin, valid_end = (s.w - left) * s.cin;
        for (int64_t column = k0; column < k0 + k;) {
            const int64_t a = column / kernel_row, begin = column - a * kernel_row;
            const int64_t end = std::min(kernel_row, begin + k0 + k - column);
            const int64_t y = i * s.stride_h + a - s.pad_top;
            const bool inside = y >= 0 && y < s.h;
            copy_clipped(x, ((n * s.h + y) * s.w + left) * s.cin, begin, end, valid_begin, inside ? valid_end : 0, patches);
            patches += end - begin;
            column += end - begin;
        }
        if (++j == s.ow) {
            j = 0;
            if (++i == s.oh) i = 0, ++n;
        }
    }
}

// The patches are x itself, row by row.
bool pointwise(const Conv2dShape& s) {
    return s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_top == 0 && s.pad_left == 0 &&
           s.oh == s.h && s.ow == s.w;
}

// Where the output's pixels lie: (n, i, j) at y + n image + i row + j pixel.
struct Grid {
    float* y;
    int64_t image, row, pixel;
};

// Rows [p, p + m) of the product are pixels; those that lie at one distance from each other are one product.
template <class Product>
void for_each_run(const Conv2dShape& s, const Grid& grid, int64_t p, int64_t m, Product&& product) {
    const bool dense = grid.row == s.ow * grid.pixel && grid.image == s.oh * grid.row;
    for (int64_t begin = p; begin < p + m;) {
        const int64_t j = begin % s.ow, i = begin / s.ow % s.oh, n = begin / s.ow / s.oh;
        const int64_t end = dense ? p + m : std::min(p + m, begin - j + s.ow);
        product(begin - p, end - begin, grid.y + n * grid.image + i * grid.row + j * grid.pixel);
        begin = end;
    }
}

// The equation at the top for pixels [p, p + m) and columns [o, o + columns).
void correlate_block(const Conv2dShape& s, const float* x, const float* w, const float* bias, const Grid& grid, int64_t p,
                     int64_t m, int64_t o, int64_t columns) {
    const int64_t depth = s.kh * s.kw * s.cin;
    const bool gathered = !pointwise(s);
    float* buffer = scratch(patch_slot, block_pixels * panel_depth);
    float* panel = scratch(panel_slot, panel_depth * tile_columns);
    for (int64_t k0 = 0; k0 == 0 || k0 < depth; k0 += panel_depth) {
        const int64_t k = std::min(panel_depth, depth - k0), lda = gathered ? k : depth;
        const float* patches = gathered ? buffer : x + p * depth + k0;
        if (gathered) gather_patches(s, x, p, m, k0, k, buffer);
        for (int64_t o0 = o; o0 < o + columns; o0 += tile_columns) {
            const int64_t width = std::min<int64_t>(tile_columns, o + columns - o0);
            pack_panel(k, width, w + k0 * s.cout + o0, s.cout, panel);
            const Start start{bias ? bias + o0 : nullptr, k0 > 0};
            for_each_run(s, grid, p, m, [&](int64_t r, int64_t rows, float* y) {
                gemm_panel(Order::rows, rows, width, k, patches + r * lda, lda, panel, panel_width(width), start, y + o0,
                           grid.pixel);
            });
        }
    }
}

void correlate(const Conv2dShape& s, const float* x, const float* w, const float* bias, const Grid& grid) {
    const int64_t pixels = s.n * s.oh * s.ow, blocks = ceil_div(pixels, block_pixels);
    if (blocks == 0 || s.cout == 0) return;
    // Few pixels: cut the channels too, for something to share out. No bit depends on it.
    const int64_t groups = std::min(ceil_div(s.cout, tile_columns), ceil_div(16, blocks));
    const int64_t columns = ceil_div(ceil_div(s.cout, tile_columns), groups) * tile_columns;
    parallel_for(blocks * groups, 1, [&](int64_t item) {
        const int64_t p = item / groups * block_pixels, o = item % groups * columns;
        if (o < s.cout)
            correlate_block(s, x, w, bias, grid, p, std::min(block_pixels, pixels - p), o, std::min(columns, s.cout - o));
    });
}

// ---------------------------------------------------------------- backward_input
//
//   dx[n, p, q, c] = sum over a, b, o of dy[n, i, j, o] w[a, b, c, o],   i stride_h + a - pad_top = p, likewise j
//
// With p = phase + stride p', only the taps a = first + stride t of the same remainder meet this phase, and i = p' + offset - t:
// counted backwards, t' = taps - 1 - t, that is a correlation of stride 1 with `taps` taps and pad taps - 1 - offset.
struct Phase {
    int64_t pixels, first, taps, pad;
};

Phase phase_of(int64_t phase, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    const int64_t first = (phase + pad) % stride, offset = (phase + pad) / stride;
    const int64_t taps = first < kernel ? ceil_div(kernel - first, stride) : 0;
    return {phase < size ? ceil_div(size - phase, stride) : 0, first, taps, taps - 1 - offset};
}

// flipped[t', u', o, c] = w[a, b, c, o] for the taps of one phase.
void flip_weights(const Conv2dShape& s, const Phase& v, const Phase& h, const float* w, float* flipped) {
    constexpr int64_t strip = 64;
    const int64_t strips = ceil_div(s.cout, strip);
    parallel_for(v.taps * h.taps * strips, 1, [&](int64_t item) {
        const int64_t tap = item / strips, o = item % strips * strip;
        const int64_t a = v.first + s.stride_h * (v.taps - 1 - tap / h.taps);
        const int64_t b = h.first + s.stride_w * (h.taps - 1 - tap % h.taps);
        pack_transposed(s.cin, std::min(strip, s.cout - o), w + (a * s.kw + b) * s.cin * s.cout + o, s.cout,
                        flipped + (tap * s.cout + o) * s.cin, s.cin);
    });
}

// ---------------------------------------------------------------- backward_weight

// How the work is cut, by shapes only: the rows of dw in blocks, the pixels in parts whose sums are added at the end.
struct WeightPlan {
    int64_t depth, pixels, rows, row_blocks, part, parts;
};

WeightPlan weight_plan(const Conv2dShape& s) {
    constexpr int64_t items = 24;
    const int64_t depth = s.kh * s.kw * s.cin, pixels = s.n * s.oh * s.ow;
    const int64_t rows = std::clamp<int64_t>(ceil_div(ceil_div(depth, 16), tile_rows) * tile_rows, 2 * tile_rows, block_pixels);
    const int64_t row_blocks = std::max<int64_t>(1, ceil_div(depth, rows));
    const int64_t parts = std::clamp<int64_t>(pixels / 512, 1, ceil_div(items, row_blocks));
    const int64_t part = std::max<int64_t>(1, ceil_div(ceil_div(pixels, parts), panel_depth)) * panel_depth;
    return {depth, pixels, rows, row_blocks, part, ceil_div(pixels, part)};
}

// Rows [row, row + rows) of dw, and dbias if wanted, summed over pixels [begin, end).
void weight_block(const Conv2dShape& s, const float* dy, const float* x, int64_t row, int64_t rows, int64_t begin,
                  int64_t end, float* dw, float* dbias) {
    float* patches = scratch(patch_slot, block_pixels * panel_depth);
    float* panel = scratch(panel_slot, panel_depth * tile_columns);
    for (int64_t p = begin; p < end; p += panel_depth) {
        const int64_t k = std::min(panel_depth, end - p);
        gather_patches(s, x, p, k, row, rows, patches);
        for (int64_t o = 0; o < s.cout; o += tile_columns) {
            const int64_t width = std::min<int64_t>(tile_columns, s.cout - o);
            pack_panel(k, width, dy + p * s.cout + o, s.cout, panel);
            const Start start{nullptr, p > begin};
            gemm_panel(Order::columns, rows, width, k, patches, rows, panel, panel_width(width), start,
                       dw + row * s.cout + o, s.cout);
            // The bias is the weight of a channel that is 1 everywhere.
            constexpr float one = 1.0f;
            if (dbias) gemm_panel(Order::columns, 1, width, k, &one, 0, panel, panel_width(width), start, dbias + o, s.cout);
        }
    }
}

// out[e] = sum_part partial[part, e], in the order of the parts; `stride` floats from one part to the next.
void sum_parts(int64_t parts, const float* partial, int64_t stride, int64_t size, float* out) {
    constexpr int64_t chunk = 4096;
    parallel_for(ceil_div(size, chunk), 1, [&](int64_t item) {
        const int64_t begin = item * chunk, end = std::min(begin + chunk, size);
        std::copy(partial + begin, partial + end, out + begin);
        for (int64_t part = 1; part < parts; ++part)
            for (int64_t e = begin; e < end; ++e) out[e] += partial[part * stride + e];
    });
}

}  // namespace

void conv2d_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y) {
    correlate(s, x, w, bias, Grid{y, s.oh * s.ow * s.cout, s.ow * s.cout, s.cout});
}

void conv2d_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {
    float* flipped = scratch(weight_slot, static_cast<size_t>(s.kh * s.kw * s.cin * s.cout));
    for (int64_t phase_h = 0; phase_h < s.stride_h; ++phase_h) {
        for (int64_t phase_w = 0; phase_w < s.stride_w; ++phase_w) {
            const Phase v = phase_of(phase_h, s.h, s.kh, s.stride_h, s.pad_top);
            const Phase h = phase_of(phase_w, s.w, s.kw, s.stride_w, s.pad_left);
            flip_weights(s, v, h, w, flipped);
            const Conv2dShape phase{s.n, s.oh, s.ow, s.cout, v.taps, h.taps, s.cin, v.pixels, h.pixels, 1, 1, v.pad, h.pad};
            const Grid grid{dx + (phase_h * s.w + phase_w) * s.cin, s.h * s.w * s.cin, s.stride_h * s.w * s.cin,
                            s.stride_w * s.cin};
            correlate(phase, dy, flipped, nullptr, grid);
        }
    }
}

void conv2d_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw, float* dbias) {
    const WeightPlan plan = weight_plan(s);
    const int64_t dw_size = plan.depth * s.cout, size = dw_size + s.cout;
    if (plan.pixels == 0) {
        std::fill(dw, dw + dw_size, 0.0f);
        if (dbias) std::fill(dbias, dbias + s.cout, 0.0f);
        return;
    }
    // (1) the parts: each a dw and a dbias; a single part needs no place of its own.
    float* partial = plan.parts > 1 ? scratch(partial_slot, static_cast<size_t>(plan.parts * size)) : nullptr;
    parallel_for(plan.parts * plan.row_blocks, 1, [&](int64_t item) {
        const int64_t part = item / plan.row_blocks, row = item % plan.row_blocks * plan.rows;
        const int64_t begin = part * plan.part, end = std::min(begin + plan.part, plan.pixels);
        float* part_dw = partial ? partial + part * size : dw;
        float* part_dbias = !dbias || row > 0 ? nullptr : partial ? part_dw + dw_size : dbias;
        weight_block(s, dy, x, row, std::min(plan.rows, plan.depth - row), begin, end, part_dw, part_dbias);
    });
    if (!partial) return;
    // (2) their sum, in the order of the parts.
    sum_parts(plan.parts, partial, size, dw_size, dw);
    if (dbias) sum_parts(plan.parts, partial + dw_size, size, s.cout, dbias);
}

}  // namespace pydiff
