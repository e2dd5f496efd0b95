// conv2d with 3 x 3 kernels and stride 1 by Winograd's F(4 x 4, 3 x 3); winograd.h has the transforms and the papers.
//
// The output is cut into tiles of 4 x 4 pixels, each of which needs 6 x 6 of the input. With p = 0..35 the point of the
// transformed domain, t the tile, c and o the channels:
//
//   V[p, t, c] = B^T d B      (each tile's input; zero outside the image)
//   U[p, c, o] = G g G^T      (each pair of channels' weights)
//   M[p, t, o] = sum_c V[p, t, c] U[p, c, o]           36 matrix products
//   y          = A^T M A      (+ what is added)
//
// The weight gradient is the adjoint, with W[p, t, o] = A dy A^T:
//
//   dU[p, c, o] = sum_t V[p, t, c] W[p, t, o]
//   dw          = G^T dU G
//
// With few channels U is transformed first and as a whole, and V bit by bit where it is used, so that it stays in a cache;
// otherwise U bit by bit. Unless U is large, every thread makes it for itself: reading what another core has just written
// takes longer than making it again. dU is made in blocks of points and channels, each of which stays in a cache while its tiles are added up.
//
// backward_input is a correlation of dy with the flipped weights. An upsampled image is never made: windows of it are
// read from the small one, and its gradient's pixels are added up four by four as they leave the transform.
//
// Tiles are cut within an image, and M's sum over c has one order, so an image's result is the same alone and in any
// batch; dU adds up the tiles of fixed parts of the batch. An infinity or NaN in x reaches every pixel of the tiles that
// see it, as a NaN.
#include <algorithm>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"
#include "winograd.h"

namespace pydiff {
namespace {

using winograd::Images;
using winograd::Planes;
using winograd::Tiles;

constexpr int64_t points = 36;
constexpr int64_t block_tiles = 2 * tile_rows;    // V and M of a block stay in the L2 cache
constexpr int64_t own_weights = 256 * 128;        // U of fewer, in every thread's copy, stays in the L3 cache
constexpr int64_t whole_weights = 512 * 512;      // U of more is never made as a whole: it has 36 times as many floats
constexpr int64_t few_blocks = 16;                // fewer are cut smaller, so that no thread waits long for the last
constexpr int64_t most_tiles = 128;               // of a pass over the weights: V of 512 channels takes 9 MB
constexpr int64_t column_panel = std::min(tile_columns, 32);

enum Slot { zero_slot, v_slot, m_slot, u_slot, g_slot };

const float* zeros(int64_t count) {
    float* zero = scratch(zero_slot, static_cast<size_t>(count));
    std::fill(zero, zero + count, 0.0f);
    return zero;
}

// ---------------------------------------------------------------- forward and backward_input

// The weights of one correlation: (3, 3, cin, cout), or `flipped` from the (3, 3, cout, cin) of the forward pass.
struct Weights {
    const float* w;
    bool flipped;

