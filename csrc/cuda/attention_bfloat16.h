// attention.cu in bfloat16, on tensor cores: products of 16 x 16 by 16 x 8 (mma.sync), sums in float32.
//
// A block has four warps, and a warp owns rows: of queries in the forward pass and for dq, of keys for dk and dv. It
// steps over tiles of the other side, which all four share. Two such tiles fit into shared memory: cp.async fills one
// while the other is worked on, with a single barrier in between.
//
// The result of one product becomes the left operand of the next without leaving its registers: a lane holds the same
// elements of both (mma.h). For that, dk and dv are made from transposed scores, k qT. They have the bits of q kT: the
// sum over d is made in the same order everywhere, and a product does not mind which factor is left.
//
// d is padded with zeros to D, a multiple of 16 known to the compiler. Rows in shared memory have room for a power of
// 2, which cuts loads evenly, and a gap of 16 bytes: they are an odd number of 16-byte units apart, so the eight rows
// of one matrix of ldmatrix lie in different banks. A swizzle would do without the gap, but needs an exclusive-or for
// every address; here all of a lane's addresses are one register and constants.
#pragma once
#include <cstring>

#include "../simt/ptx.h"
#include "attention.h"

namespace pydiff {

namespace bf16 {

constexpr int warps = 4, threads = 32 * warps;
template <int D>
constexpr int stored = D <= 16 ? 16 : D <= 32 ? 32 : D <= 64 ? 64 : D <= 128 ? 128 : 256;  // a power of 2 at least D
template <int D>
constexpr int pitch = stored<D> + 8;  // elements between rows in shared memory
template <int D>
constexpr bool held = D <= 64;  // whether a warp's own rows stay in registers

// tile[r, e] = x[r, e] for r < left and e < d, else 0. Asynchronous if aligned.
template <int D, int rows>
__device__ __forceinline__ void load_tile(bfloat16* tile, const bfloat16* x, int64_t row, int left, int d,
                                          bool aligned) {
    constexpr int units = stored<D> / 8, step = threads / units;  // of 16 bytes; rows that the block copies at a time
    static_assert(rows % step == 0 && threads % units == 0, "every thread copies as much");
    const int first = int(threadIdx.x) / units, e = int(threadIdx.x) % units * 8;
    tile += first * pitch<D> + e;
    x += first * row + e;
    left -= first;
    if (aligned) {
        const unsigned bytes = e < d ? 16 : 0;
#pragma unroll
        for (int r = 0; r < rows; r += step, tile += step * pitch<D>, x += step * row)
            copy_async<16>(tile, x, r < left ? bytes : 0);
        return;
    }
#pragma unroll 1
    for (int r = 0; r < rows; r += step, tile += step * pitch<D>, x += step * row) {
        Pack<bfloat16, 8> unit;
#pragma unroll
        for (int j = 0; j < 8; ++j) unit.element[j] = r < left && e + j < d ? x[j] : __float2bfloat16(0.0f);
        store_vector(tile, unit);
    }
}

// The gap behind a row of queries has room for its Stat.
template <int D, int rows>
__device__ __forceinline__ void load_stats(bfloat16* tile, const Stat* stats) {
    for (int r = int(threadIdx.x); r < rows; r += threads) copy_async<8>(tile + r * pitch<D> + stored<D>, stats + r);
}

// Where a lane points ldmatrix to, for 16 x 16 elements as an A operand, or transposed as two B operands ..
template <int D>
__device__ __forceinline__ int lane_a() {
    const int lane = int(threadIdx.x) % 32;
    return lane % 16 * pitch<D> + lane / 16 * 8;
}
// .. and as two B operands whose columns are the tile's rows.
template <int D>
__device__ __forceinline__ int lane_b() {
    const int lane = int(threadIdx.x) % 32;
    return (lane % 8 + lane / 16 * 8) * pitch<D> + lane / 8 % 2 * 8;
}

// 16 * tiles rows of a warp's own, as A operands: kept in registers, or read again each time.
template <int D, int tiles, bool held>
struct Rows {
    uint32_t a[D / 16][tiles][4];
    __device__ __forceinline__ explicit Rows(const bfloat16* rows) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k)
#pragma unroll
            for (int i = 0; i < tiles; ++i) load_matrix(a[k][i], rows + lane_a<D>() + i * 16 * pitch<D> + k * 16);
    }
    __device__ __forceinline__ void get(uint32_t (&out)[4], int k, int i) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) out[j] = a[k][i][j];
    }
};
template <int D, int tiles>
struct Rows<D, tiles, false> {
    const bfloat16* a;
    __device__ __forceinline__ explicit Rows(const bfloat16* rows) : a(rows + lane_a<D>()) {}
    __device__ __forceinline__ void get(uint32_t (&out)[4], int k, int i) const {
        load_matrix(out, a + i * 16 * pitch<D> + k * 16);
    }
};

