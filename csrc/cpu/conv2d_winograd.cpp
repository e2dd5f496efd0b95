// conv2d with 3 x 3 kernels and stride 1 by Winograd's F(4 x 4, 3 x 3); winograd.h has the transforms and the papers.
//
// The output is cut into tiles of 4 x 4 pixels, each of which needs 6 x 6 of the input. With p = 0..35 the point of the
// transformed domain, t the tile, c and o the channels:
//
//   V[p, t, c] = B^T d B      (each tile's input; zero outside the picture)
//   U[p, c, o] = G g G^T      (each pair of channels' weights)
//   M[p, t, o] = sum_c V[p, t, c] U[p, c, o]           36 matrix products
//   y          = A^T M A      (+ what is added)
//
// The weight gradient is the adjoint, with W[p, t, o] = A dy A^T:
//
//   dU[p, c, o] = sum_t V[p, t, c] W[p, t, o]
//   dw          = G^T dU G
//
// backward_input is a correlation of dy with the flipped weights. An upsampled picture is never made: windows of it are
// read from the small one, and its gradient's pixels are added up four by four as they leave the transform. Tiles are cut within a picture, and M's sum over c
// has one order, so a picture's result is the same alone and in any batch; dU adds up the tiles of fixed parts of the
// batch. An infinity or NaN in x reaches every pixel of the tiles that see it, as a NaN.
#include <algorithm>

#include "conv2d_methods.h"
#include "gemm.h"
#include "parallel.h"
#include "winograd.h"

namespace pydiff {
namespace {

using winograd::Pictures;
using winograd::Planes;
using winograd::Tiles;

constexpr int64_t points = 36;
constexpr int64_t block_tiles = 4 * tile_rows;  // V and M of a block stay in the L2 cache

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

// Rows [k, k + rows), columns [o, o + columns) of U.
void transform_weights(const Conv2dShape& s, const Weights& weights, int64_t k, int64_t rows, int64_t o,
                       int64_t columns, const TransformedWeights& u) {
    const int64_t width = panel_width(columns), tap_size = rows * width;
    float* g = scratch(g_slot, static_cast<size_t>(9 * tap_size));
    for (int64_t tap = 0; tap < 9; ++tap) weights.pack(s, tap, k, rows, o, columns, g + tap * tap_size);
    for (int64_t e = 0; e < tap_size; e += simd_width) {
        vfloat taps[9], transformed[points];
        for (int tap = 0; tap < 9; ++tap) taps[tap] = load(g + tap * tap_size + e);
        winograd::transform<winograd::Weight>(taps, transformed);
        for (int p = 0; p < points; ++p) store(u.at(p, o) + k * width + e, transformed[p]);
    }
}

// y of tiles [first, first + count), channels [o, o + columns), from M.
void transform_output(const Conv2dShape& s, const Tiles& tiles, const Planes& m, int64_t first, int64_t count,
                      int64_t o, int64_t columns, const Addends& addends, float* y) {
    for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, n = tile / tiles.columns / tiles.rows;
        const int64_t i = 4 * (tile / tiles.columns % tiles.rows), j = 4 * (tile % tiles.columns);
        const int64_t rows = std::min<int64_t>(4, s.oh - i), width = std::min<int64_t>(4, s.ow - j);
        const int64_t corner = ((n * s.oh + i) * s.ow + j) * s.cout + o;
        const float* bias = addends.bias ? addends.bias + n * addends.bias_step + o : nullptr;
        for (int64_t e = 0; e < columns; e += simd_width) {
            vfloat products[points], out[16];
            for (int p = 0; p < points; ++p) products[p] = load(m.at(p, t) + e);
            winograd::transform<winograd::Output>(products, out);
            const vfloat b = bias ? load_upto(bias + e, columns - e) : vfloat{};
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t q = 0; q < width; ++q) {
                    const int64_t at = corner + (r * s.ow + q) * s.cout + e;
                    vfloat sum = out[r * 4 + q] + b;
                    if (addends.add) sum += load_upto(addends.add + at, columns - e);
                    store_upto(y + at, sum, columns - e);
                }
        }
    }
}