    // A tap's matrix (cin, cout): rows [k, k + rows), columns [o, o + columns), as gemm_panel wants them.
    void pack(const Conv2dShape& s, int64_t tap, int64_t k, int64_t rows, int64_t o, int64_t columns,
              float* panel) const {
        const float* matrix = w + (flipped ? 8 - tap : tap) * s.cin * s.cout;
        if (flipped)
            pack_transposed(columns, rows, matrix + o * s.cin + k, s.cin, panel, panel_width(columns));
        else
            pack_panel(rows, columns, matrix + k * s.cout + o, s.cout, panel);
    }
};

// U as panels for gemm_panel: point by point, and within a point by tile_columns columns.
struct TransformedWeights {
    int64_t cin, plane;
    float* data;
    float* at(int64_t p, int64_t o) const { return data + p * plane + o * cin; }
};

// Rows [k, k + rows), columns [o, o + columns) of the nine taps, one matrix after the other.
const float* pack_taps(const Conv2dShape& s, const Weights& weights, int64_t k, int64_t rows, int64_t o,
                       int64_t columns) {
    const int64_t size = rows * panel_width(columns);
    float* g = scratch(g_slot, static_cast<size_t>(9 * size));
    for (int64_t tap = 0; tap < 9; ++tap) weights.pack(s, tap, k, rows, o, columns, g + tap * size);
    return g;
}

// Rows [k, k + rows), columns [o, o + columns) of U.
void transform_weights(const Conv2dShape& s, const Weights& weights, int64_t k, int64_t rows, int64_t o,
                       int64_t columns, const TransformedWeights& u) {
    const int64_t width = panel_width(columns), size = rows * width;
    const float* g = pack_taps(s, weights, k, rows, o, columns);
    for (int64_t e = 0; e < size; e += simd_width)
        winograd::transform<winograd::Weight>(
            [&](int i, int j) { return load(g + (3 * i + j) * size + e); },
            [&](int i, int j, vfloat v) { store(u.at(6 * i + j, o) + k * width + e, v); });
}

// Where a correlation's results go: y (n, oh, ow, cout) with what is added; or, if `down` is 2, of every 2 x 2 pixels
// their sum, y (n, oh / 2, ow / 2, cout).
struct Target {
    Addends addends;
    int64_t down;
    float* y;
};

// One tile's pixels of y, channels [e, e + count) behind `o`: those of `m`, a function of (row, column), and what is added.
template <class Read>
void write_tile(const Conv2dShape& s, const Tiles& tiles, int64_t tile, const Read& m, int64_t o, int64_t count,
                const Target& to) {
    const int64_t n = tile / tiles.columns / tiles.rows;
    const int64_t i = 4 * (tile / tiles.columns % tiles.rows), j = 4 * (tile % tiles.columns);
    const int64_t rows = std::min<int64_t>(4, s.oh - i), width = std::min<int64_t>(4, s.ow - j);
    const int64_t corner = ((n * s.oh + i) * s.ow + j) * s.cout + o;
    const float *bias = to.addends.bias, *add = to.addends.add;
    const vfloat b = bias ? load_upto(bias + n * to.addends.bias_step + o, count) : vfloat{};
    winograd::transform<winograd::Output>(m, [&](int r, int q, vfloat v) {
        if (r >= rows || q >= width) return;
        const int64_t at = corner + (r * s.ow + q) * s.cout;
        store_upto(to.y + at, add ? v + b + load_upto(add + at, count) : v + b, count);
    });
}

// The same for sums of 2 x 2 pixels.
template <class Read>
void write_sums(const Conv2dShape& s, const Tiles& tiles, int64_t tile, const Read& m, int64_t o, int64_t count,
                const Target& to) {
    const int64_t height = s.oh / 2, across = s.ow / 2, n = tile / tiles.columns / tiles.rows;
    const int64_t i = 2 * (tile / tiles.columns % tiles.rows), j = 2 * (tile % tiles.columns);
    vfloat out[4][4];
    winograd::transform<winograd::Output>(m, [&](int r, int q, vfloat v) { out[r][q] = v; });
    for (int64_t r = 0; r < std::min<int64_t>(2, height - i); ++r)
        for (int64_t q = 0; q < std::min<int64_t>(2, across - j); ++q) {
            const vfloat *above = out[2 * r] + 2 * q, *below = above + 4;
            store_upto(to.y + ((n * height + i + r) * across + j + q) * s.cout + o,
                       (above[0] + above[1]) + (below[0] + below[1]), count);
        }
}

// The results of tiles [first, first + count), channels [o, o + columns), from M.
void transform_output(const Conv2dShape& s, const Tiles& tiles, const Planes& m, int64_t first, int64_t count,
                      int64_t o, int64_t columns, const Target& to) {
    for (int64_t t = 0; t < count; ++t)
        for (int64_t e = 0; e < columns; e += simd_width) {
            const auto read = [&](int r, int q) { return load(m.at(6 * r + q, t) + e); };
            if (to.down == 2)
                write_sums(s, tiles, first + t, read, o + e, columns - e, to);
            else
                write_tile(s, tiles, first + t, read, o + e, columns - e, to);
        }
}

// Tiles [first, first + count), channels [o, end), from U.
void correlate_block(const Conv2dShape& s, const Tiles& tiles, const Images& x, const TransformedWeights& u,
                     int64_t first, int64_t count, int64_t o, int64_t end, const Target& to) {
    const int64_t v_pitch = panel_width(s.cin), steps = points * ceil_div(end - o, tile_columns);
    const Planes v(scratch(v_slot, Planes::size(points, block_tiles, v_pitch)), block_tiles, v_pitch);
    float* memory = scratch(m_slot, Planes::size(points, block_tiles, tile_columns));
    winograd::transform_windows<winograd::Input>(x, tiles, first, count, 0, s.cin, zeros(s.cin), v);
    // This thread's next block is likely the one behind this one.
    winograd::Fetch next(x, tiles, first + count, count, winograd::Input::in, steps);
    winograd::Fetch out({to.y, s.oh, s.ow, s.cout, 0, 0, to.down}, tiles, first, count, winograd::Output::out, points);
    for (; o < end; o += tile_columns) {
        const int64_t columns = std::min<int64_t>(tile_columns, end - o), width = panel_width(columns);
        const Planes m(memory, block_tiles, width);
        for (int64_t p = 0; p < points; ++p) {
            gemm_panel(Order::rows, count, width, s.cin, v.at(p, 0), v.pitch, u.at(p, o), width, {}, m.at(p, 0), width);
            next.step();
            out.step();
        }
        transform_output(s, tiles, m, first, count, o, columns, to);
    }
}

// Tiles shared out: all of U first, then blocks of tiles, each of which transforms its own part of x. No bit of the
// result depends on how the tiles are cut, nor on who makes U.
void correlate_tiles(const Conv2dShape& s, const Tiles& tiles, const Images& x, const Weights& w, const Target& to) {
    constexpr int64_t strip = 16;
    const int64_t panels = ceil_div(s.cout, tile_columns), strips = ceil_div(s.cin, strip);
    const int64_t plane = s.cin * panel_width(s.cout) + Planes::gap;
    const auto room = [&] { return scratch(u_slot, static_cast<size_t>(points * plane)); };
    const auto transform_part = [&](int64_t part, const TransformedWeights& u) {
        const int64_t k = part / panels * strip, o = part % panels * tile_columns;
        transform_weights(s, w, k, std::min(strip, s.cin - k), o, std::min<int64_t>(tile_columns, s.cout - o), u);
    };
    if (s.cin * s.cout < own_weights) {
        const int64_t size = tiles.count < few_blocks * block_tiles ? tile_rows : block_tiles;
        const auto transform_all = [&] {
            const TransformedWeights own{s.cin, plane, room()};
            for (int64_t part = 0; part < strips * panels; ++part) transform_part(part, own);
        };
        parallel_for_prepared(ceil_div(tiles.count, size), transform_all, [&](int64_t item) {
            const TransformedWeights own{s.cin, plane, room()};
            const int64_t first = item * size;
            correlate_block(s, tiles, x, own, first, std::min(size, tiles.count - first), 0, s.cout, to);
        });
        return;
    }
    const TransformedWeights u{s.cin, plane, room()};
    parallel_for(strips * panels, 1, [&](int64_t part) { transform_part(part, u); });
    // With few blocks of tiles the channels are shared out too.
    const int64_t blocks = ceil_div(tiles.count, block_tiles);
    const int64_t columns = ceil_div(panels, std::min(panels, ceil_div(few_blocks, blocks))) * tile_columns;
    const int64_t groups = ceil_div(s.cout, columns);
    parallel_for(blocks * groups, 1, [&](int64_t item) {
        const int64_t first = item / groups * block_tiles, o = item % groups * columns;
        correlate_block(s, tiles, x, u, first, std::min(block_tiles, tiles.count - first), o,
                        std::min(o + columns, s.cout), to);
    });
}

// The products of `count` tiles with the points of U in a pair's two rows, of the columns whose taps are g: the terms of
// input channels [k, k + rows), added to those before them.
template <int pair>
void multiply_pair(int64_t k, int64_t rows, const float* g, const Planes& v, int64_t count, int64_t width,
                   const Planes& m) {
    const int64_t size = rows * width;
    const int64_t plane = size + Planes::gap;
    const TransformedWeights u{rows, plane, scratch(u_slot, static_cast<size_t>(12 * plane))};
    for (int64_t e = 0; e < size; e += simd_width)
        winograd::transform_rows<winograd::Weight, pair>(
            [&](int i, int j) { return load(g + (3 * i + j) * size + e); },
            [&](int half, int j, vfloat value) { store(u.at(6 * half + j, 0) + e, value); });
    for (int half = 0; half < 2; ++half)
        for (int j = 0; j < 6; ++j) {
            const int p = 6 * winograd::Weight::result(pair, half) + j;
            gemm_panel(Order::rows, count, width, rows, v.at(p, 0) + k, v.pitch, u.at(6 * half + j, 0), width,
                       {nullptr, k > 0}, m.at(p, 0), width);
        }
}

// Columns shared out: V of as many tiles as the L3 cache holds, then panels of columns, each of which transforms its own
// part of the weights, where its products find it in the L2 cache. A block of tiles there would read all of U, which with
// many channels comes from far.
//
// Beyond whole_weights, M adds up blocks of input channels: one sum over 2560 would round three times as much, and each
// thread would need ten times the memory for its part of U.
//
// Memory: V is the caller's, 36 floats for each tile and channel of x. A thread has nine taps of a panel and a block, the
// twelve points of a pair, and M: together 21 depth panel + 36 tiles panel floats. Every pass over so many tiles
// transforms the weights anew, which is a small part of its work.
void correlate_columns(const Conv2dShape& s, const Tiles& tiles, const Images& x, const Weights& w, const Target& to) {
    constexpr int64_t share = 4, panel = column_panel;
    const int64_t depth = s.cin * s.cout > whole_weights ? ceil_div(s.cin, ceil_div(s.cin, panel_depth)) : s.cin;
    const int64_t v_pitch = panel_width(s.cin);
    const int64_t room = std::clamp<int64_t>(whole_weights / v_pitch, block_tiles, most_tiles);
    const int64_t pass = ceil_div(tiles.count, ceil_div(tiles.count, room));
    const Planes v(scratch(v_slot, Planes::size(points, pass, v_pitch)), pass, v_pitch);
    for (int64_t begin = 0; begin < tiles.count; begin += pass) {
        const int64_t all = std::min(pass, tiles.count - begin);
        parallel_for(ceil_div(all, share), 1, [&](int64_t item) {
            const int64_t first = item * share, count = std::min(share, all - first);
            winograd::transform_windows<winograd::Input>(x, tiles, begin + first, count, 0, s.cin, zeros(s.cin),
                                                         v.from(first));
        });
        parallel_for(ceil_div(s.cout, panel), 1, [&](int64_t item) {
            const int64_t o = item * panel, columns = std::min(panel, s.cout - o), width = panel_width(columns);
            const Planes m(scratch(m_slot, Planes::size(points, pass, width)), pass, width);
            for (int64_t k = 0; k < s.cin; k += depth) {
                const int64_t rows = std::min(depth, s.cin - k);
                const float* g = pack_taps(s, w, k, rows, o, columns);
                multiply_pair<0>(k, rows, g, v, all, width, m);
                multiply_pair<1>(k, rows, g, v, all, width, m);
                multiply_pair<2>(k, rows, g, v, all, width, m);
            }
            transform_output(s, tiles, m, begin, all, o, columns, to);
        });
    }
}

void correlate(const Conv2dShape& s, const float* x, const Weights& w, const Target& to) {
    const Tiles tiles(s);
    if (tiles.count == 0) return;
    const Images images{x, s.h, s.w, s.cin, -s.pad_top, -s.pad_left, s.up};
    // The same bits either way, up to whole_weights: U, V and the order of the sums over channels are the same. So the
    // batch may decide, and the threads.
    const int64_t panels = ceil_div(s.cout, column_panel), rounds = ceil_div(panels, int64_t{threads()});
    const bool even = 4 * panels >= 3 * rounds * threads();
    const bool columns = tiles.count < s.cout || s.cin * s.cout > whole_weights || (even && s.cin * s.cout >= own_weights);
    (columns ? correlate_columns : correlate_tiles)(s, tiles, images, w, to);
}

// ---------------------------------------------------------------- backward_weight

// How the work is cut, by shapes only: dU into blocks of channels and, unless all points of a block fit the L2 cache,
// into the three pairs of rows of points (else `pairs` is 1); the tiles into parts, whose sums are added at the end; a
// part into runs, whose V and W are used as soon as they are made. With few tiles for its channels dU costs more
// memory traffic than x and dy: blocks are small then, and made into dw `direct`ly. So they are with very many channels,
// where dU G, of twice as many floats as dw, would be too much memory: there is work enough without parts.
struct WeightPlan {
    int64_t cin, cout, blocks, pairs, parts, part, run;
    bool direct;
};

WeightPlan weight_plan(const Conv2dShape& s, const Tiles& tiles) {
    constexpr int64_t many_weights = 2048, most_run = 64, least_part = 32, long_part = 128;
    constexpr int64_t least_items = 12, most_items = 24, small_block = 2048;
    const bool few = tiles.count * many_weights <= s.cin * s.cout || s.cin * s.cout > whole_weights;
    const auto cut = [](int64_t all, int64_t most) { return panel_width(ceil_div(all, ceil_div(all, most))); };
    const int64_t cout = cut(s.cout, few ? 64 : 128), across = ceil_div(s.cout, cout);
    const int64_t cin = cut(s.cin, !few ? 128 : across * ceil_div(s.cin, 64) < least_items ? 32 : 64);
    const int64_t blocks = ceil_div(s.cin, cin) * across;
    const bool whole = few || (cin * cout <= small_block && tiles.count >= least_items * long_part);
    const int64_t pairs = whole ? 1 : 3, items = blocks * pairs;
    // Each part costs a copy of dU: long ones while there are items enough, short ones for the least number of items.
    const int64_t parts = few ? 1 : std::max(std::min(ceil_div(most_items, items), tiles.count / long_part),
                                             std::min(ceil_div(least_items, items), ceil_div(tiles.count, least_part)));
    const int64_t part = ceil_div(tiles.count, parts);
    return {cin, cout, blocks, pairs, ceil_div(tiles.count, part), part, ceil_div(part, ceil_div(part, most_run)), few};
}

// What one item of work needs to know: input channels [c, c + cin), output channels [o, o + cout), tiles [begin, end).
struct WeightBlock {
    int64_t c, cin, o, cout, begin, end;
};

// Memory of one item: V and W of a run, `du`, and where the block's `lines` go, dU G: plane 3 i + j has element (i, j).
struct WeightPlanes {
    Planes v, w, du, lines;
};

// A row of points of dU times G, into its three planes of lines.
void transform_line(const WeightBlock& block, const Planes& du, int64_t point, const Planes& lines, int64_t row) {
    for (int64_t c = 0; c < block.cin; ++c)
        for (int64_t o = 0; o < block.cout; o += simd_width) {
            vfloat u[6], g[3];
            for (int j = 0; j < 6; ++j) u[j] = load(du.at(point + j, c) + o);
            winograd::apply<winograd::WeightAdjoint>(u, g);
            for (int j = 0; j < 3; ++j) store(lines.at(3 * row + j, c) + o, g[j]);
        }
}

// Adds the terms of tiles [first, first + count) to the points of dU in the rows of pairs [pair, end), which begin at
// plane `point` of du; the last tiles' turn also makes lines of them.
template <int pair, int end>
void weight_products(const Tiles& tiles, const Images& in, const Images& out, const WeightBlock& block,
                     int64_t first, int64_t count, const float* zero, const WeightPlanes& at, int64_t point = 0) {
    winograd::transform_windows<winograd::Input, pair>(in, tiles, first, count, block.c, block.cin, zero, at.v);
    winograd::transform_windows<winograd::OutputAdjoint, pair>(out, tiles, first, count, block.o, block.cout, zero,
                                                               at.w);
    for (int half = 0; half < 2; ++half, point += 6) {
        for (int j = 0; j < 6; ++j)
            for (int64_t e = 0; e < at.w.pitch; e += tile_columns)
                gemm_panel(Order::columns, block.cin, std::min<int64_t>(tile_columns, at.w.pitch - e), count,
                           at.v.at(6 * half + j, 0), at.v.pitch, at.w.at(6 * half + j, 0) + e, at.w.pitch,
                           {nullptr, first > block.begin}, at.du.at(point + j, 0) + e, at.du.pitch);
        if (first + count == block.end)
            transform_line(block, at.du, point, at.lines, winograd::Input::result(pair, half));
    }
    if constexpr (pair + 1 < end)
        weight_products<pair + 1, end>(tiles, in, out, block, first, count, zero, at, point);
}

// dU G of a block from its tiles, of the points in the rows of pairs [pair, end).
template <int pair, int end>
void weight_block(const Conv2dShape& s, const Tiles& tiles, const float* dy, const float* x, const WeightBlock& block,
                  int64_t run, const Planes& lines) {
    constexpr int64_t rows_points = 12 * (end - pair);
    const int64_t v_pitch = panel_width(block.cin), w_pitch = panel_width(block.cout);
    const WeightPlanes at{{scratch(v_slot, Planes::size(12, run, v_pitch)), run, v_pitch},
                          {scratch(m_slot, Planes::size(12, run, w_pitch)), run, w_pitch},
                          {scratch(g_slot, Planes::size(rows_points, block.cin, w_pitch)), block.cin, w_pitch},
                          lines};
    const Images in{x, s.h, s.w, s.cin, -s.pad_top, -s.pad_left, s.up}, out{dy, s.oh, s.ow, s.cout, 0, 0, 1};
    const float* zero = zeros(std::max(s.cin, s.cout));
    for (int64_t t = block.begin; t < block.end; t += run)
        weight_products<pair, end>(tiles, in, out, block, t, std::min(run, block.end - t), zero, at);
}

// dw of a block, G^T times the sum of the `parts` of its lines, which lie `size` floats apart.
void sum_lines(const Conv2dShape& s, const WeightBlock& block, const Planes& lines, int64_t parts, int64_t size,
               float* dw) {
    for (int64_t c = 0; c < block.cin; ++c)
        for (int64_t o = 0; o < block.cout; o += simd_width)
            for (int j = 0; j < 3; ++j) {
                vfloat sum[6], g[3];
                for (int i = 0; i < 6; ++i) {
                    const float* line = lines.at(3 * i + j, c) + o;
                    sum[i] = load(line);
                    for (int64_t part = 1; part < parts; ++part) sum[i] += load(line + part * size);
                }
                winograd::apply<winograd::WeightAdjoint>(sum, g);
                float* corner = dw + (j * s.cin + block.c + c) * s.cout + block.o + o;
                for (int i = 0; i < 3; ++i) store_upto(corner + 3 * i * s.cin * s.cout, g[i], block.cout - o);
            }
}

}  // namespace

bool winograd_suits(const Conv2dShape& s) {
    // With few channels the transforms cost more than the products save; so do tiles that stand half outside the
    // image.
    const int64_t covered = 16 * ceil_div(s.oh, 4) * ceil_div(s.ow, 4);
    return s.kh == 3 && s.kw == 3 && s.stride_h == 1 && s.stride_w == 1 && s.cin >= 16 && s.cout >= 16 &&
           2 * s.oh * s.ow >= covered;
}

void winograd_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y) {
    correlate(s, x, Weights{w, false}, {addends, 1, y});
}