// c (16 tiles, columns) = a bT over all of D. The sum over D has the same order wherever scores are made.
template <int D, int tiles, int columns>
__device__ __forceinline__ void multiply_transposed(float (&c)[tiles][columns / 8][4], const Rows<D, tiles, held<D>>& a,
                                                    const bfloat16* b) {
    b += lane_b<D>();
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
        for (int j = 0; j < columns / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) c[i][j][e] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        uint32_t fa[tiles][4];
#pragma unroll
        for (int i = 0; i < tiles; ++i) a.get(fa[i], k, i);
#pragma unroll
        for (int j = 0; j < columns / 16; ++j) {
            uint32_t fb[4];
            load_matrix(fb, b + j * 16 * pitch<D> + k * 16);
            const uint32_t left[2] = {fb[0], fb[1]}, right[2] = {fb[2], fb[3]};
#pragma unroll
            for (int i = 0; i < tiles; ++i) {
                mma_bf16(c[i][2 * j], fa[i], left, c[i][2 * j]);
                mma_bf16(c[i][2 * j + 1], fa[i], right, c[i][2 * j + 1]);
            }
        }
    }
}

// c (16 tiles, D) += a b, where a (16 tiles, rows) is given as sums of mma and rounded to bfloat16.
template <int D, int tiles, int rows>
__device__ __forceinline__ void multiply_add(float (&c)[tiles][D / 8][4], const float (&a)[tiles][rows / 8][4],
                                             const bfloat16* b) {
    const auto pack = [](float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        uint32_t bits;
        memcpy(&bits, &pair, 4);
        return bits;
    };
    b += lane_a<D>();
#pragma unroll
    for (int k = 0; k < rows / 16; ++k) {
        uint32_t fa[tiles][4];
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                fa[i][2 * h] = pack(a[i][2 * k + h][0], a[i][2 * k + h][1]);
                fa[i][2 * h + 1] = pack(a[i][2 * k + h][2], a[i][2 * k + h][3]);
            }
#pragma unroll
        for (int j = 0; j < D / 16; ++j) {
            uint32_t fb[4];
            load_matrix<true>(fb, b + k * 16 * pitch<D> + j * 16);
            const uint32_t left[2] = {fb[0], fb[1]}, right[2] = {fb[2], fb[3]};
#pragma unroll
            for (int i = 0; i < tiles; ++i) {
                mma_bf16(c[i][2 * j], fa[i], left, c[i][2 * j]);
                mma_bf16(c[i][2 * j + 1], fa[i], right, c[i][2 * j + 1]);
            }
        }
    }
}

// c (16 tiles, 8 columns) = value where `where` says so of its row and column.
template <int tiles, int columns, class Where>
__device__ __forceinline__ void set_where(float (&c)[tiles][columns][4], float value, const Where& where) {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
        for (int j = 0; j < columns; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (where(16 * i + e / 2 * 8 + lane / 4, 8 * j + lane % 4 * 2 + e % 2)) c[i][j][e] = value;
}
// The same from column `first` on: behind the last key.
template <int tiles, int columns>
__device__ __forceinline__ void set_columns(float (&c)[tiles][columns][4], int first, float value) {
    set_where(c, value, [=](int, int column) { return column >= first; });
}

// A warp writes out[r, e] = factor[row] c for r < left, e < d. Through its own rows of shared memory, so that a row
// goes out in pieces of 16 bytes; no other thread may use them any more.
template <int D, int tiles>
__device__ __forceinline__ void store_rows(bfloat16* out, int64_t row, int left, int d, bool aligned,
                                           const float (&c)[tiles][D / 8][4], const float (&factor)[tiles][2],
                                           bfloat16* rows) {
    const int lane = int(threadIdx.x) % 32, group = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float pair[2] = {factor[i][h] * c[i][j][2 * h], factor[i][h] * c[i][j][2 * h + 1]};
                store(rows + (16 * i + 8 * h + group) * pitch<D> + 8 * j + 2 * t, pair);
            }
    __syncwarp();
    constexpr int units = D / 8;
    for (int i = lane; i < 16 * tiles * units; i += 32) {
        const int r = i / units, e = i % units * 8;
        if (r >= left || e >= d) continue;
        const bfloat16* from = rows + r * pitch<D> + e;
        bfloat16* to = out + r * row + e;
        if (aligned)
            store_vector(to, load_vector<Pack<bfloat16, 8>>(from));
        else
            for (int j = 0; j < 8 && e + j < d; ++j) to[j] = from[j];
    }
}