// The same, but of every 2 x 2 pixels the sum: y (n, oh / 2, ow / 2, cout), for even oh and ow.
void transform_and_sum_output(const Conv2dShape& s, const Tiles& tiles, const Planes& m, int64_t first, int64_t count,
                              int64_t o, int64_t columns, float* y) {
    const int64_t height = s.oh / 2, across = s.ow / 2;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, n = tile / tiles.columns / tiles.rows;
        const int64_t i = 2 * (tile / tiles.columns % tiles.rows), j = 2 * (tile % tiles.columns);
        const int64_t rows = std::min<int64_t>(2, height - i), width = std::min<int64_t>(2, across - j);
        float* corner = y + ((n * height + i) * across + j) * s.cout + o;
        for (int64_t e = 0; e < columns; e += simd_width) {
            vfloat products[points], out[16];
            for (int p = 0; p < points; ++p) products[p] = load(m.at(p, t) + e);
            winograd::transform<winograd::Output>(products, out);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t q = 0; q < width; ++q) {
                    const vfloat* four = out + 8 * r + 2 * q;
                    store_upto(corner + (r * across + q) * s.cout + e, (four[0] + four[1]) + (four[4] + four[5]),
                               columns - e);
                }
        }
    }
}

// Tiles [first, first + count), channels [o, end).
void correlate_block(const Conv2dShape& s, const Tiles& tiles, const float* x, const TransformedWeights& u,
                     const Addends& addends, int64_t down, int64_t first, int64_t count, int64_t o, int64_t end,
                     float* y) {
    const int64_t v_pitch = panel_width(s.cin);
    const Planes v(scratch(v_slot, Planes::size(points, block_tiles, v_pitch)), block_tiles, v_pitch);
    float* memory = scratch(m_slot, Planes::size(points, block_tiles, tile_columns));
    const Pictures pictures{x, s.h, s.w, s.cin, -s.pad_top, -s.pad_left, s.up};
    winograd::transform_windows<winograd::Input>(pictures, tiles, first, count, 0, s.cin, zeros(s.cin), v);
    for (; o < end; o += tile_columns) {
        const int64_t columns = std::min<int64_t>(tile_columns, end - o), width = panel_width(columns);
        const Planes m(memory, block_tiles, width);
        for (int64_t p = 0; p < points; ++p)
            gemm_panel(Order::rows, count, width, s.cin, v.at(p, 0), v.pitch, u.at(p, o), width, {}, m.at(p, 0), width);
        if (down == 2)
            transform_and_sum_output(s, tiles, m, first, count, o, columns, y);
        else
            transform_output(s, tiles, m, first, count, o, columns, addends, y);
    }
}

// With `down` 2, y is (n, oh / 2, ow / 2, cout): every pixel the sum of four.
void correlate(const Conv2dShape& s, const float* x, const Weights& w, const Addends& addends, int64_t down, float* y) {
    const Tiles tiles(s);
    if (tiles.count == 0) return;
    const int64_t panels = ceil_div(s.cout, tile_columns), plane = s.cin * panel_width(s.cout) + Planes::gap;
    const TransformedWeights u{s.cin, plane, scratch(u_slot, static_cast<size_t>(points * plane))};
    constexpr int64_t strip = 16;
    parallel_for(ceil_div(s.cin, strip) * panels, 1, [&](int64_t item) {
        const int64_t k = item / panels * strip, o = item % panels * tile_columns;
        transform_weights(s, w, k, std::min(strip, s.cin - k), o, std::min<int64_t>(tile_columns, s.cout - o), u);
    });
    // With few blocks of tiles the channels are shared out too. No bit of the result depends on it.
    const int64_t blocks = ceil_div(tiles.count, block_tiles), groups = std::min(panels, ceil_div(16, blocks));
    const int64_t columns = ceil_div(panels, groups) * tile_columns;
    parallel_for(blocks * groups, 1, [&](int64_t item) {
        const int64_t first = item / groups * block_tiles, o = item % groups * columns;
        correlate_block(s, tiles, x, u, addends, down, first, std::min(block_tiles, tiles.count - first), o,
                        std::min(o + columns, s.cout), y);
    });
}

// ---------------------------------------------------------------- backward_weight

// How the work is cut, by shapes only: one row of points and a group of output channels, so that this much of dU stays
// in the L2 cache; the tiles into parts whose sums are added at the end.
struct WeightPlan {
    int64_t group, groups, part, parts;
};

constexpr int64_t weight_tiles = 96;  // transformed at a time

WeightPlan weight_plan(const Conv2dShape& s, const Tiles& tiles) {
    constexpr int64_t items = 24;
    const int64_t group = std::max<int64_t>(1, 16384 / s.cin / tile_columns) * tile_columns,
                  groups = ceil_div(s.cout, group);
    const int64_t wanted = ceil_div(items, 6 * groups);
    const int64_t part = std::max(ceil_div(ceil_div(tiles.count, wanted), weight_tiles), int64_t{1}) * weight_tiles;
    return {group, groups, part, ceil_div(tiles.count, part)};
}

