// conv2d as an implicit matrix product, for every kernel, stride and padding; conv2d.cpp has the equation.
//
// The matrix of patches has one row a pixel (n, i, j) of the output and one column a weight (a, b, c). It is never
// stored whole (S. Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", arXiv:1410.0759, 2014).
//
//   forward          y    (pixels, cout)       = patches (pixels, kh kw cin)    w (kh kw cin, cout)
//   backward_input   dx   (pixels of x, cin)   = patches of dy                  w flipped, with cin and cout exchanged
//   backward_weight  dw^T (cout, kh kw cin)    = dy^T (cout, pixels)            patches
//
// A patch is kh pieces of lines of x. Where whole pixels are multiplied, forward and backward_input, the pieces are read
// where they lie, in the picture or in a copy of it with zeros around; backward_weight gathers patches block by block.
//
// Order of summation: y and dx take (a, b, c) in blocks of at most panel_depth, whatever pixels are computed together;
// dw adds up the pixels of fixed parts of the batch, then the parts.
#include <algorithm>
#include <utility>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

constexpr int64_t block_pixels = 16 * tile_rows;  // block_pixels x panel_depth patches stay in the L2 cache

enum Slot { patch_slot, weight_slot, partial_slot };

void copy(const float* from, int64_t count, float* to) {
    int64_t e = 0;
    for (; e + simd_width <= count; e += simd_width) store(to + e, load(from + e));
    if (e < count) store_partial(to + e, load_partial(from + e, count - e), count - e);
}

// Columns [begin, end) of kernel row a, for pixels [p, p + m): rows of `pitch` floats. Within a kernel row the columns
// (b, c) lie side by side in x too, so each pixel is one copy, cut off where the picture ends.
void gather_kernel_row(const Conv2dShape& s, const float* x, int64_t p, int64_t m, int64_t a, int64_t begin,
                       int64_t end, float* patches, int64_t pitch) {
    int64_t j = p % s.ow, i = p / s.ow % s.oh, n = p / s.ow / s.oh;
    for (int64_t r = 0; r < m; ++r, patches += pitch) {
        const int64_t row = i * s.stride_h + a - s.pad_top, left = j * s.stride_w - s.pad_left;
        const int64_t right = row >= 0 && row < s.h ? s.w - left : 0;  // columns b in [-left, right) lie in the picture
        const int64_t lo = std::clamp(-left * s.cin, begin, end), hi = std::clamp(right * s.cin, lo, end);
        if (lo > begin) std::fill(patches, patches + (lo - begin), 0.0f);
        if (hi > lo) copy(x + (((n * s.h + row) * s.w + left) * s.cin + lo), hi - lo, patches + (lo - begin));
        if (end > hi) std::fill(patches + (hi - begin), patches + (end - begin), 0.0f);
        if (++j == s.ow) {
            j = 0;
            if (++i == s.oh) i = 0, ++n;
        }
    }
}

// patches (m, k): the rows of pixels [p, p + m), the columns of weights [k0, k0 + k).
void gather_patches(const Conv2dShape& s, const float* x, int64_t p, int64_t m, int64_t k0, int64_t k, float* patches,
                    int64_t pitch) {
    const int64_t kernel_row = s.kw * s.cin;
    for (int64_t column = k0; column < k0 + k;) {
        const int64_t a = column / kernel_row, begin = column % kernel_row;
        const int64_t end = std::min(kernel_row, begin + k0 + k - column);
        gather_kernel_row(s, x, p, m, a, begin, end, patches + (column - k0), pitch);
        column += end - begin;
    }
}

// The patches are x itself, pixel by pixel.
bool pointwise(const Conv2dShape& s) {
    return s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_top == 0 && s.pad_left == 0 &&
           s.oh == s.h && s.ow == s.w;
}

// ---------------------------------------------------------------- forward and backward_input

// Where the output's pixels lie: (n, i, j) at y + n image + i row + j pixel.
struct Grid {
    float* y;
    int64_t image, row, pixel;
};

// The weights' rows (a, b, c) in panels for gemm_panel, block by block of at most panel_depth rows, and within a block by
// tile_columns columns. A block is a part of one row of the kernel, or several whole ones: `runs` times k weights, which
// meet a line of x each.
struct Panels {
    struct Block {
        int64_t a, column, k, runs;  // rows (a, column) .. (a, column + k), and as many of the next kernel rows
    };
    int64_t cout, kh, kernel_row, cuts, k, runs;  // a row of the kernel in `cuts` parts of k, or `runs` whole ones
    float* data;