// ---- forward -----------------------------------------------------------------------------------------------------

// Rows of a tile of keys: as many as leave room in 99 KB of shared memory, what a block gets on a small GPU, and in 255
// registers. They decide the order of sums, so a head size has one number of them, however many queries a block has.
template <int D>
constexpr int forward_keys = D <= 64 ? 64 : 32;
template <int D, int tiles>
constexpr size_t forward_bytes = (64 * tiles + 4 * forward_keys<D>) * pitch<D> * sizeof(bfloat16);

// The running softmax of a warp's rows (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao
// 2023, "FlashAttention-2"). Its maximum is kept as the score before scaling: s - extreme has no rounding where it
// counts, and exp(scale (s - extreme)) is 2 to one product.
template <int tiles>
struct Softmax {
    float extreme[tiles][2], sum[tiles][2];  // largest scale s so far, before scaling; this lane's part of the sum
    float nothing, factor;

    // A scale of 0 counts as the smallest number: its product with infinity is not NaN.
    __device__ __forceinline__ explicit Softmax(float scale)
        : nothing(scale < 0.0f ? INFINITY : -INFINITY), factor(scale == 0.0f ? 0x1p-126f : scale * log2e) {
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) extreme[i][h] = scale < 0.0f ? -lowest : lowest, sum[i][h] = 0.0f;
    }

    // s (16 tiles, columns) becomes exp(scale (s - extreme)), 0 from column `left` on; o and the sum are scaled alike.
    template <int columns, int D8>
    __device__ __forceinline__ void add(float (&s)[tiles][columns / 8][4], float (&o)[tiles][D8][4], int left) {
        if (left < columns) set_columns(s, left, nothing);
#pragma unroll
        for (int i = 0; i < tiles; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float most = extreme[i][h];
                if (factor > 0.0f) {
#pragma unroll
                    for (int j = 0; j < columns / 8; ++j)
                        most = fmaxf(most, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
                } else {
#pragma unroll
                    for (int j = 0; j < columns / 8; ++j)
                        most = fminf(most, fminf(s[i][j][2 * h], s[i][j][2 * h + 1]));
                    most = fminf(most, __shfl_xor_sync(~0u, most, 1));
                    most = fminf(most, __shfl_xor_sync(~0u, most, 2));
                }
                const float shrink = exp2_fast((extreme[i][h] - most) * factor);
                extreme[i][h] = most;
                sum[i][h] *= shrink;
#pragma unroll
                for (int j = 0; j < columns / 8; ++j)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; ++e)
                        sum[i][h] += s[i][j][e] = exp2_fast((s[i][j][e] - most) * factor);
#pragma unroll
                for (int j = 0; j < D8; ++j) o[i][j][2 * h] *= shrink, o[i][j][2 * h + 1] *= shrink;
            }
    }
};

