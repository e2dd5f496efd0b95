// What the kernels of attention.cu and of the two files beside it share: where a block works, and the rows' statistics.
#pragma once
#include "vector.h"

namespace pydiff {

// 2^(x log2e) is e^x
constexpr float log2e = 1.44269504088896340736f;

// A running maximum starts here rather than at -infinity: that less a score of -infinity, of a hidden key, is a number.
constexpr float lowest = -3.402823466e38f;

// The backward pass reads lse and delta of a query as one pair of 8 bytes, from an array (n, heads, padded) whose rows
// end in zeros: no tile of queries needs a special end.
struct alignas(8) Stat {
    float lse, delta;
};
__host__ __device__ constexpr int64_t padded_queries(int64_t tq) { return (tq + 63) / 64 * 64; }

// A grid has one block for every tile of rows, head and sample, tiles first: neighbours share what they read.
struct Place {
    int64_t first, head, sample;  // row, head, sample
};
__device__ __forceinline__ Place place(int64_t rows_in_all, int rows, int64_t heads) {
    const int64_t tiles = (rows_in_all + rows - 1) / rows, head = blockIdx.x / tiles;
    return {blockIdx.x % tiles * rows, head % heads, head / heads};
}
inline dim3 places(int64_t rows_in_all, int rows, int64_t heads, int64_t n) {
    return dim3(unsigned((rows_in_all + rows - 1) / rows * heads * n));
}

// Rows that are left from `first` on, at most `most`.
__device__ __forceinline__ int rows_left(int64_t rows, int64_t first, int most) {
    return rows - first < most ? int(rows - first) : most;
}

// Offset of a head's first row in an array (n, t, heads*d), and in (n, heads, t).
__device__ __forceinline__ int64_t packed_at(const AttentionShape& s, int64_t t, const Place& at) {
    return ((at.sample * t + at.first) * s.heads + at.head) * s.d;
}
__device__ __forceinline__ int64_t strided_at(const AttentionShape& s, int64_t batch, int64_t row, const Place& at) {
    return at.sample * batch + at.first * row + at.head * s.d;
}

// Which keys are hidden from which queries of a tile; both are counted from the tile's first.
struct Hidden {
    const bool* mask;  // (keys) or null: false for keys that no query sees
    int keys;          // how many of the tile there are
    int ahead;         // a query sees no keys that are further ahead of it than this: the first query less the first key
    __device__ __forceinline__ bool operator()(int query, int key) const {
        return key - query > ahead || (mask && key < keys && !mask[key]);
    }
};
__device__ __forceinline__ Hidden hidden(const AttentionShape& s, const bool* mask, int64_t first_query,
                                         int64_t first_key, int keys) {
    constexpr int64_t most = 1 << 30;  // as far as that is as good as any
    const int64_t ahead = first_query - first_key;
    return {mask ? mask + first_key : nullptr, keys,
            int(!s.causal || ahead > most ? most : ahead < -most ? -most : ahead)};
}
__device__ __forceinline__ const bool* mask_of(const AttentionShape& s, const bool* key_mask, int64_t sample) {
    return key_mask ? key_mask + sample * s.tk : nullptr;
}
// Behind the last key that any of `queries` from the first on sees.
__device__ __forceinline__ int64_t keys_end(const AttentionShape& s, int64_t first_query, int queries) {
    return s.causal && first_query + queries < s.tk ? first_query + queries : s.tk;
}

}  // namespace pydiff
