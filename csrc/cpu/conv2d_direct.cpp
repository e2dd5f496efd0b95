// conv2d as an implicit matrix product, for every kernel, stride and padding: forward and the gradient of x; conv2d.cpp
// has the equation, conv2d_direct_weight.cpp the gradient of w.
//
// The matrix of patches has one row a pixel (n, i, j) of the output and one column a weight (a, b, c). It is never
// stored (S. Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", arXiv:1410.0759, 2014).
//
//   forward          y    (pixels, cout)       = patches (pixels, kh kw cin)    w (kh kw cin, cout)
//   backward_input   dx   (pixels of x, cin)   = patches of dy                  w flipped, with cin and cout exchanged
//
// A patch is kh pieces of lines of x, which are read where they lie: in the image, or in a copy with zeros around it.
//
// Order of summation: (a, b, c) in blocks of at most panel_depth, whatever pixels and channels are computed together.
#include <algorithm>
#include <vector>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"

namespace pydiff {
namespace {

enum Slot { seen_slot, weight_slot };

// As many weights, 1 MB, every thread packs for itself: reading what another core has just written takes longer.
constexpr int64_t own_weights = 1 << 18;

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
    int64_t begin = 0;                            // where they lie in a thread's memory for weights

    explicit Panels(const Conv2dShape& s) : cout(s.cout), kh(s.kh), kernel_row(s.kw * s.cin) {
        cuts = std::max<int64_t>(1, ceil_div(kernel_row, panel_depth));
        k = ceil_div(kernel_row, cuts);
        runs = cuts > 1 ? 1 : std::clamp<int64_t>(panel_depth / std::max<int64_t>(k, 1), 1, std::max<int64_t>(kh, 1));
    }
    int64_t floats() const { return kh * kernel_row * panel_width(cout); }
    int64_t blocks() const { return std::max<int64_t>(1, ceil_div(kh, runs) * cuts); }  // one of no rows if there are none
    Block block(int64_t i) const {
        const int64_t a = i / cuts * runs, column = i % cuts * k;
        return {a, column, std::min(k, kernel_row - column), std::min(runs, kh - a)};
    }
    int64_t first(const Block& b) const { return b.a * kernel_row + b.column; }
    float* at(float* memory, const Block& b, int64_t o) const {
        return memory + begin + first(b) * panel_width(cout) + b.k * b.runs * o;
    }
};

// One correlation, the equation of conv2d.cpp, written to `grid`. pack(first, count, o, columns, panel) lays down the
// weights' rows [first, first + count) and columns [o, o + columns).
template <class Pack>
struct Correlation {
    Conv2dShape s;
    Pack pack;
    Grid grid;
};

// The panels of `columns` columns of several correlations, one behind the other in the same memory.
struct AllPanels {
    std::vector<Panels> of;
    int64_t floats = 0, most_blocks = 0;