template <int D, int tiles>
__global__ void __launch_bounds__(threads, 2)
    attention_forward_kernel(AttentionShape s, bool aligned, bool out_aligned, const bfloat16* __restrict__ q,
                             const bfloat16* __restrict__ k, const bfloat16* __restrict__ v,
                             const bool* __restrict__ key_mask, bfloat16* __restrict__ out, float* __restrict__ lse) {
    constexpr int queries = 64 * tiles, keys = forward_keys<D>, stage = 2 * keys * pitch<D>;
    DYNAMIC_SHARED(bfloat16, shared);
    bfloat16 *q_tile = shared, *kv_tiles = shared + queries * pitch<D>;
    const int d = int(s.d), lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * 16 * tiles;
    const Place at = place(s.tq, queries, s.heads), start = {0, at.head, at.sample};
    k += strided_at(s, s.k_batch, s.k_row, start);
    v += strided_at(s, s.v_batch, s.v_row, start);
    const auto load_keys = [&](int64_t key, bfloat16* tile) {
        const int left = rows_left(s.tk, key, keys);
        load_tile<D, keys>(tile, k + key * s.k_row, s.k_row, left, d, aligned);
        load_tile<D, keys>(tile + keys * pitch<D>, v + key * s.v_row, s.v_row, left, d, aligned);
        commit_copies();
    };
    const int left = rows_left(s.tq, at.first, queries);
    load_tile<D, queries>(q_tile, q + strided_at(s, s.q_batch, s.q_row, at), s.q_row, left, d, aligned);
    commit_copies();
    load_keys(0, kv_tiles);
    wait_copies<1>();
    __syncthreads();
    const Rows<D, tiles, held<D>> q_rows(q_tile + first * pitch<D>);

    float o[tiles][D / 8][4] = {};
    Softmax<tiles> softmax(s.scale);
    int parity = 0;
    // Two tiles of queries leave no registers for what hides keys; the launcher takes one then.
    const bool* mask = tiles == 1 ? mask_of(s, key_mask, at.sample) : nullptr;
    const bool causal = tiles == 1 && s.causal;
    const int64_t end = causal ? keys_end(s, at.first, queries) : s.tk;
    for (int64_t key = 0; key < end; key += keys, parity ^= 1) {
        wait_copies<0>();
        __syncthreads();  // this tile has landed, and no thread reads the one before any more
        if (key + keys < end) load_keys(key + keys, kv_tiles + (parity ^ 1) * stage);
        const bfloat16* tile = kv_tiles + parity * stage;
        float p[tiles][keys / 8][4];
        multiply_transposed<D, tiles, keys>(p, q_rows, tile);
        const int valid = rows_left(s.tk, key, keys);
        if (causal || mask) set_where(p, softmax.nothing, hidden(s, mask, at.first + first, key, valid));
        softmax.template add<keys>(p, o, valid);
        multiply_add<D, tiles, keys>(o, p, tile + keys * pitch<D>);
    }

    float factor[tiles][2];
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float total = softmax.sum[i][h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const bool none = mask && total == 0.0f;  // no key is seen: the result is 0
            factor[i][h] = none ? 0.0f : 1.0f / total;
            const int row = first + 16 * i + 8 * h + lane / 4;
            if (lane % 4 == 0 && row < left)  // the product is rounded before the sum, as in the backward pass
                lse[(at.sample * s.heads + at.head) * s.tq + at.first + row] =
                    none ? 0.0f : __fmul_rn(s.scale, softmax.extreme[i][h]) + logf(total);
        }
    store_rows<D, tiles>(out + packed_at(s, s.tq, at) + first * s.heads * s.d, s.heads * s.d, left - first, d,
                         out_aligned, o, factor, q_tile + first * pitch<D>);
}

// ---- backward ----------------------------------------------------------------------------------------------------

// p = exp(scale s - lse). Where a query has one key that counts, lse is its scaled score to the bit, and p is 1.
__device__ __forceinline__ float probability(float score, float scale, float lse) {
    return exp2_fast((__fmul_rn(scale, score) - lse) * log2e);
}

template <int D>
constexpr int dq_keys = D <= 32 ? 64 : D <= 128 ? 32 : 16;
template <int D>
constexpr size_t dq_bytes = (2 * 64 + 4 * dq_keys<D>) * pitch<D> * sizeof(bfloat16);

