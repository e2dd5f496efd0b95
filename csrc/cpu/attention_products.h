// The matrix products of attention for one head: gemm_panel where its tiles fit, own tiles where heads are small.
#pragma once
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "simd.h"

namespace pydiff {

// c (m, n) = a b + start for any n: gemm_panel, a tile's columns at a time. Rows of b and c are whole vectors.
inline void multiply(Order order, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                     int64_t ldb, bool accumulate, float* c, int64_t ldc) {
    for (int64_t j = 0; j < n; j += tile_columns)
        gemm_panel(order, m, std::min<int64_t>(tile_columns, n - j), k, a, lda, b + j, ldb, {nullptr, accumulate},
                   c + j, ldc);
}

// c (m, n) += a^T b over the first k of `packed` rows of a (packed, m), which is stored tile_rows columns at a time.
inline void multiply_packed(int64_t m, int64_t n, int64_t k, const float* a, int64_t packed, const float* b, float* c) {
    for (int64_t j = 0; j < n; j += tile_columns)
        for (int64_t r = 0; r < m; r += tile_rows)
            gemm_panel(Order::columns, std::min<int64_t>(tile_rows, m - r), std::min<int64_t>(tile_columns, n - j), k,
                       a + r * packed, tile_rows, b + j, n, {nullptr, true}, c + r * n + j, n);
}

// b[j, i] = a[i, j] for i < m, j < n.
inline void transpose(int64_t m, int64_t n, const float* a, int64_t lda, float* b, int64_t ldb) {
    typedef float quad __attribute__((vector_size(16)));
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) {
        int64_t j = 0;
        for (; j + 4 <= n; j += 4) {
            quad r[4];
            for (int l = 0; l < 4; ++l) std::memcpy(&r[l], a + (i + l) * lda + j, sizeof(quad));
            for (int l = 0; l < 4; ++l) {
                const quad column = {r[0][l], r[1][l], r[2][l], r[3][l]};
                std::memcpy(b + (j + l) * ldb + i, &column, sizeof(quad));
            }
        }
        for (; j < n; ++j)
            for (int64_t l = i; l < i + 4; ++l) b[j * ldb + l] = a[l * lda + j];
    }
    for (; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) b[j * ldb + i] = a[i * lda + j];
}

// ---- sums over lanes: c (keys, d) += a (keys, lanes) b (lanes, d)
//
// A row of b has d floats; a vector may have room for two. Then it holds two rows, interleaved, and meets two
// neighbours of a, alternating; the two halves of the sum are added at the end.

// Rows of b that share a vector: 1 or 2.
constexpr int rows_together(int64_t d) { return 2 * d <= simd_width ? 2 : 1; }
inline int64_t row_width(int64_t d) { return panel_width(rows_together(d) * d); }

// packed (m / together, row_width(d)) from b (m, d), m a multiple of `together` once rows of zeros are added.
inline void pack_rows(int64_t m, int64_t d, const float* b, int64_t ldb, float* packed) {
    const int64_t width = row_width(d);
    if (rows_together(d) == 1) return pack_panel(m, d, b, ldb, packed);
    for (int64_t i = 0; i < m; i += 2, packed += width, b += 2 * ldb) {
        std::fill(packed + 2 * d, packed + width, 0.0f);
        for (int64_t e = 0; e < d; ++e) {
            packed[2 * e] = b[e];
            packed[2 * e + 1] = i + 1 < m ? b[ldb + e] : 0.0f;
        }
    }
}

// The same, and b^T (d, lanes) from what was just read: rows of the inputs lie far apart.
inline void pack_both(int64_t m, int64_t d, const float* b, int64_t ldb, float* packed, float* transposed,
                      int64_t lanes) {
    pack_rows(m, d, b, ldb, packed);
    if (rows_together(d) == 1)
        pack_transposed(m, d, packed, row_width(d), transposed, lanes);
    else
        pack_transposed(m, d, b, ldb, transposed, lanes);
}

template <int together>
inline vfloat broadcast_rows(const float* a) {
    if constexpr (together == 1) return broadcast(*a);
    typedef int64_t vlong __attribute__((vector_size(4 * simd_width)));
    int64_t both;
    std::memcpy(&both, a, sizeof both);
    return (vfloat)(both - vlong{});
}

template <int together, int rows>
void sum_lanes_tile(int64_t m, const float* a, int64_t lda, const float* b, bool accumulate, float* c) {
    vfloat sum[rows] = {};
    for (int64_t i = 0; i < m; i += together, b += simd_width) {
        const vfloat bi = load(b);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum[r] = multiply_add(broadcast_rows<together>(a + r * lda + i), bi, sum[r]);
    }
    if (accumulate)
        for (int r = 0; r < rows; ++r) sum[r] += load(c + r * simd_width);
    for (int r = 0; r < rows; ++r) store(c + r * simd_width, sum[r]);
}

template <int together>
void sum_lanes_narrow(int64_t keys, int64_t m, const float* a, int64_t lda, const float* b, bool accumulate, float* c) {
    int64_t t = 0;
    for (; t + 8 <= keys; t += 8) sum_lanes_tile<together, 8>(m, a + t * lda, lda, b, accumulate, c + t * simd_width);
    for (; t < keys; ++t) sum_lanes_tile<together, 1>(m, a + t * lda, lda, b, accumulate, c + t * simd_width);
}

inline void sum_lanes(int64_t keys, int64_t d, int64_t m, const float* a, int64_t lda, const float* b, bool accumulate,
                      float* c) {
    const int64_t width = row_width(d);
    if (width > simd_width) return multiply(Order::rows, keys, width, m, a, lda, b, width, accumulate, c, width);
    if (rows_together(d) == 1)
        sum_lanes_narrow<1>(keys, m, a, lda, b, accumulate, c);
    else
        sum_lanes_narrow<2>(keys, m, a, lda, b, accumulate, c);
}

// out[t, e] = factor sum: the halves of c's rows together.
inline void unpack_rows(int64_t keys, int64_t d, float factor, const float* c, float* out, int64_t row) {
    const int64_t width = row_width(d), together = rows_together(d);
    for (int64_t t = 0; t < keys; ++t, c += width, out += row)
        for (int64_t e = 0; e < d; ++e) out[e] = factor * (together == 1 ? c[e] : c[2 * e] + c[2 * e + 1]);
}

}  // namespace pydiff
