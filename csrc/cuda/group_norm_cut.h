// How group normalisation cuts a sample into what blocks and threads work on, and how they reach it.
//
// For group_norm.cu, which has the equations and their numbers.
#pragma once
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "../simt/ptx.h"
#include "vector.h"

namespace pydiff {
namespace {

constexpr int most_groups = 64;              // of a slab
constexpr int most_chunks = 64;              // of a sample: two for every lane that merges them
constexpr int64_t chunk_elements = 8192;     // at least, or a block has too little between its reductions
constexpr int64_t row_bytes = 128;           // of a slab's pixel, where the groups allow: a line of the cache
constexpr int64_t easy_bytes = 64 << 10;     // of slabs in shared memory: three blocks fit on a multiprocessor
constexpr int64_t declared_bytes = 3 << 10;   // of shared memory, by the kernels themselves, at most

template <class T>
constexpr int each = 16 / int(sizeof(T));  // channels of a pack

struct Cut {
    int64_t n, s, c;
    int groups, width;          // groups, and channels of a group
    int slab, slabs;            // channels of a slab (the last may have fewer), slabs
    int chunk, chunks;          // pixels of a chunk (the last may have fewer), chunks
    int across, down, threads;  // a block's threads are `down` rows of `across` packs, and those that are left over
    int piece;                  // neighbouring channels that always are of one group: merged before they leave a thread
    bool one_read;
    int64_t slab_bytes;         // in shared memory, of all arrays

    // Shared memory of slab_moments and of sum_rows, for packs of V channels.
    size_t moments_bytes(int V) const { return sizeof(float) * 2 * (V / piece) * (threads + 1); }
    size_t sums_bytes(int V) const { return sizeof(float) * V * (threads + 32 / V); }
    dim3 grid() const {  // chunks and slabs; samples, which may be more than a grid has rows
        return dim3(unsigned(chunks) * slabs, unsigned(std::min<int64_t>(n, 65535)), unsigned((n + 65534) / 65535));
    }
};

// arrays: how many of x's size a block would have to keep for one read. What fits is for the kind of GPU to say: 224 KB
// on Hopper.
template <class T>
Cut cut_sample(const GroupNormShape& s, int arrays) {
    constexpr int64_t V = each<T>;
    Cut cut{};
    cut.n = s.n, cut.s = s.s, cut.c = s.c;
    cut.groups = int(s.groups), cut.width = int(s.c / s.groups);
    // Memory is moved in sectors of 32 bytes; slabs do not share them where the channels allow.
    const int64_t unit = std::lcm<int64_t>(cut.width, std::gcd<int64_t>(s.c, 32 / sizeof(T)));
    const int64_t wide = std::max<int64_t>(1, row_bytes / int64_t(sizeof(T)) / unit);
    cut.piece = int(std::gcd<int64_t>(cut.width, V));

    auto bytes = [&](int64_t slab) { return arrays * s.s * ((slab + V - 1) / V * V) * int64_t(sizeof(T)); };
    auto lay_out = [&](int64_t slab, int64_t chunk, int64_t most_threads) {
        cut.slab = int(std::min(slab, s.c)), cut.slabs = int((s.c + slab - 1) / slab);
        cut.chunks = int((s.s + chunk - 1) / chunk), cut.chunk = int((s.s + cut.chunks - 1) / cut.chunks);
        const int64_t packs = (cut.slab + V - 1) / V;
        cut.threads = int(std::min(most_threads, (packs * cut.chunk + 31) / 32 * 32));
        cut.across = int(std::min<int64_t>(packs, cut.threads)), cut.down = cut.threads / cut.across;
    };
    int64_t units = wide;
    while (units > 1 && bytes(units * unit) > easy_bytes) --units;
    cut.slab_bytes = bytes(std::min(units * unit, s.c));
    const int64_t shared_bytes = most_shared_bytes() - declared_bytes;
    if (cut.slab_bytes <= shared_bytes) {  // more threads where a block is alone
        lay_out(units * unit, s.s, cut.slab_bytes > easy_bytes ? 384 : 256);
        const size_t more = arrays == 1 ? cut.moments_bytes(int(V)) : cut.sums_bytes(int(V));
        cut.one_read = cut.slab_bytes + int64_t(more) <= shared_bytes;
    }
    if (!cut.one_read) {
        const int64_t slab = wide * unit, least = (chunk_elements + slab - 1) / slab;
        lay_out(slab, std::max((s.s + most_chunks - 1) / most_chunks, least), 256);
        cut.slab_bytes = 0;
    }
    return cut;
}

// What a block works on: a chunk of a slab of a sample.
struct Part {
    int64_t sample, first_pixel, first_channel;
    int chunk, pixels, channels, first_group, groups;