    explicit Panels(const Conv2dShape& s) : cout(s.cout), kh(s.kh), kernel_row(s.kw * s.cin) {
        cuts = std::max<int64_t>(1, ceil_div(kernel_row, panel_depth));
        k = ceil_div(kernel_row, cuts);
        runs = cuts > 1 ? 1 : std::clamp<int64_t>(panel_depth / std::max<int64_t>(k, 1), 1, std::max<int64_t>(kh, 1));
        data = scratch(weight_slot, static_cast<size_t>(kh * kernel_row * panel_width(cout)));
    }
    int64_t blocks() const { return std::max<int64_t>(1, ceil_div(kh, runs) * cuts); }  // one of no rows if there are none
    Block block(int64_t i) const {
        const int64_t a = i / cuts * runs, column = i % cuts * k;
        return {a, column, std::min(k, kernel_row - column), std::min(runs, kh - a)};
    }
    int64_t first(const Block& b) const { return b.a * kernel_row + b.column; }
    float* at(const Block& b, int64_t o) const { return data + first(b) * panel_width(cout) + b.k * b.runs * o; }
};

// Output pixels (i, j) .. (i + rows - 1, j + columns - 1) of one picture x, channels [o, end).
void correlate_block(const Conv2dShape& s, const float* x, const Panels& w, const float* bias, const Grid& grid,
                     int64_t i, int64_t rows, int64_t j, int64_t columns, int64_t o, int64_t end) {
    const Seen seen = see(s, x, i, rows, j, columns,
                          scratch(patch_slot, static_cast<size_t>(seen_floats(s, rows, columns))));
    for (int64_t n = 0; n < w.blocks(); ++n) {
        const Panels::Block block = w.block(n);
        const float* const from = seen.first + block.a * seen.pitch + block.column;
        for (int64_t o0 = o; o0 < end; o0 += tile_columns) {
            const int64_t channels = std::min<int64_t>(tile_columns, end - o0);
            for (int64_t r = 0; r < rows; ++r)
                gemm_panel(Order::rows, columns, channels, block.k, from + r * s.stride_h * seen.pitch,
                           s.stride_w * s.cin, w.at(block, o0), panel_width(channels),
                           Start{bias ? bias + o0 : nullptr, n > 0}, grid.y + (i + r) * grid.row + j * grid.pixel + o0,
                           grid.pixel, {block.runs, seen.pitch});
        }
    }
}

// The equation of conv2d.cpp, y written to `grid`. pack(first, count, o, columns, panel) lays down the weights' rows
// [first, first + count) and columns [o, o + columns).
template <class Pack>
void correlate(Conv2dShape s, const float* x, const Pack& pack, const float* bias, Grid grid) {
    if (s.n * s.oh * s.ow * s.cout == 0) return;
    if (pointwise(s) && grid.row == s.ow * grid.pixel && grid.image == s.oh * grid.row) {  // all pixels are one line
        s.w = s.ow = s.n * s.h * s.w;
        s.n = s.h = s.oh = 1;
    }
    const Panels w(s);
    const int64_t tiles = ceil_div(s.cout, tile_columns);
    parallel_for(w.blocks() * tiles, 4, [&](int64_t item) {
        const Panels::Block block = w.block(item / tiles);
        const int64_t o = item % tiles * tile_columns;
        pack(w.first(block), block.k * block.runs, o, std::min<int64_t>(tile_columns, s.cout - o), w.at(block, o));
    });
    // With few blocks of pixels the channels are shared out too. No bit of the result depends on how it is cut.
    const int64_t columns = std::min(s.ow, block_pixels), across = ceil_div(s.ow, columns);
    const int64_t rows = std::clamp<int64_t>(block_pixels / columns, 1, ceil_div(s.n * s.oh * across, 16));
    const int64_t down = ceil_div(s.oh, rows), blocks = s.n * down * across;
    const int64_t groups = std::min(tiles, ceil_div(16, blocks)), channels = ceil_div(tiles, groups) * tile_columns;
    parallel_for(blocks * groups, 1, [&](int64_t item) {
        const int64_t block = item / groups, o = item % groups * channels, picture = block / across / down;
        const int64_t i = block / across % down * rows, j = block % across * columns;
        const Grid part{grid.y + picture * grid.image, grid.image, grid.row, grid.pixel};
        correlate_block(s, x + picture * s.h * s.w * s.cin, w, bias, part, i, std::min(rows, s.oh - i), j,
                        std::min(columns, s.ow - j), o, std::min(o + channels, s.cout));
    });
}