    template <class Pack>
    AllPanels(const std::vector<Correlation<Pack>>& parts, int64_t columns) {
        for (const auto& part : parts) {
            Conv2dShape s = part.s;
            s.cout = columns;
            of.emplace_back(s);
            of.back().begin = floats;
            floats += of.back().floats();
            most_blocks = std::max(most_blocks, of.back().blocks());
        }
    }
    float* memory() const { return scratch(weight_slot, static_cast<size_t>(floats)); }  // the calling thread's
};

// Every correlation's columns [o, o + columns) as panels in `memory`. On all threads, unless it is called in a region.
template <class Pack>
void pack_all(const std::vector<Correlation<Pack>>& parts, const AllPanels& w, int64_t o, int64_t columns,
              float* memory) {
    const int64_t tiles = ceil_div(columns, tile_columns);
    parallel_for(static_cast<int64_t>(parts.size()) * w.most_blocks * tiles, 1, [&](int64_t item) {
        const size_t p = static_cast<size_t>(item / tiles / w.most_blocks);
        const int64_t i = item / tiles % w.most_blocks, from = item % tiles * tile_columns;
        if (i >= w.of[p].blocks()) return;
        const Panels::Block block = w.of[p].block(i);
        parts[p].pack(w.of[p].first(block), block.k * block.runs, o + from,
                      std::min<int64_t>(tile_columns, columns - from), w.of[p].at(memory, block, from));
    });
}

// Output pixels (i, j) .. (i + rows - 1, j + columns - 1) of one image, as far as there are such; channels [o, end).
// x is what tap (0, 0) of pixel (i, j) meets, in lines of x_pitch floats.
void correlate_block(const Conv2dShape& s, const float* x, int64_t x_pitch, const Panels& w, float* memory,
                     const float* bias, const Grid& grid, int64_t i, int64_t rows, int64_t j, int64_t columns,
                     int64_t o, int64_t end) {
    rows = std::min(rows, s.oh - i);
    columns = std::min(columns, s.ow - j);
    for (int64_t n = 0; n < w.blocks(); ++n) {
        const Panels::Block block = w.block(n);
        const float* const from = x + block.a * x_pitch + block.column;
        for (int64_t o0 = o; o0 < end; o0 += tile_columns) {
            const int64_t channels = std::min<int64_t>(tile_columns, end - o0);
            for (int64_t r = 0; r < rows; ++r)
                gemm_panel(Order::rows, columns, channels, block.k, from + r * s.stride_h * x_pitch,
                           s.stride_w * s.cin, w.at(memory, block, o0), panel_width(channels),
                           Start{bias ? bias + o0 : nullptr, n > 0}, grid.y + (i + r) * grid.row + j * grid.pixel + o0,
                           grid.pixel, {block.runs, x_pitch});
        }
    }
}

// y += add for those pixels and channels, while the block of y is in the cache. `at`: from y or add to pixel (i, j).
void add_block(const Grid& grid, const float* add, int64_t at, int64_t lines, int64_t columns, int64_t o, int64_t end) {
    for (int64_t r = 0; r < lines; ++r)
        for (int64_t q = 0; q < columns; ++q) {
            const int64_t pixel = at + r * grid.row + q * grid.pixel;
            for (int64_t c = o; c < end; ++c) grid.y[pixel + c] += add[pixel + c];
        }
}

// The correlation that sees whatever one of several sees of the same x; they have their strides in common.
template <class Correlations>
Conv2dShape all_of(const Correlations& parts) {
    Conv2dShape all = parts[0].s;
    for (const auto& part : parts) {
        all.pad_top = std::max(all.pad_top, part.s.pad_top);
        all.pad_left = std::max(all.pad_left, part.s.pad_left);
        all.oh = std::max(all.oh, part.s.oh);
        all.ow = std::max(all.ow, part.s.ow);
    }
    for (const auto& part : parts) {
        all.kh = std::max(all.kh, part.s.kh + all.pad_top - part.s.pad_top);
        all.kw = std::max(all.kw, part.s.kw + all.pad_left - part.s.pad_left);
    }
    return all;
}

// Several correlations of the same x, with the same channels. A block of pixels is computed for all of them, so that
// what they see of x comes from memory, and is copied at the image's edge, once. Only one alone adds something.
template <class Pack>
void correlate(std::vector<Correlation<Pack>> parts, const float* x, const Addends& addends) {
    const Conv2dShape all = all_of(parts);
    const int64_t cout = all.cout;
    if (all.n * all.oh * all.ow * cout == 0) return;
    // A block's pixels stay in the L2 cache with what they see. No bit of the result depends on how it is cut.
    constexpr int64_t block_pixels = 16 * tile_rows;
    const int64_t columns = std::min(all.ow, block_pixels), across = ceil_div(all.ow, columns);
    const int64_t most_rows = std::clamp<int64_t>(block_pixels / columns, 1, ceil_div(all.n * all.oh * across, 16));
    const int64_t down = ceil_div(all.oh, most_rows), rows = ceil_div(all.oh, down), blocks = all.n * down * across;
    const auto compute = [&](int64_t block, const AllPanels& w, float* memory, int64_t shift, int64_t o,
                             int64_t end) {
        const int64_t n = block / across / down, i = block / across % down * rows, j = block % across * columns;
        const int64_t lines = std::min(rows, all.oh - i), width = std::min(columns, all.ow - j);
        const Seen seen = see(all, x + n * all.h * all.w * all.cin, i, lines, j, width,
                              scratch(seen_slot, static_cast<size_t>(seen_floats(all, lines, width))));
        for (size_t p = 0; p < parts.size(); ++p) {
            const Conv2dShape& s = parts[p].s;
            const Grid& to = parts[p].grid;
            const int64_t below = all.pad_top - s.pad_top, right = all.pad_left - s.pad_left;
            correlate_block(s, seen.first + below * seen.pitch + right * s.cin, seen.pitch, w.of[p],
                            memory, addends.bias ? addends.bias + n * addends.bias_step + shift : nullptr,
                            {to.y + n * to.image + shift, to.image, to.row, to.pixel}, i, lines, j, width, o, end);
            const int64_t at = n * to.image + i * to.row + j * to.pixel;
            if (addends.add) add_block(to, addends.add, at, lines, width, shift + o, shift + end);
        }
    };
    // With few pixels the weights are most of the work: each item packs its own columns, for all pixels.
    if (all.n * all.oh * all.ow <= 2 * block_pixels) {
        const int64_t width = std::min<int64_t>(panel_width(ceil_div(cout, 8)), tile_columns);
        parallel_for(ceil_div(cout, width), 1, [&](int64_t item) {
            const int64_t o = item * width, channels = std::min(width, cout - o);
            const AllPanels w(parts, channels);
            float* const memory = w.memory();
            pack_all(parts, w, o, channels, memory);
            for (int64_t block = 0; block < blocks; ++block) compute(block, w, memory, o, 0, channels);
        });
        return;
    }
    const AllPanels w(parts, cout);
    const int64_t tiles = ceil_div(cout, tile_columns);
    const int64_t together = std::clamp<int64_t>(tiles * blocks / 16, 1, tiles);
    const int64_t channels = together * tile_columns, groups = ceil_div(tiles, together);
    const auto compute_part = [&](int64_t item, float* memory) {
        const int64_t o = item % groups * channels;
        compute(item / groups, w, memory, 0, o, std::min(o + channels, cout));
    };
    if (w.floats <= own_weights) {
        parallel_for_prepared(
            blocks * groups, [&] { pack_all(parts, w, 0, cout, w.memory()); },
            [&](int64_t item) { compute_part(item, w.memory()); });
        return;
    }
    float* const memory = w.memory();
    pack_all(parts, w, 0, cout, memory);
    parallel_for(blocks * groups, 1, [&](int64_t item) { compute_part(item, memory); });
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

}  // namespace

void direct_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y) {
    const auto pack = [&](int64_t k0, int64_t k, int64_t o, int64_t columns, float* panel) {
        pack_panel(k, columns, w + k0 * s.cout + o, s.cout, panel);
    };
    correlate<decltype(pack)>({{s, pack, Grid{y, s.oh * s.ow * s.cout, s.ow * s.cout, s.cout}}}, x, addends);
}