template <int D>
__global__ void __launch_bounds__(threads, D <= 64 ? 3 : 2)
    attention_dq_kernel(AttentionShape s, bool aligned, bool out_aligned, const bfloat16* __restrict__ dout,
                        const bfloat16* __restrict__ q, const bfloat16* __restrict__ k, const bfloat16* __restrict__ v,
                        const bool* __restrict__ key_mask, const Stat* __restrict__ stats, bfloat16* __restrict__ dq) {
    constexpr int queries = 64, keys = dq_keys<D>, stage = 2 * keys * pitch<D>;
    DYNAMIC_SHARED(bfloat16, shared);
    bfloat16 *q_tile = shared, *dout_tile = q_tile + queries * pitch<D>, *kv_tiles = dout_tile + queries * pitch<D>;
    const int d = int(s.d), lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * 16;
    const Place at = place(s.tq, queries, s.heads), start = {0, at.head, at.sample};
    k += strided_at(s, s.k_batch, s.k_row, start);
    v += strided_at(s, s.v_batch, s.v_row, start);
    const auto load_keys = [&](int64_t key, bfloat16* tile) {
        const int left = rows_left(s.tk, key, keys);
        load_tile<D, keys>(tile, k + key * s.k_row, s.k_row, left, d, aligned);
        load_tile<D, keys>(tile + keys * pitch<D>, v + key * s.v_row, s.v_row, left, d, aligned);
        commit_copies();
    };
    const int left = rows_left(s.tq, at.first, queries);
    const int64_t row = s.heads * s.d;
    load_tile<D, queries>(q_tile, q + strided_at(s, s.q_batch, s.q_row, at), s.q_row, left, d, aligned);
    load_tile<D, queries>(dout_tile, dout + packed_at(s, s.tq, at), row, left, d, aligned);
    commit_copies();
    load_keys(0, kv_tiles);
    Stat stat[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
        stat[h] = stats[(at.sample * s.heads + at.head) * padded_queries(s.tq) + at.first + first + 8 * h + lane / 4];
    wait_copies<1>();
    __syncthreads();
    const Rows<D, 1, held<D>> q_rows(q_tile + first * pitch<D>), dout_rows(dout_tile + first * pitch<D>);

    float sum[1][D / 8][4] = {};
    int parity = 0;
    const bool* mask = mask_of(s, key_mask, at.sample);
    const int64_t end = keys_end(s, at.first, queries);
    for (int64_t key = 0; key < end; key += keys, parity ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (key + keys < end) load_keys(key + keys, kv_tiles + (parity ^ 1) * stage);
        const bfloat16* tile = kv_tiles + parity * stage;
        float p[1][keys / 8][4], ds[1][keys / 8][4];
        multiply_transposed<D, 1, keys>(p, q_rows, tile);
        multiply_transposed<D, 1, keys>(ds, dout_rows, tile + keys * pitch<D>);
#pragma unroll
        for (int j = 0; j < keys / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const Stat& row_stat = stat[e / 2];
                ds[0][j][e] = probability(p[0][j][e], s.scale, row_stat.lse) * (ds[0][j][e] - row_stat.delta);  // 3
            }
        const int valid = rows_left(s.tk, key, keys);
        if (valid < keys) set_columns(ds, valid, 0.0f);  // exp(0 - lse) may be infinite
        if (s.causal || mask) set_where(ds, 0.0f, hidden(s, mask, at.first + first, key, valid));
        multiply_add<D, 1, keys>(sum, ds, tile);  // 4
    }
    const float factor[1][2] = {{s.scale, s.scale}};
    store_rows<D, 1>(dq + packed_at(s, s.tq, at) + first * row, row, left - first, d, out_aligned, sum, factor,
                     q_tile + first * pitch<D>);
}

// The sums of dk and dv for 16 keys take D registers of a lane. Beyond D = 128 that is too much: there two warps share
// the keys, one sums dv and one dk, and both make the scores.
template <int D>
constexpr bool shared_keys = D > 128;
template <int D>
constexpr int dkdv_keys = shared_keys<D> ? 32 : 64;
template <int D>
constexpr int dkdv_queries = D <= 32 ? 64 : 32;
template <int D>
constexpr size_t dkdv_bytes = (2 * dkdv_keys<D> + 4 * dkdv_queries<D>) * pitch<D> * sizeof(bfloat16);

// Hidden keys get sums, too, which attention_hide_kernel puts away. What hides queries from keys has no room in the
// registers of three blocks of 64 channels.
template <int D, bool causal>
__global__ void __launch_bounds__(threads, D <= (causal ? 48 : 64) ? 3 : 2)
    attention_dkdv_kernel(AttentionShape s, bool aligned, bool out_aligned, const bfloat16* __restrict__ dout,
                          const bfloat16* __restrict__ q, const bfloat16* __restrict__ k,
                          const bfloat16* __restrict__ v, const Stat* __restrict__ stats,
                          bfloat16* __restrict__ dk, bfloat16* __restrict__ dv) {
    constexpr int keys = dkdv_keys<D>, queries = dkdv_queries<D>, stage = 2 * queries * pitch<D>;
    DYNAMIC_SHARED(bfloat16, shared);
    bfloat16 *k_tile = shared, *v_tile = k_tile + keys * pitch<D>, *query_tiles = v_tile + keys * pitch<D>;
    const int d = int(s.d), lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const bool sums_dv = !shared_keys<D> || warp < 2, sums_dk = !shared_keys<D> || warp >= 2;
    const int first = (shared_keys<D> ? warp % 2 : warp) * 16;
    const Place at = place(s.tk, keys, s.heads), start = {0, at.head, at.sample};
    const int64_t row = s.heads * s.d;
    q += strided_at(s, s.q_batch, s.q_row, start);
    dout += packed_at(s, s.tq, start);
    stats += (at.sample * s.heads + at.head) * padded_queries(s.tq);
    const auto load_queries = [&](int64_t query, bfloat16* tile) {
        const int left = rows_left(s.tq, query, queries);
        load_tile<D, queries>(tile, q + query * s.q_row, s.q_row, left, d, aligned);
        load_tile<D, queries>(tile + queries * pitch<D>, dout + query * row, row, left, d, aligned);
        load_stats<D, queries>(tile, stats + query);
        commit_copies();
    };
    const int left = rows_left(s.tk, at.first, keys);
    load_tile<D, keys>(k_tile, k + strided_at(s, s.k_batch, s.k_row, at), s.k_row, left, d, aligned);
    load_tile<D, keys>(v_tile, v + strided_at(s, s.v_batch, s.v_row, at), s.v_row, left, d, aligned);
    commit_copies();
    const int64_t begin = causal ? at.first / queries * queries : 0;  // causal queries before see none of these keys
    if (begin < s.tq) load_queries(begin, query_tiles);
    wait_copies<0>();
    __syncthreads();
    const Rows<D, 1, held<D>> k_rows(k_tile + first * pitch<D>), v_rows(v_tile + first * pitch<D>);

    float sums[shared_keys<D> ? 1 : 2][1][D / 8][4] = {};
    auto &dv_sum = sums[0], &dk_sum = sums[shared_keys<D> ? 0 : 1];
    int parity = 0;
    for (int64_t query = begin; query < s.tq; query += queries, parity ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (query + queries < s.tq) load_queries(query + queries, query_tiles + (parity ^ 1) * stage);
        const bfloat16 *tile = query_tiles + parity * stage, *dout_tile = tile + queries * pitch<D>;
        const auto stat = [&](int j, int e) {
            return load_vector<Stat>(tile + (8 * j + lane % 4 * 2 + e % 2) * pitch<D> + stored<D>);
        };
        // How far this lane's first query is behind its first key: causal ones do not see it then.
        const int behind = causal ? int(at.first - query) + first + lane / 4 - lane % 4 * 2 : -queries;
        float p[1][queries / 8][4];
        multiply_transposed<D, 1, queries>(p, k_rows, tile);
#pragma unroll
        for (int j = 0; j < queries / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float weight = probability(p[0][j][e], s.scale, stat(j, e).lse);
                p[0][j][e] = 8 * j + e % 2 - 8 * (e / 2) < behind ? 0.0f : weight;
            }
        if (sums_dv) multiply_add<D, 1, queries>(dv_sum, p, dout_tile);  // 2
        if (sums_dk) {
            float ds[1][queries / 8][4];
            multiply_transposed<D, 1, queries>(ds, v_rows, dout_tile);
#pragma unroll
            for (int j = 0; j < queries / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) ds[0][j][e] = p[0][j][e] * (ds[0][j][e] - stat(j, e).delta);  // 3
            multiply_add<D, 1, queries>(dk_sum, ds, tile);  // 5
        }
    }
    __syncthreads();  // k_tile and v_tile are free
    const int64_t to = packed_at(s, s.tk, at) + first * row;
    const float one[1][2] = {{1.0f, 1.0f}}, scale[1][2] = {{s.scale, s.scale}};
    if (sums_dv) store_rows<D, 1>(dv + to, row, left - first, d, out_aligned, dv_sum, one, v_tile + first * pitch<D>);
    if (sums_dk) store_rows<D, 1>(dk + to, row, left - first, d, out_aligned, dk_sum, scale, k_tile + first * pitch<D>);
}

}  // namespace bf16

}  // namespace pydiff