// backward_input:   dx[n, p, q, c] = sum over a, b, o of dy[n, i, j, o] w[a, b, c, o],   i stride_h + a - pad_top = p
//
// and likewise j. For p = phase + stride p', only the taps a = first + stride t meet it, and i = p' + offset - t.
// Counted backwards, t' = taps - 1 - t, that is a correlation of stride 1 with `taps` taps and pad = taps - 1 - offset.
struct Phase {
    int64_t pixels, first, taps, pad;
};

Phase phase_of(int64_t phase, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    const int64_t first = (phase + pad) % stride, offset = (phase + pad) / stride;
    const int64_t taps = first < kernel ? ceil_div(kernel - first, stride) : 0;
    return {ceil_div(size - phase, stride), first, taps, taps - 1 - offset};
}

// Rows [k0, k0 + k), which are (t', u', o), and columns [c, c + columns) of the flipped weights w[a, b, c, o].
void pack_flipped(const Conv2dShape& s, const Phase& v, const Phase& h, const float* w, int64_t k0, int64_t k,
                  int64_t c, int64_t columns, float* panel) {
    const int64_t width = panel_width(columns);
    for (int64_t row = k0; row < k0 + k;) {
        const int64_t tap = row / s.cout, o = row % s.cout, count = std::min(s.cout - o, k0 + k - row);
        const int64_t a = v.first + s.stride_h * (v.taps - 1 - tap / h.taps);
        const int64_t b = h.first + s.stride_w * (h.taps - 1 - tap % h.taps);
        pack_transposed(columns, count, w + ((a * s.kw + b) * s.cin + c) * s.cout + o, s.cout, panel, width);
        panel += count * width;
        row += count;
    }
}

// ---------------------------------------------------------------- backward_weight

// How the work is cut, by shapes only: dw^T (cout, depth) into blocks of rows and columns, and the pixels into parts
// whose sums are added at the end.
struct WeightPlan {
    int64_t depth, pixels, rows, row_blocks, columns, column_blocks, part, parts;
};

WeightPlan weight_plan(const Conv2dShape& s) {
    constexpr int64_t items = 32, most_columns = 192;  // panel_depth x most_columns patches stay in the L2 cache
    constexpr int64_t most_floats = int64_t{1} << 21;  // of all parts together
    WeightPlan plan{s.kh * s.kw * s.cin, s.n * s.oh * s.ow, s.cout, 1, 0, 0, 0, 0};
    const int64_t size = std::max<int64_t>(1, plan.depth * s.cout);
    const int64_t most_parts =
        std::min(items / std::max<int64_t>(1, ceil_div(plan.depth, most_columns)), most_floats / size);
    plan.part = std::max(ceil_div(plan.pixels, std::max<int64_t>(1, most_parts)), 4 * panel_depth);
    plan.parts = ceil_div(plan.pixels, plan.part);
    const int64_t tiles = ceil_div(plan.depth * plan.parts, items * tile_columns);
    plan.columns = std::clamp<int64_t>(tiles * tile_columns, tile_columns, most_columns);
    plan.column_blocks = ceil_div(plan.depth, plan.columns);
    const int64_t groups = ceil_div(items / 2, std::max<int64_t>(1, plan.parts * plan.column_blocks));
    plan.rows = std::max<int64_t>(4, ceil_div(ceil_div(s.cout, groups), tile_rows)) * tile_rows;
    plan.row_blocks = ceil_div(s.cout, plan.rows);
    return plan;
}