void direct_backward_input(const Conv2dShape& s, const float* dy, const float* w, float* dx) {
    const auto phase = [&](int64_t phase_h, int64_t phase_w) {
        const Phase v = phase_of(phase_h, s.h, s.kh, s.stride_h, s.pad_top);
        const Phase h = phase_of(phase_w, s.w, s.kw, s.stride_w, s.pad_left);
        const auto pack = [&s, v, h, w](int64_t k0, int64_t k, int64_t c, int64_t columns, float* panel) {
            pack_flipped(s, v, h, w, k0, k, c, columns, panel);
        };
        const Conv2dShape shape{s.n, s.oh, s.ow, s.cout, v.taps, h.taps, s.cin, v.pixels, h.pixels, 1, 1, v.pad, h.pad};
        float* const first = dx + (phase_h * s.w + phase_w) * s.cin;
        const Grid grid{first, s.h * s.w * s.cin, s.stride_h * s.w * s.cin, s.stride_w * s.cin};
        return Correlation<decltype(pack)>{shape, pack, grid};
    };
    if (s.n * s.h * s.w == 0) return;
    std::vector<decltype(phase(0, 0))> phases;
    for (int64_t i = 0; i < std::min(s.stride_h, s.h); ++i)
        for (int64_t j = 0; j < std::min(s.stride_w, s.w); ++j) phases.push_back(phase(i, j));
    correlate(std::move(phases), dy, {});
}

}  // namespace pydiff