// Points [6 row, 6 row + 6) of dU, output channels [o, o + columns), summed over tiles [begin, end).
template <int row>
void weight_block(const Conv2dShape& s, const Tiles& tiles, const float* dy, const float* x, int64_t o, int64_t columns,
                  int64_t begin, int64_t end, const Planes& du) {
    const int64_t v_pitch = panel_width(s.cin), w_pitch = panel_width(columns);
    const Planes v(scratch(v_slot, Planes::size(6, weight_tiles, v_pitch)), weight_tiles, v_pitch);
    const Planes w(scratch(m_slot, Planes::size(6, weight_tiles, w_pitch)), weight_tiles, w_pitch);
    const Pictures in{x, s.h, s.w, s.cin, -s.pad_top, -s.pad_left, s.up}, out{dy, s.oh, s.ow, s.cout, 0, 0, 1};
    const float* zero = zeros(std::max(s.cin, s.cout));
    for (int64_t t = begin; t < end; t += weight_tiles) {
        const int64_t count = std::min(weight_tiles, end - t);
        winograd::transform_windows<winograd::Input, row>(in, tiles, t, count, 0, s.cin, zero, v);
        winograd::transform_windows<winograd::OutputAdjoint, row>(out, tiles, t, count, o, columns, zero, w);
        for (int64_t p = 0; p < 6; ++p)
            for (int64_t e = 0; e < w_pitch; e += tile_columns)
                gemm_panel(Order::columns, s.cin, std::min<int64_t>(tile_columns, w_pitch - e), count, v.at(p, 0),
                           v.pitch, w.at(p, 0) + e, w.pitch, {nullptr, t > begin}, du.at(6 * row + p, 0) + o + e,
                           du.pitch);
    }
}

}  // namespace

bool winograd_suits(const Conv2dShape& s) {
    // With few channels the transforms cost more than the products save; so do tiles that stand half outside the
    // picture. With very many, U (4 times the weights) outgrows every cache.
    const int64_t covered = 16 * ceil_div(s.oh, 4) * ceil_div(s.ow, 4);
    return s.kh == 3 && s.kw == 3 && s.stride_h == 1 && s.stride_w == 1 && s.cin >= 16 && s.cout >= 16 &&
           s.cin * s.cout <= 512 * 512 && 2 * s.oh * s.ow >= covered;
}

void winograd_forward(const Conv2dShape& s, const float* x, const float* w, const Addends& addends, float* y) {
    correlate(s, x, Weights{w, false}, addends, 1, y);
}

void winograd_backward_input(const Conv2dShape& mirrored, int64_t down, const float* dy, const float* w, float* dx) {
    correlate(mirrored, dy, Weights{w, true}, {}, down, dx);
}

void winograd_backward_weight(const Conv2dShape& s, const float* dy, const float* x, float* dw) {
    const Tiles tiles(s);
    const WeightPlan plan = weight_plan(s, tiles);
    const int64_t pitch = panel_width(s.cout), size = static_cast<int64_t>(Planes::size(points, s.cin, pitch));
    float* memory = scratch(u_slot, static_cast<size_t>(plan.parts * size));
    const auto du = [&](int64_t part) { return Planes(memory + part * size, s.cin, pitch); };
    // (1) dU of each part of the tiles
    constexpr decltype(&weight_block<0>) row_blocks[6] = {weight_block<0>, weight_block<1>, weight_block<2>,
                                                          weight_block<3>, weight_block<4>, weight_block<5>};
    parallel_for(plan.parts * plan.groups * 6, 1, [&](int64_t item) {
        const int64_t row = item % 6, o = item / 6 % plan.groups * plan.group, part = item / 6 / plan.groups;
        const int64_t begin = part * plan.part, end = std::min(begin + plan.part, tiles.count);
        row_blocks[row](s, tiles, dy, x, o, std::min(plan.group, s.cout - o), begin, end, du(part));
    });
    // (2) dw = G^T (their sum, in order) G
    parallel_for(s.cin, 4, [&](int64_t c) {
        for (int64_t o = 0; o < s.cout; o += simd_width) {
            vfloat sum[points], g[9];
            for (int64_t p = 0; p < points; ++p) {
                sum[p] = load(du(0).at(p, c) + o);
                for (int64_t part = 1; part < plan.parts; ++part) sum[p] += load(du(part).at(p, c) + o);
            }
            winograd::transform<winograd::WeightAdjoint>(sum, g);
            for (int64_t tap = 0; tap < 9; ++tap)
                store_upto(dw + (tap * s.cin + c) * s.cout + o, g[tap], s.cout - o);
        }
    });
}

}  // namespace pydiff
