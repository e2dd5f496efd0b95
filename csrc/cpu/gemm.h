// Matrix product in register tiles: the arithmetic under conv2d (every direction) and attention.
//
//   c[r, j] = start[r, j] + sum_k a(r, k) b[k, j]
//
// After K. Goto and R. A. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008: a
// tile of c (tile_rows x tile_columns) stays in registers while k runs; b comes from a panel that fits the L1 cache, a
// from L2. Callers cut their problem into such panels; there is no threading here.
//
// Promise: c[r, j] is the sum over k = 0, 1, ... in that order, each term by one multiply_add, then `start` is added.
// So a result depends on its own row of a and column of b only, not on the tile it fell into.
#pragma once
#include <cstdint>

#include "simd.h"

namespace pydiff {

// a b + c. Written out rather than left to the compiler, which may contract an expression in one tile shape and not in
// another: two roundings there, one here.
inline vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
    return vfloat(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__FMA__)
    return vfloat(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA)
    return vfloat(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
    return a * b + c;
#endif
}

// 6 x 2 accumulators, 2 vectors of b and one of a fill the 16 registers of SSE2 and AVX2; AVX-512 and NEON have 32, for
// 6 x 4 accumulators and 4 vectors of b.
constexpr int tile_rows = 6;
constexpr int tile_vectors = simd_registers == 32 ? 4 : 2;
constexpr int tile_columns = tile_vectors * simd_width;
constexpr int64_t panel_depth = 256;  // panel_depth x tile_columns floats take 8 to 64 KB, of L1 or L2

// How a lies in memory: a(r, k) = a[r * lda + k], or a[k * lda + r] (the product with a transposed).
enum class Order { rows, columns };

// Where the columns of a and the rows of b go on after every k of them: `count` runs of k, a_step floats apart in a and
// k rows apart in b unless b_step says otherwise.
struct Runs {
    int64_t count = 1, a_step = 0, b_step = -1;
};

// What is done beside the product, while it waits for memory anyway.
struct Beside {
    float* panel = nullptr;       // gets the rows of b, as pack_panel leaves them; for n = tile_columns, m > tile_rows
    const float* next = nullptr;  // k rows of tile_columns floats, next_step apart, that come into the L2 cache
    int64_t next_step = 0;
    bool fetch_c = false;         // c is not in the L1 cache: a tile asks for its lines when it begins
};

// What the sum is added to: nothing, the row vector `bias` (n), or what c holds.
struct Start {
    const float* bias = nullptr;
    bool accumulate = false;
};

// a (m, k), b (k, n) with n <= tile_columns, c (m, n); any m, k >= 0. Each row of b must be readable up to the next
// multiple of simd_width; pack_panel makes such rows. With `runs`, the sum is over runs.count times k terms, in order.
void gemm_panel(Order order, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                const Start& start, float* c, int64_t ldc, const Runs& runs = {}, const Beside& beside = {});

// Asks for `rows` rows of n floats, which come into the L2 cache meanwhile. Where there is no array, nothing happens.
void prefetch_rows(int64_t rows, int64_t n, const float* first, int64_t step);

// panel[k, j] = b[k, j] for j < n, 0 from there to the row's end; rows of panel_width(n) floats.
void pack_panel(int64_t k, int64_t n, const float* b, int64_t ldb, float* panel);
inline int64_t panel_width(int64_t n) { return (n + simd_width - 1) / simd_width * simd_width; }

// b[j, i] = a[i, j]: a (m, n), b (n, m).
void transpose(int64_t m, int64_t n, const float* a, int64_t lda, float* b, int64_t ldb);

// panel[j, i] = a[i, j] for i < m, 0 from there to the row's end: a (m, n) transposed, rows of `width` >= m floats.
void pack_transposed(int64_t m, int64_t n, const float* a, int64_t lda, float* panel, int64_t width);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pydiff