// Rows [o, o + rows) and columns [k0, k0 + columns) of dw^T (cout, depth), summed over pixels [begin, end).
void weight_block(const Conv2dShape& s, const float* dy, const float* x, int64_t o, int64_t rows, int64_t k0,
                  int64_t columns, int64_t begin, int64_t end, float* dw_t, int64_t depth) {
    const int64_t pitch = panel_width(columns);
    float* patches = scratch(patch_slot, static_cast<size_t>(panel_depth * pitch));
    std::fill(patches, patches + panel_depth * pitch, 0.0f);  // for the columns that fill up the last vector
    for (int64_t p = begin; p < end; p += panel_depth) {
        const int64_t pixels = std::min(panel_depth, end - p);
        gather_patches(s, x, p, pixels, k0, columns, patches, pitch);
        for (int64_t k = 0; k < columns; k += tile_columns)
            gemm_panel(Order::columns, rows, std::min<int64_t>(tile_columns, columns - k), pixels, dy + p * s.cout + o,
                       s.cout, patches + k, pitch, Start{nullptr, p > begin}, dw_t + o * depth + k0 + k, depth);
    }
}

}  // namespace

void direct_forward(const Conv2dShape& s, const float* x, const float* w, const float* bias, float* y) {
    const auto pack = [&](int64_t k0, int64_t k, int64_t o, int64_t columns, float* panel) {
        pack_panel(k, columns, w + k0 * s.cout + o, s.cout, panel);
    };
    correlate(s, x, pack, bias, Grid{y, s.oh * s.ow * s.cout, s.ow * s.cout, s.cout});
}

void direct_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {
    for (int64_t phase_h = 0; phase_h < std::min(s.stride_h, s.h); ++phase_h) {
        for (int64_t phase_w = 0; phase_w < std::min(s.stride_w, s.w); ++phase_w) {
            const Phase v = phase_of(phase_h, s.h, s.kh, s.stride_h, s.pad_top);
            const Phase h = phase_of(phase_w, s.w, s.kw, s.stride_w, s.pad_left);
            const auto pack = [&](int64_t k0, int64_t k, int64_t c, int64_t columns, float* panel) {
                pack_flipped(s, v, h, w, k0, k, c, columns, panel);
            };
            float* first = dx + (phase_h * s.w + phase_w) * s.cin;
            correlate({s.n, s.oh, s.ow, s.cout, v.taps, h.taps, s.cin, v.pixels, h.pixels, 1, 1, v.pad, h.pad}, dy,
                      pack, nullptr, {first, s.h * s.w * s.cin, s.stride_h * s.w * s.cin, s.stride_w * s.cin});
        }
    }
}

void direct_backward_weight(const Conv2dShape& shape, const float* dy, const float* x, float* dw) {
    // Patches are copied, dy is not. For a linear layer, whose patches are x, the two may change places: dw is x^T dy,
    // and the narrower one is copied.
    const bool exchanged = pointwise(shape) && shape.cout < shape.cin;
    Conv2dShape s = shape;
    if (exchanged) {
        std::swap(s.cin, s.cout);
        std::swap(x, dy);
    }
    const WeightPlan plan = weight_plan(s);
    const int64_t depth = plan.depth, size = depth * s.cout;
    // (1) dw^T (cout, depth) of each part of the pixels
    float* partial = scratch(partial_slot, static_cast<size_t>(plan.parts * size));
    const int64_t blocks = plan.row_blocks * plan.column_blocks;
    parallel_for(plan.parts * blocks, 1, [&](int64_t item) {
        const int64_t part = item / blocks, begin = part * plan.part;
        const int64_t o = item % plan.row_blocks * plan.rows,
                      k0 = item / plan.row_blocks % plan.column_blocks * plan.columns;
        weight_block(s, dy, x, o, std::min(plan.rows, s.cout - o), k0, std::min(plan.columns, depth - k0), begin,
                     std::min(begin + plan.part, plan.pixels), partial + part * size, depth);
    });
    // (2) their sum, by strips of columns; transposed on the way out
    constexpr int64_t strip = 64;
    parallel_for(ceil_div(depth, strip), 1, [&](int64_t item) {
        const int64_t k0 = item * strip, count = std::min(strip, depth - k0);
        for (int64_t o = 0; o < s.cout; ++o) {
            sum_parts(plan.parts, size, count, partial + o * depth + k0);
            if (exchanged) copy(partial + o * depth + k0, count, dw + o * depth + k0);
        }
        if (!exchanged) pack_transposed(s.cout, count, partial + k0, depth, dw + k0 * s.cout, s.cout);
    });
}

}  // namespace pydiff