void winograd_backward_input(const Conv2dShape& mirrored, int64_t down, const float* dy, const float* w, float* dx) {
    correlate(mirrored, dy, Weights{w, true}, {{}, down, dx});
}

void winograd_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw) {
    const Tiles tiles(s);
    const WeightPlan plan = weight_plan(s, tiles);
    const int64_t pitch = panel_width(s.cout), size = static_cast<int64_t>(Planes::size(18, s.cin, pitch));
    float* memory = plan.direct ? nullptr : scratch(u_slot, static_cast<size_t>(plan.parts * size));
    // (1) dU G of each part of the tiles
    constexpr decltype(&weight_block<0, 3>) one_pair[3] = {weight_block<0, 1>, weight_block<1, 2>, weight_block<2, 3>};
    parallel_for(plan.parts * plan.blocks * plan.pairs, 1, [&](int64_t item) {
        const int64_t pair = item % plan.pairs, block = item / plan.pairs % plan.blocks;
        const int64_t part = item / plan.pairs / plan.blocks, across = ceil_div(s.cout, plan.cout);
        const int64_t c = block / across * plan.cin, o = block % across * plan.cout;
        const int64_t begin = part * plan.part, end = std::min(begin + plan.part, tiles.count);
        const WeightBlock b{c, std::min(plan.cin, s.cin - c), o, std::min(plan.cout, s.cout - o), begin, end};
        if (plan.direct) {
            const Planes lines(scratch(u_slot, Planes::size(18, plan.cin, plan.cout)), plan.cin, plan.cout);
            weight_block<0, 3>(s, tiles, dy, x, b, plan.run, lines);
            sum_lines(s, b, lines, 1, 0, dw);
        } else {
            Planes lines = Planes(memory + part * size, s.cin, pitch).from(c);
            lines.data += o;
            (plan.pairs == 1 ? weight_block<0, 3> : one_pair[pair])(s, tiles, dy, x, b, plan.run, lines);
        }
    });
    if (plan.direct) return;
    // (2) dw = G^T (their sum, in order)
    constexpr int64_t rows = 4;
    parallel_for(ceil_div(s.cin, rows), 1, [&](int64_t item) {
        const int64_t c = item * rows;
        const WeightBlock strip{c, std::min(rows, s.cin - c), 0, s.cout, 0, tiles.count};
        sum_lines(s, strip, Planes(memory, s.cin, pitch).from(c), plan.parts, size, dw);
    });
}

}  // namespace pydiff
