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
    float* panel;                  // where the rows of b are copied
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
// may lie outside of the array, where asking for it does nothing. It goes to L2: where rows are a multiple of 4096 bytes
// apart, those of two tiles and a panel of b would push one another out of the 8 lines that L1 has for them.
constexpr int64_t line = 16;  // floats in a line of the cache
inline void prefetch(const float* a, int64_t distance) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(a) + sizeof(float) * static_cast<uintptr_t>(distance);
    __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
}

template <Order order, int rows, int vectors, bool packs = false>
void tile(const Operands& o, const Start& start) {
    vfloat sum[rows][vectors] = {};
    const float *a = o.a, *b = o.b;
    const int64_t lda = o.lda;
    float* panel = packs ? o.panel : nullptr;
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
                for (int v = 0; v < vectors; ++v) {
                    bk[v] = load(b + v * simd_width);
                    if constexpr (packs) store(panel + v * simd_width, bk[v]);
                }
                if constexpr (packs) panel += vectors * simd_width;
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

#if defined(__AVX__)
// In each half of a vector four rows, the upper ones four below: transposing the halves by themselves puts eight of a
// column side by side.
inline void transpose_8x8(const float* a, int64_t lda, float* b, int64_t ldb) {
    for (int j = 0; j < 8; j += 4, a += 4, b += 4 * ldb) {
        __m256 r[4];
        for (int i = 0; i < 4; ++i)
            r[i] = _mm256_set_m128(_mm_loadu_ps(a + (i + 4) * lda), _mm_loadu_ps(a + i * lda));
        const __m256 low01 = _mm256_unpacklo_ps(r[0], r[1]), low23 = _mm256_unpacklo_ps(r[2], r[3]);
        const __m256 high01 = _mm256_unpackhi_ps(r[0], r[1]), high23 = _mm256_unpackhi_ps(r[2], r[3]);
        _mm256_storeu_ps(b, _mm256_shuffle_ps(low01, low23, 0x44));
        _mm256_storeu_ps(b + ldb, _mm256_shuffle_ps(low01, low23, 0xee));
        _mm256_storeu_ps(b + 2 * ldb, _mm256_shuffle_ps(high01, high23, 0x44));
        _mm256_storeu_ps(b + 3 * ldb, _mm256_shuffle_ps(high01, high23, 0xee));
    }
}
#endif

}  // namespace

void gemm_panel(Order order, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                const Start& start, float* c, int64_t ldc, const Runs& runs, const Beside& beside) {
    if (n == 0) return;
    const int64_t a_skip = runs.a_step - k * (order == Order::rows ? 1 : lda);
    const int64_t b_skip = runs.b_step < 0 ? 0 : runs.b_step - k * ldb;
    const auto pick = order == Order::rows ? tile_for<Order::rows> : tile_for<Order::columns>;
    const int64_t vectors = ceil_div(n, simd_width), row_step = order == Order::rows ? lda : 1;
    const Tile whole = pick(tile_rows, vectors);
    const int64_t share = beside.next ? ceil_div(k, ceil_div(m, tile_rows)) : 0;  // of the next rows of b, at each tile
    for (int64_t r = 0, asked = 0; r < m; r += tile_rows) {
        if (asked < k && share) {
            const int64_t count = std::min(share, k - asked);
            prefetch_rows(count, tile_columns, beside.next + asked * beside.next_step, beside.next_step);
            asked += count;
        }
        for (int64_t i = r; beside.fetch_c && i < std::min(r + tile_rows, m); ++i)
            for (int64_t j = 0; j < n + line - 1; j += line) __builtin_prefetch(c + i * ldc + std::min(j, n - 1), 1, 3);
        const Operands o{n,   k,          a + r * row_step, lda,    b,           ldb, c + r * ldc,
                         ldc, runs.count, a_skip,           b_skip, beside.panel};
        if (r == 0 && beside.panel) {
            tile<Order::rows, tile_rows, tile_vectors, true>(o, start);
            b = beside.panel;
            ldb = tile_columns;
        } else {
            (r + tile_rows <= m ? whole : pick(m - r, vectors))(o, start);
        }
    }
}

void prefetch_rows(int64_t rows, int64_t n, const float* first, int64_t step) {
    for (int64_t r = 0; r < rows; ++r)
        // the last float of every line's length: where rows begin within a line, the neighbour asks for the first part
        for (int64_t j = line - 1; j < n; j += line) prefetch(first, r * step + j);
}

void pack_panel(int64_t k, int64_t n, const float* b, int64_t ldb, float* panel) {
    const int64_t width = panel_width(n), whole = n / simd_width * simd_width;
    for (int64_t i = 0; i < k; ++i, b += ldb, panel += width) {
        for (int64_t j = 0; j < whole; j += simd_width) store(panel + j, load(b + j));
        if (whole < n) store(panel + whole, load_partial(b + whole, n - whole));
    }
}

void transpose(int64_t m, int64_t n, const float* a, int64_t lda, float* b, int64_t ldb) {
    // Columns in strips of a cache line, so that a line of `a` is read whole while it is at hand; squares in registers.
    constexpr int64_t strip = 16;
    for (int64_t j0 = 0; j0 < n; j0 += strip) {
        const int64_t j1 = std::min(j0 + strip, n);
        int64_t i = 0;
#if defined(__AVX__)
        for (; i + 8 <= m && j1 == j0 + strip; i += 8)
            for (int64_t j = j0; j < j1; j += 8) transpose_8x8(a + i * lda + j, lda, b + j * ldb + i, ldb);
#endif
        for (; i + 4 <= m; i += 4) {
            int64_t j = j0;
            for (; j + 4 <= j1; j += 4) transpose_4x4(a + i * lda + j, lda, b + j * ldb + i, ldb);
            for (; j < j1; ++j)
                for (int64_t e = i; e < i + 4; ++e) b[j * ldb + e] = a[e * lda + j];
        }
        for (int64_t j = j0; j < j1; ++j)
            for (int64_t e = i; e < m; ++e) b[j * ldb + e] = a[e * lda + j];
    }
}

void pack_transposed(int64_t m, int64_t n, const float* a, int64_t lda, float* panel, int64_t width) {
    transpose(m, n, a, lda, panel, width);
    for (int64_t j = 0; m < width && j < n; ++j) std::fill(panel + j * width + m, panel + (j + 1) * width, 0.0f);
}

}  // namespace pydiff
