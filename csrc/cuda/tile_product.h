// A matrix product by tiles: one block makes 128 rows (m) of 64 columns (n), 64 bytes of the summed axis (k) at a time.
// The kernel says where elements lie; here they are copied, multiplied and handed back:
//
//     const float* sums = multiply<T, left_by_k, right_by_k>(steps, memory, load, look);
//     for_each_row(sums, [&](int m, int n, float (&row)[8]) { .. });
//
// The left operand is (m, k), the right one (k, n). "By k" says that k is the contiguous axis of an operand in memory.
// Tiles keep that order in shared memory, so copies of 16 bytes are possible; they are asynchronous, two steps ahead.
// bfloat16 is multiplied on tensor cores, float32 in registers. Sums are float32 and grow in the order of k, alike in
// all places of a tile.
#pragma once
#include <algorithm>

#include "../simt/ptx.h"
#include "vector.h"

namespace pydiff {

constexpr int threads = 128, m_tile = 128, n_tile = 64, stages = 3;
template <class T>
constexpr int k_tile = 64 / int(sizeof(T));
template <class T>
constexpr int chunk = 16 / int(sizeof(T));  // elements of a vector copy
template <class T>
constexpr int resident = sizeof(T) == 2 ? 4 : 3;  // blocks at a time on a multiprocessor: 128 or 168 registers a thread
// Rows of a tile are 16 bytes further apart than they are long, so that eight of them start in different banks, whether
// they have 64, 128, 256 or 512 bytes.
template <class T, int width>
constexpr int pitch = width + chunk<T>;
constexpr int sum_pitch = n_tile + 8;
constexpr int sum_bytes = m_tile * sum_pitch * int(sizeof(float));

// ---- copies ------------------------------------------------------------------------------------------------------

// What a thread copies of a tile `width` wide, by single elements or by vectors: the same column in all rows, from
// first_row on every rows_apart.
template <class T, int width>
__device__ __forceinline__ int column(bool vectors) {
    return vectors ? int(threadIdx.x) % (width / chunk<T>) * chunk<T> : int(threadIdx.x) % width;
}
template <class T, int width>
__device__ __forceinline__ int first_row(bool vectors) {
    return int(threadIdx.x) / (vectors ? width / chunk<T> : width);
}
template <class T, int width>
__device__ __forceinline__ int rows_apart(bool vectors) {
    return threads / (vectors ? width / chunk<T> : width);
}

// Starts this thread's copies into a tile [rows][width]. source(row) is called for its rows in ascending order and says
// where the elements of its column are, or null for zeros; `any` is an address to name, not to read, in that case.
template <int rows, int width, int count, class T, class Source>
__device__ __forceinline__ void copy_rows(T* tile, const T* any, Source& source) {
    constexpr int across = width / count, bytes = count * int(sizeof(T));
    static_assert(threads % across == 0 && rows % (threads / across) == 0, "every thread copies as many elements");
    T* to = tile + int(threadIdx.x) / across * pitch<T, width> + int(threadIdx.x) % across * count;
#pragma unroll 4
    for (int i = 0; i < rows; i += threads / across) {
        const T* from = source(int(threadIdx.x) / across + i);
        if constexpr (bytes >= 4)
            copy_async<bytes>(to + i * pitch<T, width>, from ? from : any, from ? bytes : 0);
        else
            to[i * pitch<T, width>] = from ? *from : from_float<T>(0.0f);
    }
}
// The same, where vectors are possible only if addresses and sizes allow.
template <int rows, int width, class T, class Source>
__device__ __forceinline__ void copy_tile(T* tile, const T* any, bool vectors, Source source) {
    if (vectors)
        copy_rows<rows, width, chunk<T>>(tile, any, source);
    else
        copy_rows<rows, width, 1>(tile, any, source);
}

// ---- the product --------------------------------------------------------------------------------------------------

// How the two tiles of a step lie in shared memory, the left one in front, and what the block needs of it.
template <class T, bool left_by_k, bool right_by_k>
struct Tiles {
    static constexpr int left_pitch = pitch<T, left_by_k ? k_tile<T> : m_tile>;
    static constexpr int right_pitch = pitch<T, right_by_k ? k_tile<T> : n_tile>;
    static constexpr int left_size = (left_by_k ? m_tile : k_tile<T>) * left_pitch;
    static constexpr int stage_size = left_size + (right_by_k ? n_tile : k_tile<T>) * right_pitch;
    // the sums take the place of the tiles, and the kernel may have 8 bytes a thread behind them
    static constexpr int bytes = std::max(stages * stage_size * int(sizeof(T)), sum_bytes + 8 * threads);
};

// The sums of one thread: add() adds the product of two tiles, put() lays them into sums[m][n].
template <class T, bool left_by_k, bool right_by_k>
struct Product;

// Tensor cores. Four warps make 64 x 32 each, in 4 x 4 pieces of 16 x 8, from fragments of 16 x 16 on either side.
template <bool left_by_k, bool right_by_k>
struct Product<bfloat16, left_by_k, right_by_k> {
    using Tile = Tiles<bfloat16, left_by_k, right_by_k>;
    float sum[4][4][4] = {};
    int lane = int(threadIdx.x) % 32, m0 = int(threadIdx.x) / 64 * 64, n0 = int(threadIdx.x) / 32 % 2 * 32;

