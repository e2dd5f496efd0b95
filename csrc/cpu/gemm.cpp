// Contract in gemm.h.
#include "gemm.h"

#include <algorithm>
#include <cstring>

namespace pydiff {
namespace {

struct Operands {
    int64_t n, k;
    const float* a;
    int64_t lda;
    const float* b;
    int64_t ldb;
    float* c;
    int64_t ldc;
    int64_t runs, a_skip, b_skip;  // from behind one run to the next
};

// c = sum + start. `last` of the tile's columns lie in its last vector: all of them in the usual case, `whole`.
template <bool whole, int rows, int vectors>
inline void finish(vfloat (&sum)[rows][vectors], const Operands& o, const Start& start) {
    const float* addend = start.accumulate ? o.c : start.bias;
    const int64_t addend_row = start.accumulate ? o.ldc : 0, last = o.n - (vectors - 1) * simd_width;
    if (addend) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) {
                const float* p = addend + r * addend_row + v * simd_width;
                sum[r][v] += whole || v < vectors - 1 ? load(p) : load_partial(p, last);
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            float* p = o.c + r * o.ldc + v * simd_width;
            if (whole || v < vectors - 1)
                store(p, sum[r][v]);
            else
                store_partial(p, sum[r][v], last);
        }
}

// A tile takes some thousand cycles, as long as memory takes to answer. So while it is computed, a for the next one is
// on its way: the rows below, or, where a is transposed, the same columns k rows further on, which a caller that sums
// over more than k takes next (only in wide tiles: beside twelve products, one more load a step is felt). Such an address
// may lie outside of the array, where asking for it does nothing.
constexpr int64_t line = 16;  // floats in a line of the cache
inline void prefetch(const float* a, int64_t distance) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(a) + sizeof(float) * distance));
}

template <Order order, int rows, int vectors>
void tile(const Operands& o, const Start& start) {
    vfloat sum[rows][vectors] = {};
    const float *a = o.a, *b = o.b;
    const int64_t lda = o.lda;
    for (int64_t run = 0; run < o.runs; ++run, a += o.a_skip, b += o.b_skip) {
        for (int64_t left = o.k; left > 0; left -= line) {
            if (order == Order::rows && o.k >= line) {
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) prefetch(a, (r + rows) * lda);
            }
            for (int64_t end = std::min(left, line); end > 0; --end) {
                if constexpr (order == Order::columns && tile_vectors > 2) prefetch(a, o.k * lda);
                vfloat bk[vectors];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) bk[v] = load(b + v * simd_width);
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) {
                    const vfloat ark = broadcast(order == Order::rows ? a[r * lda] : a[r]);
#pragma GCC unroll 8
                    for (int v = 0; v < vectors; ++v) sum[r][v] = multiply_add(ark, bk[v], sum[r][v]);
                }
                a += order == Order::rows ? 1 : lda;
                b += o.ldb;
            }
        }
    }
    if (o.n == vectors * simd_width)
        finish<true>(sum, o, start);
    else
        finish<false>(sum, o, start);
}

using Tile = void (*)(const Operands&, const Start&);

template <Order order, int vectors>
Tile tile_with(int64_t rows) {
    static_assert(tile_rows == 6, "one entry for each number of rows");
    static constexpr Tile tiles[tile_rows] = {tile<order, 1, vectors>, tile<order, 2, vectors>,
                                              tile<order, 3, vectors>, tile<order, 4, vectors>,
                                              tile<order, 5, vectors>, tile<order, 6, vectors>};
    return tiles[rows - 1];
}

template <Order order>
Tile tile_for(int64_t rows, int64_t vectors) {
    if (vectors == 1) return tile_with<order, 1>(rows);
    if constexpr (tile_vectors == 4) {
        if (vectors == 3) return tile_with<order, 3>(rows);
        if (vectors == 4) return tile_with<order, 4>(rows);
    }
    return tile_with<order, 2>(rows);
}

typedef float quad __attribute__((vector_size(16)));

inline void transpose_4x4(const float* a, int64_t lda, float* b, int64_t ldb) {
    quad r[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&r[i], a + i * lda, sizeof(quad));
    for (int j = 0; j < 4; ++j) {
        const quad column = {r[0][j], r[1][j], r[2][j], r[3][j]};
        std::memcpy(b + j * ldb, &column, sizeof(quad));
    }
}

}  // namespace

void gemm_panel(Order order, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                const Start& start, float* c, int64_t ldc, const Runs& runs) {
    if (n == 0) return;
    const int64_t a_skip = runs.a_step - k * (order == Order::rows ? 1 : lda);
    const int64_t b_skip = runs.b_step < 0 ? 0 : runs.b_step - k * ldb;
    const auto pick = order == Order::rows ? tile_for<Order::rows> : tile_for<Order::columns>;
    const int64_t vectors = ceil_div(n, simd_width), row_step = order == Order::rows ? lda : 1;
    const Tile whole = pick(tile_rows, vectors);
    for (int64_t r = 0; r < m; r += tile_rows) {
        const Operands o{n, k, a + r * row_step, lda, b, ldb, c + r * ldc, ldc, runs.count, a_skip, b_skip};
        (r + tile_rows <= m ? whole : pick(m - r, vectors))(o, start);
    }
}

void pack_panel(int64_t k, int64_t n, const float* b, int64_t ldb, float* panel) {
    const int64_t width = panel_width(n), whole = n / simd_width * simd_width;
    for (int64_t i = 0; i < k; ++i, b += ldb, panel += width) {
        for (int64_t j = 0; j < whole; j += simd_width) store(panel + j, load(b + j));
        if (whole < n) store(panel + whole, load_partial(b + whole, n - whole));
    }
}

void pack_transposed(int64_t m, int64_t n, const float* a, int64_t lda, float* panel, int64_t width) {
    // Columns in strips of a cache line, so that a line of `a` is read whole while it is at hand; 4 x 4 in registers.
    constexpr int64_t strip = 16;
    for (int64_t j0 = 0; j0 < n; j0 += strip) {
        const int64_t j1 = std::min(j0 + strip, n);
        int64_t i = 0;
        for (; i + 4 <= m; i += 4) {
            int64_t j = j0;
            for (; j + 4 <= j1; j += 4) transpose_4x4(a + i * lda + j, lda, panel + j * width + i, width);
            for (; j < j1; ++j)
                for (int64_t e = i; e < i + 4; ++e) panel[j * width + e] = a[e * lda + j];
        }
        for (int64_t j = j0; j < j1; ++j) {
            for (int64_t e = i; e < m; ++e) panel[j * width + e] = a[e * lda + j];
            std::fill(panel + j * width + m, panel + (j + 1) * width, 0.0f);
        }
    }
}

}  // namespace pydiff