    __device__ explicit Part(const Cut& cut)
        : sample(int64_t(blockIdx.z) * gridDim.y + blockIdx.y), chunk(int(blockIdx.x) / cut.slabs) {
        first_pixel = int64_t(chunk) * cut.chunk;
        first_channel = int64_t(int(blockIdx.x) % cut.slabs) * cut.slab;
        pixels = int(cut.s - first_pixel < cut.chunk ? cut.s - first_pixel : cut.chunk);
        channels = int(cut.c - first_channel < cut.slab ? cut.c - first_channel : cut.slab);
        first_group = int(first_channel / cut.width), groups = channels / cut.width;
    }
    // Where it begins in an array like x, and where its groups begin in one of (n, groups) or (n, chunks, groups).
    __device__ int64_t at(const Cut& cut) const { return (sample * cut.s + first_pixel) * cut.c + first_channel; }
    __device__ int64_t group_at(const Cut& cut) const { return sample * cut.groups + first_group; }
    __device__ int64_t group_at(const Cut& cut, int k) const {
        return (sample * cut.chunks + k) * cut.groups + first_group;
    }
    // Where its channels begin in an array of (n, chunks, 3, c).
    __device__ int64_t row_at(const Cut& cut) const {
        return (sample * cut.chunks + chunk) * 3 * cut.c + first_channel;
    }
};

// use(g) for the groups of a part, one a warp.
template <class Use>
__device__ __forceinline__ void for_groups(const Part& part, Use use) {
    for (int g = int(threadIdx.x) / 32; g < part.groups; g += int(blockDim.x) / 32) use(g);
}

// Which pack of a row of packs, and which rows, a thread has.
struct Seat {
    int column, row;
    __device__ explicit Seat(const Cut& cut)
        : column(int(threadIdx.x) % cut.across), row(int(threadIdx.x) / cut.across) {}
};

// The channels of a slab in every pixel of a chunk: in global memory, or in shared memory in whole packs.
template <class T, bool aligned>
struct Rows {
    using Element = std::remove_const_t<T>;
    using Packed = Pack<Element, each<T>>;
    T* first;
    int64_t pitch;
    int channels;

    __device__ __forceinline__ Packed load(int pixel, int channel) const {
        T* const p = first + pixel * pitch + channel;
        if constexpr (aligned) {
            return load_vector<Packed>(p);
        } else {
            Packed pack;
#pragma unroll
            for (int v = 0; v < each<T>; ++v) pack.element[v] = channel + v < channels ? p[v] : from_float<Element>(0);
            return pack;
        }
    }
    __device__ __forceinline__ void store(int pixel, int channel, const Packed& pack) const {
        T* const p = first + pixel * pitch + channel;
        if constexpr (aligned) {
            store_vector(p, pack);
        } else {
#pragma unroll
            for (int v = 0; v < each<T>; ++v)
                if (channel + v < channels) p[v] = pack.element[v];
        }
    }
};

template <bool aligned, class T>
__device__ __forceinline__ Rows<T, aligned> rows_of(const Cut& cut, const Part& part, T* x /* (n, s, c) */) {
    return {x + part.at(cut), cut.c, part.channels};
}

// Calls use(pixel, load(pixel)) for every pixel of a thread: row, row + down, .. below `pixels`; in_flight of them are
// loaded before the first is used.
template <int in_flight, class Load, class Use>
__device__ __forceinline__ void for_pixels(int row, int down, int pixels, Load load, Use use) {
    for (int p = row; p < pixels; p += in_flight * down) {
        decltype(load(0)) loaded[in_flight];
#pragma unroll
        for (int k = 0; k < in_flight; ++k)
            if (p + k * down < pixels) loaded[k] = load(p + k * down);
#pragma unroll
        for (int k = 0; k < in_flight; ++k)
            if (p + k * down < pixels) use(p + k * down, loaded[k]);
    }
}

// Starts copying a part into shared memory; each thread copies the packs that it will use.
template <class T, bool aligned>
__device__ __forceinline__ Rows<T, true> fetch(const Cut& cut, const Part& part, const Rows<const T, aligned>& x,
                                               T* shared) {
    const int packs = (part.channels + each<T> - 1) / each<T>;
    const Rows<T, true> kept{shared, int64_t(packs) * each<T>, packs * each<T>};
    const Seat seat(cut);
    for (int column = seat.column; column < packs && seat.row < cut.down; column += cut.across)
        for (int p = seat.row; p < part.pixels; p += cut.down) {
            const int channel = column * each<T>;
            if constexpr (aligned)
                copy_async<16>(kept.first + p * kept.pitch + channel, x.first + p * x.pitch + channel);
            else
                kept.store(p, channel, x.load(p, channel));
        }
    commit_copies();
    return kept;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// Which group of the slab each channel of a pack is of; 0 behind the last channel.
template <int V>
__device__ __forceinline__ void find_groups(const Cut& cut, const Part& part, int channel, int (&group)[V]) {
    int g = channel / cut.width, left = (g + 1) * cut.width - channel;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        group[v] = channel + v < part.channels ? g : 0;
        if (--left == 0) ++g, left = cut.width;
    }
}

// z = (x - mean) scale + beta for the channels of a pack, zeros behind the last.
template <int V>
struct Affine {
    float mean[V], scale[V], beta[V];

    // means, rstds: of the slab's groups; gammas, betas: of its channels.
    __device__ __forceinline__ Affine(const Cut& cut, const Part& part, int channel, const float* means,
                                      const float* rstds, const float* gammas, const float* betas) {
        int group[V];
        find_groups(cut, part, channel, group);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const bool inside = channel + v < part.channels;
            mean[v] = means[group[v]];
            scale[v] = inside ? rstds[group[v]] * gammas[channel + v] : 0.0f;
            beta[v] = inside ? betas[channel + v] : 0.0f;
        }
    }
    __device__ __forceinline__ float z(int v, float centred) const { return centred * scale[v] + beta[v]; }
};

// Where e^-z overflows, both have their limit, 0.
__device__ __forceinline__ float silu(float z) { return __fdividef(z, 1.0f + __expf(-z)); }
__device__ __forceinline__ float silu_derivative(float z) {
    const float sigma = __fdividef(1.0f, 1.0f + __expf(-z));
    return sigma + z * sigma * (1.0f - sigma);
}

}  // namespace
}  // namespace pydiff