    __device__ __forceinline__ void add(const bfloat16* left, const bfloat16* right) {
        // A fragment is four matrices of 8 x 8, and lane 8 i + row points at a row of the i-th. `odd` is 8 for the
        // second and the fourth, `late` for the last two.
        const int row = lane % 8, odd = lane / 8 % 2 * 8, late = lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < k_tile<bfloat16>; k += 16) {
            uint32_t a[4][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // odd: further in m, late: further in k
                const int m = m0 + 16 * i + odd;
                load_matrix<!left_by_k>(a[i], left_by_k ? left + (m + row) * Tile::left_pitch + k + late
                                                        : left + (k + late + row) * Tile::left_pitch + m);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {  // odd: further in k, late: further in n
                const int n = n0 + 16 * j + late;
                load_matrix<!right_by_k>(b[j], right_by_k ? right + (n + row) * Tile::right_pitch + k + odd
                                                          : right + (k + odd + row) * Tile::right_pitch + n);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma_bf16(sum[i][j], a[i], pair, sum[i][j]);
                }
        }
    }

    __device__ __forceinline__ void put(float* sums) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float* to = sums + (m0 + 16 * i + lane / 4) * sum_pitch + n0 + 8 * j + lane % 4 * 2;
                store_vector(to, make_float2(sum[i][j][0], sum[i][j][1]));
                store_vector(to + 8 * sum_pitch, make_float2(sum[i][j][2], sum[i][j][3]));
            }
    }
};

// Registers. 16 x 8 threads make 8 x 8 sums each, from four k at a time.
template <bool left_by_k, bool right_by_k>
struct Product<float, left_by_k, right_by_k> {
    using Tile = Tiles<float, left_by_k, right_by_k>;
    float sum[8][8] = {};
    int down = int(threadIdx.x) / 8, along = int(threadIdx.x) % 8;

    // The i-th row or column of thread t out of `count`. An access brings four floats: in a tile by k, four k of one
    // place, and neighbouring threads have neighbouring places, which lie in different banks; else a k of four places.
    template <bool by_k>
    static __device__ __forceinline__ int place(int t, int count, int i) {
        return by_k ? i * count + t : i / 4 * 4 * count + 4 * t + i % 4;
    }
    // v[q][i] = element k + q of the i-th place
    template <bool by_k, int tile_pitch>
    static __device__ __forceinline__ void read(float (&v)[4][8], const float* tile, int k, int t, int count) {
#pragma unroll
        for (int i = 0; i < 8; i += by_k ? 1 : 4)
#pragma unroll
            for (int q = 0; q < 4; q += by_k ? 4 : 1) {
                const int at = place<by_k>(t, count, i);
                const float4 f = load_vector<float4>(tile + (by_k ? at * tile_pitch + k : (k + q) * tile_pitch + at));
                if constexpr (by_k)
                    v[0][i] = f.x, v[1][i] = f.y, v[2][i] = f.z, v[3][i] = f.w;
                else
                    v[q][i] = f.x, v[q][i + 1] = f.y, v[q][i + 2] = f.z, v[q][i + 3] = f.w;
            }
    }

    __device__ __forceinline__ void add(const float* left, const float* right) {
#pragma unroll 1  // more at a time would need more registers than there are
        for (int k = 0; k < k_tile<float>; k += 4) {
            float a[4][8], b[4][8];
            read<left_by_k, Tile::left_pitch>(a, left, k, down, 16);
            read<right_by_k, Tile::right_pitch>(b, right, k, along, 8);
#pragma unroll
            for (int q = 0; q < 4; ++q)
#pragma unroll
                for (int i = 0; i < 8; ++i)
#pragma unroll
                    for (int j = 0; j < 8; ++j) sum[i][j] += a[q][i] * b[q][j];
        }
    }

    __device__ __forceinline__ void put(float* sums) const {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                sums[place<left_by_k>(down, 16, i) * sum_pitch + place<right_by_k>(along, 8, j)] = sum[i][j];
    }
};

// The block's tile of the product: sums[m][n] in shared memory, rows sum_pitch apart, for all threads to read. `memory`
// has Tiles::bytes. load(left, right) starts the copies of the next step; look(right) may read a tile that has come.
template <class T, bool left_by_k, bool right_by_k, class Load, class Look>
__device__ __forceinline__ float* multiply(int64_t steps, unsigned char* memory, Load load, Look look) {
    using Tile = Tiles<T, left_by_k, right_by_k>;
    T* tiles = reinterpret_cast<T*>(memory);
    const auto start = [&](int64_t step, int stage) {
        if (step < steps) load(tiles + stage * Tile::stage_size, tiles + stage * Tile::stage_size + Tile::left_size);
        commit_copies();  // one group a step, empty or not, so that groups count steps
    };
    Product<T, left_by_k, right_by_k> product;
#pragma unroll 1  // the code of load() is long
    for (int step = 0; step < stages - 1; ++step) start(step, step);
    int stage = 0;
    for (int64_t step = 0; step < steps; ++step) {
        wait_copies<stages - 2>();
        __syncthreads();  // everyone's copies of this step are here, and all are done with the tiles of the step before
        start(step + stages - 1, (stage + stages - 1) % stages);
        const T* left = tiles + stage * Tile::stage_size;
        look(left + Tile::left_size);
        product.add(left, left + Tile::left_size);
        stage = (stage + 1) % stages;
    }
    float* sums = reinterpret_cast<float*>(memory);
    __syncthreads();  // all are done with the tiles
    product.put(sums);
    __syncthreads();
    return sums;
}

// Calls write(m, n, sums of columns n .. n + 7) for the whole tile; n is 8 (threadIdx.x % 8) in all calls of a thread.
template <class Write>
__device__ __forceinline__ void for_each_row(const float* sums, Write write) {
    const int n = int(threadIdx.x) % 8 * 8;
#pragma unroll 2
    for (int m = int(threadIdx.x) / 8; m < m_tile; m += threads / 8) {
        float row[8];
        load(row, sums + m * sum_pitch + n);
        write(m, n, row);
    }
}

}  // namespace pydiff
