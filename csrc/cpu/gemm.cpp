// Contract in gemm.h.
#include "gemm.h"

#include <algorithm>
#include <cstring>
#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace pydiff {
namespace {

// a b + c. Written out rather than left to the compiler, which may contract an expression in one tile shape and not in
// another: two roundings there, one here.
inline vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
    return vfloat(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__FMA__)
    return vfloat(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#else
    return a * b + c;
#endif
}

struct Operands {
    int64_t n, k;
    const float* a;
    int64_t lda;
    const float* b;
    int64_t ldb;
    float* c;
    int64_t ldc;
};

// sum + start, to one vector of c; the last vector of a row may be partial.
inline void finish(vfloat sum, int64_t column, const Operands& o, const Start& start, float* c) {
    const float* addend = start.accumulate ? c : start.bias ? start.bias + column : nullptr;
    if (column + simd_width <= o.n) {
        store(c, addend ? sum + load(addend) : sum);
    } else {
        store_partial(c, addend ? sum + load_partial(addend, o.n - column) : sum, o.n - column);
    }
}

template <Order order, int rows, int vectors>
void tile(const Operands& o, const Start& start) {
    vfloat sum[rows][vectors] = {};
    const float *a = o.a, *b = o.b;
    const int64_t lda = o.lda;
    for (int64_t k = 0; k < o.k; ++k) {
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
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v)
            finish(sum[r][v], v * simd_width, o, start, o.c + r * o.ldc + v * simd_width);
}

using Tile = void (*)(const Operands&, const Start&);

template <Order order, int vectors>
Tile tile_with(int64_t rows) {
    static_assert(tile_rows == 6, "one entry for each number of rows");
    constexpr Tile tiles[tile_rows] = {tile<order, 1, vectors>, tile<order, 2, vectors>, tile<order, 3, vectors>,
                                       tile<order, 4, vectors>, tile<order, 5, vectors>, tile<order, 6, vectors>};
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

}  // namespace

void gemm_panel(Order order, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                const Start& start, float* c, int64_t ldc) {
    if (n == 0) return;
    const auto pick = order == Order::rows ? tile_for<Order::rows> : tile_for<Order::columns>;
    const int64_t vectors = ceil_div(n, simd_width), row_step = order == Order::rows ? lda : 1;
    const Tile whole = pick(tile_rows, vectors);
    for (int64_t r = 0; r < m; r += tile_rows) {
        const Operands o{n, k, a + r * row_step, lda, b, ldb, c + r * ldc, ldc};
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
    for (int64_t j = 0; j < n; ++j) {
        float* row = panel + j * width;
        for (int64_t i = 0; i < m; ++i) row[i] = a[i * lda + j];
        std::fill(row + m, row + width, 0.0f);
    }
}

}  // namespace pydiff
