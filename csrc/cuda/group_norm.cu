// Group normalisation (Wu and He 2018, eq. 1-2 and 7) with an optional SiLU behind it, and its backward.
//
//     xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)   mean, var over the m = s c / groups elements of a group
//     z    = gamma xhat + beta
//     y    = act(z)                                          act = SiLU or identity
//
// Backward, for a gradient dy of the loss:
//     1. dz     = dy act'(z)                                 z computed again; SiLU' = sigma(z) (1 + z (1 - sigma(z)))
//     2. dbeta  = sum_{n,s} dz,   dgamma = sum_{n,s} dz xhat
//     3. dxhat  = gamma dz
//     4. dx     = rstd (dxhat - mean_group(dxhat) - xhat mean_group(dxhat xhat))
//     5. dx_sum = sum_{n,s} dx                               from the sums of dz and x per channel, so dx is not read
// The means in 4 follow from the sums per channel that 2 needs anyway: mean_group(dxhat) = sum_c gamma[c] sum_s dz / m.
//
// Array path: pydiff/ops/group_norm.py. Reference: pydiff/reference/group_norm.py. CPU: csrc/cpu/group_norm.cpp.
//
// Layout: x (n, s, c) with channels last, so a group is a slice of every pixel. A sample is cut by its own shape alone:
//     pack    8 bfloat16 or 4 float channels of a pixel: one access of 16 bytes, a thread's
//     slab    whole groups, 32 to 128 bytes of every pixel where the groups are that narrow: a block's
//     chunk   some pixels, at most 64 chunks a sample: a block's, so that one large picture keeps the GPU busy
//
// A reduction and a map follow one another, in one of two ways; s, c and groups say which. Bytes are what counts; in
// bfloat16 an element takes:                                                                       forward    backward
//     one read    all pixels of a slab fit into the shared memory of a block and stay there              4           6
//     two passes  partial results of every chunk go through the workspace; the input is read twice       6          10
// Every thread meets its own packs again, so shared memory needs no barrier and knows no bank conflict. (Blocks of a
// cluster could share a larger slab; the emulator has no clusters, so there is no such kernel.)
//
// Nothing is added by atomics: every block writes what it found, and the next kernel adds in a fixed order.
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "../simt/ptx.h"
#include "vector.h"

namespace pydiff {
namespace {

// ---- how a sample is cut -----------------------------------------------------------------------------------------

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

// ---- statistics --------------------------------------------------------------------------------------------------

// Of some elements: their number, their mean, and the sum of their squared deviations from it.
struct Moments {
    float count, mean, m2;
};

// The moments of all elements that part(0) .. part(parts - 1) describe, for every lane of a warp:
//     mean = sum_k count_k mean_k / count,   m2 = sum_k m2_k + count_k (mean_k - mean)^2
// which is the formula of Chan, Golub and LeVeque (1983) for many parts at once. Means are taken from the first one, so
// that nothing cancels where all of them are far from zero.
template <class Part>
__device__ __forceinline__ Moments merge(int parts, Part part) {
    const int lane = int(threadIdx.x) % 32;
    const float origin = part(0).mean;
    float count = 0, sum = 0, m2 = 0;
    for (int k = lane; k < parts; k += 32) {
        const Moments m = part(k);
        count += m.count;
        sum += m.count * (m.mean - origin);
    }
    count = warp_sum(count);
    const float shift = warp_sum(sum) / count;
    for (int k = lane; k < parts; k += 32) {
        const Moments m = part(k);
        const float deviation = m.mean - origin - shift;
        m2 += m.m2 + m.count * (deviation * deviation);
    }
    return {count, origin + shift, warp_sum(m2)};
}

// The moments of each channel of a thread's pack over its pixels, merged in pieces; mean[v] and m2[v] of the first
// channel v of a piece describe all of it. Deviations are taken from the thread's first pixel: where that one is far
// from the others, so much of the variance is its own that the digits which cancel are not missed.
template <class T, int in_flight, class Source>
__device__ __forceinline__ void pack_moments(const Cut& cut, const Part& part, const Seat& seat, int channel,
                                             const Source& x, float (&mean)[each<T>], float (&m2)[each<T>]) {
    constexpr int V = each<T>;
    float origin[V], sum1[V] = {}, sum2[V] = {};
    const auto first = x.load(seat.row, channel);
#pragma unroll
    for (int v = 0; v < V; ++v) origin[v] = to_float(first.element[v]);
    for_pixels<in_flight>(
        seat.row, cut.down, part.pixels, [&](int p) { return x.load(p, channel); },
        [&](int, const auto& pack) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float d = to_float(pack.element[v]) - origin[v];
                sum1[v] += d;
                sum2[v] += d * d;
            }
        });
    const float count = float((part.pixels - seat.row + cut.down - 1) / cut.down);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        const float shift = sum1[v] / count, rest = sum2[v] - shift * sum1[v];
        mean[v] = origin[v] + shift;
        m2[v] = rest < 0 ? 0 : rest;  // rounding; NaN stays NaN
    }
#pragma unroll
    for (int half = 1; half < V; half *= 2) {
        if (half >= cut.piece) break;
#pragma unroll
        for (int v = 0; v < V; v += 2 * half) {  // both have count * half elements
            const float delta = mean[v + half] - mean[v];
            mean[v] += 0.5f * delta;
            m2[v] += m2[v + half] + 0.5f * float(half) * count * (delta * delta);
        }
    }
}

// The moments of the slab's groups over a chunk. All threads of the block call it and may use of_group afterwards.
template <class T, int in_flight, class Source>
__device__ __forceinline__ void slab_moments(const Cut& cut, const Part& part, const Source& x, float* scratch,
                                             Moments* of_group /* (groups), shared */) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    const int pieces = V / cut.piece, stride = int(blockDim.x) + 1;
    const int rows = part.pixels < cut.down ? part.pixels : cut.down;
    float *const means = scratch, *const m2s = scratch + pieces * stride;
    for (int begin = 0; begin < part.channels; begin += cut.across * V) {  // once, unless groups are very wide
        const int channel = begin + seat.column * V;
        if (seat.row < rows && channel < part.channels) {
            float mean[V], m2[V];
            pack_moments<T, in_flight>(cut, part, seat, channel, x, mean, m2);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                if (v % cut.piece) continue;
                means[v / cut.piece * stride + int(threadIdx.x)] = mean[v];
                m2s[v / cut.piece * stride + int(threadIdx.x)] = m2[v];
            }
        }
        __syncthreads();
        const int left = part.channels - begin, tile = cut.across * V, end = begin + (left < tile ? left : tile);
        for (int g = begin / cut.width + int(threadIdx.x) / 32; g * cut.width < end; g += int(blockDim.x) / 32) {
            int from = g * cut.width, to = from + cut.width;
            const bool begun = from < begin;  // in the columns before, whose result is one more part
            if (from < begin) from = begin;
            if (to > end) to = end;
            const int first = (from - begin) / cut.piece, count = (to - from) / cut.piece;
            const Moments m = merge(rows * count + begun, [&](int k) {
                const int row = k / count, piece = first + k % count;
                if (row == rows) return of_group[g];
                const int at = piece % pieces * stride + row * cut.across + piece / pieces;
                return Moments{float((part.pixels - row + cut.down - 1) / cut.down * cut.piece), means[at], m2s[at]};
            });
            __syncwarp();
            if (threadIdx.x % 32 == 0) of_group[g] = m;
        }
        __syncthreads();
    }
}

// mean and rstd of group g of the slab: for the block, and once for the caller.
__device__ __forceinline__ void set_statistics(const Cut& cut, const Part& part, int g, const Moments& m, float eps,
                                               float* means, float* rstds, float* mean, float* rstd) {
    means[g] = m.mean;
    rstds[g] = 1.0f / sqrtf(m.m2 / m.count + eps);
    if (part.chunk == 0) {
        mean[part.group_at(cut) + g] = means[g];
        rstd[part.group_at(cut) + g] = rstds[g];
    }
}

// ---- forward -----------------------------------------------------------------------------------------------------

template <class T, bool with_silu, int in_flight, class Source, bool aligned>
__device__ __forceinline__ void normalise(const Cut& cut, const Part& part, const Source& x, const float* means,
                                          const float* rstds, const float* gamma, const float* beta,
                                          const Rows<T, aligned>& y) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    for (int channel = seat.column * V; channel < part.channels && seat.row < cut.down; channel += cut.across * V) {
        const Affine<V> affine(cut, part, channel, means, rstds, gamma + part.first_channel, beta + part.first_channel);
        for_pixels<in_flight>(
            seat.row, cut.down, part.pixels, [&](int p) { return x.load(p, channel); },
            [&](int p, auto pack) {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const float z = affine.z(v, to_float(pack.element[v]) - affine.mean[v]);
                    pack.element[v] = from_float<T>(with_silu ? silu(z) : z);
                }
                y.store(p, channel, pack);
            });
    }
}

template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(384)
    group_norm_one_read_kernel(Cut cut, float eps, const T* __restrict__ x, const float* __restrict__ gamma,
                               const float* __restrict__ beta, T* __restrict__ y, float* __restrict__ mean,
                               float* __restrict__ rstd) {
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(Moments, of_group, [most_groups]);
    SHARED(float, means, [most_groups]);
    SHARED(float, rstds, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    const auto kept = fetch(cut, part, rows_of<aligned>(cut, part, x), reinterpret_cast<T*>(shared));
    wait_copies<0>();
    slab_moments<T, 2>(cut, part, kept, reinterpret_cast<float*>(shared + cut.slab_bytes), of_group);
    for (int g = int(threadIdx.x); g < part.groups; g += int(blockDim.x))
        set_statistics(cut, part, g, of_group[g], eps, means, rstds, mean, rstd);
    __syncthreads();
    normalise<T, with_silu, 2>(cut, part, kept, means, rstds, gamma, beta, rows_of<aligned>(cut, part, y));
}

// The first of two passes: (mean, m2) of every group in every chunk.
template <class T, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_moments_kernel(Cut cut, const T* __restrict__ x,
                              float2* __restrict__ partial /* (n, chunks, groups) */) {
    DYNAMIC_SHARED(float, scratch);
    SHARED(Moments, of_group, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    slab_moments<T, aligned ? 4 : 1>(cut, part, rows_of<aligned>(cut, part, x), scratch, of_group);
    for (int g = int(threadIdx.x); g < part.groups; g += int(blockDim.x))
        partial[part.group_at(cut, part.chunk) + g] = make_float2(of_group[g].mean, of_group[g].m2);
}

// The second: every block merges the moments of its groups, which are few, and normalises its chunk.
template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_normalise_kernel(Cut cut, float eps, const T* __restrict__ x, const float* __restrict__ gamma,
                                const float* __restrict__ beta, const float2* __restrict__ partial, T* __restrict__ y,
                                float* __restrict__ mean, float* __restrict__ rstd) {
    SHARED(float, means, [most_groups]);
    SHARED(float, rstds, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    for_groups(part, [&](int g) {
        const Moments m = merge(cut.chunks, [&](int k) {
            const float2 moments = partial[part.group_at(cut, k) + g];
            const int64_t left = cut.s - int64_t(k) * cut.chunk;
            return Moments{float((left < cut.chunk ? left : cut.chunk) * cut.width), moments.x, moments.y};
        });
        if (threadIdx.x % 32 == 0) set_statistics(cut, part, g, m, eps, means, rstds, mean, rstd);
    });
    __syncthreads();
    normalise<T, with_silu, aligned ? 2 : 1>(cut, part, rows_of<aligned>(cut, part, x), means, rstds, gamma, beta,
                                             rows_of<aligned>(cut, part, y));
}

// ---- backward ----------------------------------------------------------------------------------------------------

// What a backward kernel is given, besides x and dy.
struct Given {
    const float *gamma, *beta, *mean, *rstd;
};

// A pack of x and of dy.
template <class T>
struct Both {
    Pack<T, each<T>> x, dy;
};

// Sums a value of every channel over the rows of threads; store(channel - begin, sum) is called once for each of them.
template <int V, class Store>
__device__ __forceinline__ void sum_rows(const Cut& cut, int channels, const float (&value)[V], float* scratch,
                                         Store store) {
    const int stride = int(blockDim.x) + 32 / V;  // so that 32 neighbouring channels are in 32 banks
#pragma unroll
    for (int v = 0; v < V; ++v) scratch[v * stride + int(threadIdx.x)] = value[v];
    __syncthreads();
    for (int j = int(threadIdx.x); j < channels; j += int(blockDim.x)) {
        const float* const column = scratch + j % V * stride + j / V;
        float sum = 0;
#pragma unroll 8
        for (int row = 0; row < cut.down; ++row) sum += column[row * cut.across];
        store(j, sum);
    }
    __syncthreads();
}

// Term 2 over a chunk, and what 5 needs: row[0][j] = sum dz, row[1][j] = sum dz xhat, row[2][j] = sum (x - mean).
template <class T, bool with_silu, int in_flight, class Source>
__device__ __forceinline__ void channel_sums(const Cut& cut, const Part& part, const Given& given,
                                             const Source& x, const Source& dy, float* scratch,
                                             float* row /* (3, c), from the slab's first channel */) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    const float *const means = given.mean + part.group_at(cut), *const rstds = given.rstd + part.group_at(cut);
    for (int begin = 0; begin < part.channels; begin += cut.across * V) {
        const int channel = begin + seat.column * V;
        float sum_dz[V] = {}, sum_dz_centred[V] = {}, sum_centred[V] = {};
        if (seat.row < cut.down && channel < part.channels) {
            const Affine<V> affine(cut, part, channel, means, rstds, given.gamma + part.first_channel,
                                   given.beta + part.first_channel);
            for_pixels<in_flight>(
                seat.row, cut.down, part.pixels,
                [&](int p) { return Both<T>{x.load(p, channel), dy.load(p, channel)}; },
                [&](int, const Both<T>& pack) {
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        const float centred = to_float(pack.x.element[v]) - affine.mean[v];
                        float dz = to_float(pack.dy.element[v]);
                        if (with_silu) dz *= silu_derivative(affine.z(v, centred));  // 1
                        sum_dz[v] += dz;                                             // 2
                        sum_dz_centred[v] += dz * centred;                           // 2, less the factor rstd
                        sum_centred[v] += centred;
                    }
                });
        }
        const int left = part.channels - begin, tile = cut.across * V, channels = left < tile ? left : tile;
        float* const to = row + begin;
        sum_rows(cut, channels, sum_dz, scratch, [&](int j, float sum) { to[j] = sum; });
        sum_rows(cut, channels, sum_dz_centred, scratch,
                 [&](int j, float sum) { to[cut.c + j] = sum * rstds[(begin + j) / cut.width]; });
        sum_rows(cut, channels, sum_centred, scratch, [&](int j, float sum) { to[2 * cut.c + j] = sum; });
    }
}

// Term 3 over a chunk, for every lane of a warp: the sums of dxhat and of dxhat xhat over group g of the slab.
__device__ __forceinline__ float2 group_sums(const Cut& cut, const Part& part, int g, const float* gamma,
                                             const float* row) {
    float sum_dxhat = 0, sum_dxhat_xhat = 0;
    for (int j = g * cut.width + int(threadIdx.x) % 32; j < (g + 1) * cut.width; j += 32) {
        const float gamma_j = gamma[part.first_channel + j];
        sum_dxhat += gamma_j * row[j];  // 3
        sum_dxhat_xhat += gamma_j * row[cut.c + j];
    }
    return make_float2(warp_sum(sum_dxhat), warp_sum(sum_dxhat_xhat));
}

// Term 4 is dx = scale dz - offset - slope (x - mean) with these two for every group.
__device__ __forceinline__ void set_group_means(const Cut& cut, int g, float rstd, float2 sums, float* offsets,
                                                float* slopes) {
    const float m = float(cut.s) * float(cut.width);
    offsets[g] = rstd * (sums.x / m);
    slopes[g] = rstd * rstd * (sums.y / m);
}

// Terms 4 and 5: dx, and row[2] becomes its sum over the chunk.
template <class T, bool with_silu, int in_flight, class Source, bool aligned>
__device__ __forceinline__ void input_gradient(const Cut& cut, const Part& part, const Given& given,
                                               const Source& x, const Source& dy, const float* offsets,
                                               const float* slopes, const Rows<T, aligned>& dx, float* row) {
    constexpr int V = each<T>;
    const Seat seat(cut);
    const float *const means = given.mean + part.group_at(cut), *const rstds = given.rstd + part.group_at(cut);
    for (int j = int(threadIdx.x); j < part.channels; j += int(blockDim.x)) {
        const int group = j / cut.width;
        row[2 * cut.c + j] = given.gamma[part.first_channel + j] * rstds[group] * row[j] -
                             float(part.pixels) * offsets[group] - slopes[group] * row[2 * cut.c + j];  // 5
    }
    for (int channel = seat.column * V; channel < part.channels && seat.row < cut.down; channel += cut.across * V) {
        const Affine<V> affine(cut, part, channel, means, rstds, given.gamma + part.first_channel,
                               given.beta + part.first_channel);
        int group[V];
        float offset[V], slope[V];
        find_groups(cut, part, channel, group);
#pragma unroll
        for (int v = 0; v < V; ++v) offset[v] = offsets[group[v]], slope[v] = slopes[group[v]];
        for_pixels<in_flight>(
            seat.row, cut.down, part.pixels,
            [&](int p) { return Both<T>{x.load(p, channel), dy.load(p, channel)}; },
            [&](int p, const Both<T>& pack) {
                Pack<T, V> result;
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const float centred = to_float(pack.x.element[v]) - affine.mean[v];
                    float dz = to_float(pack.dy.element[v]);
                    if (with_silu) dz *= silu_derivative(affine.z(v, centred));                                // 1
                    result.element[v] = from_float<T>(affine.scale[v] * dz - offset[v] - slope[v] * centred);  // 4
                }
                dx.store(p, channel, result);
            });
    }
}

template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(384)
    group_norm_backward_one_read_kernel(Cut cut, Given given, const T* __restrict__ dy, const T* __restrict__ x,
                                        T* __restrict__ dx, float* __restrict__ rows /* (n, 3, c) */) {
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(float, offsets, [most_groups]);
    SHARED(float, slopes, [most_groups]);
    T* const slabs = reinterpret_cast<T*>(shared);
    float* const scratch = reinterpret_cast<float*>(shared + cut.slab_bytes);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    const auto kept_x = fetch(cut, part, rows_of<aligned>(cut, part, x), slabs);
    const auto kept_dy = fetch(cut, part, rows_of<aligned>(cut, part, dy), slabs + cut.slab_bytes / 2 / sizeof(T));
    wait_copies<0>();
    float* const row = rows + part.row_at(cut);
    channel_sums<T, with_silu, 1>(cut, part, given, kept_x, kept_dy, scratch, row);
    for_groups(part, [&](int g) {
        const float2 sums = group_sums(cut, part, g, given.gamma, row);
        if (threadIdx.x % 32 == 0)
            set_group_means(cut, g, given.rstd[part.group_at(cut) + g], sums, offsets, slopes);
    });
    __syncthreads();
    input_gradient<T, with_silu, 1>(cut, part, given, kept_x, kept_dy, offsets, slopes, rows_of<aligned>(cut, part, dx),
                                    row);
}

// The first of two passes: the sums of every channel in every chunk, and those of the groups.
template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_sums_kernel(Cut cut, Given given, const T* __restrict__ dy, const T* __restrict__ x,
                           float2* __restrict__ partial /* (n, chunks, groups) */,
                           float* __restrict__ rows /* (n, chunks, 3, c) */) {
    DYNAMIC_SHARED(float, scratch);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    float* const row = rows + part.row_at(cut);
    channel_sums<T, with_silu, aligned ? 2 : 1>(cut, part, given, rows_of<aligned>(cut, part, x),
                                                rows_of<aligned>(cut, part, dy), scratch, row);
    for_groups(part, [&](int g) {
        const float2 sums = group_sums(cut, part, g, given.gamma, row);
        if (threadIdx.x % 32 == 0) partial[part.group_at(cut, part.chunk) + g] = sums;
    });
}

// The second: dx, and what a chunk gives to dx_sum in place of its sums of x.
template <class T, bool with_silu, bool aligned>
__global__ void __launch_bounds__(256)
    group_norm_input_gradient_kernel(Cut cut, Given given, const T* __restrict__ dy, const T* __restrict__ x,
                                     const float2* __restrict__ partial, T* __restrict__ dx,
                                     float* __restrict__ rows) {
    SHARED(float, offsets, [most_groups]);
    SHARED(float, slopes, [most_groups]);
    const Part part(cut);
    if (part.sample >= cut.n) return;
    for_groups(part, [&](int g) {
        float2 sums = make_float2(0, 0);
        for (int k = int(threadIdx.x) % 32; k < cut.chunks; k += 32) {
            const float2 more = partial[part.group_at(cut, k) + g];
            sums.x += more.x, sums.y += more.y;
        }
        sums = make_float2(warp_sum(sums.x), warp_sum(sums.y));
        if (threadIdx.x % 32 == 0)
            set_group_means(cut, g, given.rstd[part.group_at(cut) + g], sums, offsets, slopes);
    });
    __syncthreads();
    input_gradient<T, with_silu, 2>(cut, part, given, rows_of<aligned>(cut, part, x), rows_of<aligned>(cut, part, dy),
                                    offsets, slopes, rows_of<aligned>(cut, part, dx), rows + part.row_at(cut));
}

// Terms 2 and 5 across the batch: the columns of rows (count, 3, c) added up in double.
constexpr int sum_columns = 32, sum_threads = 32;  // of a block, and how many threads share a column

__global__ void __launch_bounds__(sum_columns* sum_threads)
    group_norm_batch_kernel(int64_t count, int64_t c, const float* __restrict__ rows, float* __restrict__ dgamma,
                            float* __restrict__ dbeta, float* __restrict__ dx_sum /* or null */) {
    SHARED(double, sums, [sum_threads][sum_columns]);
    const int64_t j = int64_t(blockIdx.x) * sum_columns + threadIdx.x;
    const bool inside = j < (dx_sum ? 3 : 2) * c;
    double sum = 0;
#pragma unroll 4
    for (int64_t row = threadIdx.y; inside && row < count; row += sum_threads) sum += double(rows[row * 3 * c + j]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || !inside) return;
    sum = 0;
    for (int k = 0; k < sum_threads; ++k) sum += sums[k][threadIdx.x];
    float* const to = j < c ? dbeta : j < 2 * c ? dgamma : dx_sum;
    to[j % c] = float(sum);
}

// ---- naive: one thread a group, an element or a channel, sums in double --------------------------------------------

template <class T>
__global__ void naive_statistics_kernel(GroupNormShape s, float eps, const T* x, float* mean, float* rstd) {
    const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, width = s.c / s.groups;
    if (k >= s.n * s.groups) return;
    const T* const group = x + k / s.groups * s.s * s.c + k % s.groups * width;
    double sum = 0, m2 = 0;
    for (int64_t p = 0; p < s.s; ++p)
        for (int64_t j = 0; j < width; ++j) sum += double(to_float(group[p * s.c + j]));
    const double m = double(s.s * width), middle = sum / m;
    for (int64_t p = 0; p < s.s; ++p)
        for (int64_t j = 0; j < width; ++j) {
            const double d = double(to_float(group[p * s.c + j])) - middle;
            m2 += d * d;
        }
    mean[k] = float(middle);
    rstd[k] = float(1.0 / sqrt(m2 / m + double(eps)));
}

// Element e of x: its normalised value, and sigma(z).
template <class T>
struct NaiveElement {
    float xhat, z, sigma;
    int64_t group, channel;

    __device__ NaiveElement(const GroupNormShape& s, int64_t e, const T* x, const Given& given)
        : group(e / (s.s * s.c) * s.groups + e % s.c / (s.c / s.groups)), channel(e % s.c) {
        xhat = (to_float(x[e]) - given.mean[group]) * given.rstd[group];
        z = given.gamma[channel] * xhat + given.beta[channel];
        sigma = 1.0f / (1.0f + expf(-z));
    }
    __device__ float dz(const GroupNormShape& s, T dy) const {
        return to_float(dy) * (s.silu ? sigma * (1.0f + z * (1.0f - sigma)) : 1.0f);  // 1
    }
    __device__ float dx(const GroupNormShape& s, T dy, const Given& given, const float2* group_means) const {
        return given.rstd[group] *
               (given.gamma[channel] * dz(s, dy) - group_means[group].x - xhat * group_means[group].y);  // 4
    }
};

template <class T>
__global__ void naive_normalise_kernel(GroupNormShape s, Given given, const T* x, T* y) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= s.n * s.s * s.c) return;
    const NaiveElement<T> element(s, e, x, given);
    y[e] = from_float<T>(s.silu ? element.z * element.sigma : element.z);
}

template <class T>
__global__ void naive_group_means_kernel(GroupNormShape s, Given given, const T* dy, const T* x, float2* group_means) {
    const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, width = s.c / s.groups;
    if (k >= s.n * s.groups) return;
    double sum_dxhat = 0, sum_dxhat_xhat = 0;
    for (int64_t p = 0; p < s.s; ++p)
        for (int64_t j = k % s.groups * width; j < (k % s.groups + 1) * width; ++j) {
            const int64_t e = (k / s.groups * s.s + p) * s.c + j;
            const NaiveElement<T> element(s, e, x, given);
            const double dxhat = double(given.gamma[j]) * double(element.dz(s, dy[e]));  // 3
            sum_dxhat += dxhat;
            sum_dxhat_xhat += dxhat * double(element.xhat);
        }
    const double m = double(s.s * width);
    group_means[k] = make_float2(float(sum_dxhat / m), float(sum_dxhat_xhat / m));
}

template <class T>
__global__ void naive_input_gradient_kernel(GroupNormShape s, Given given, const T* dy, const T* x,
                                            const float2* group_means, T* dx) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e < s.n * s.s * s.c)
        dx[e] = from_float<T>(NaiveElement<T>(s, e, x, given).dx(s, dy[e], given, group_means));
}

template <class T>
__global__ void naive_channel_gradients_kernel(GroupNormShape s, Given given, const T* dy, const T* x,
                                               const float2* group_means, float* dgamma, float* dbeta, float* dx_sum) {
    const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (j >= s.c) return;
    double sum_dz = 0, sum_dz_xhat = 0, sum_dx = 0;
    for (int64_t e = j; e < s.n * s.s * s.c; e += s.c) {
        const NaiveElement<T> element(s, e, x, given);
        sum_dz += double(element.dz(s, dy[e]));  // 2
        sum_dz_xhat += double(element.dz(s, dy[e])) * double(element.xhat);
        sum_dx += double(element.dx(s, dy[e], given, group_means));  // 5
    }
    dbeta[j] = float(sum_dz), dgamma[j] = float(sum_dz_xhat);
    if (dx_sum) dx_sum[j] = float(sum_dx);
}

// ---- launchers ---------------------------------------------------------------------------------------------------

constexpr int naive_threads = 128;
dim3 naive_grid(int64_t count) { return dim3(unsigned((count + naive_threads - 1) / naive_threads)); }

// Partial results of the groups lie in front of the channels' rows.
float* rows_behind(void* partial, const Cut& cut) {
    return reinterpret_cast<float*>(static_cast<float2*>(partial) + cut.n * cut.chunks * cut.groups);
}

template <class T, bool with_silu, bool aligned>
void forward(const Cut& cut, float eps, const T* x, const float* gamma, const float* beta, T* y, float* mean,
             float* rstd, float2* partial, cudaStream_t stream) {
    const size_t scratch = cut.moments_bytes(each<T>);
    if (cut.one_read)
        return launch<group_norm_one_read_kernel<T, with_silu, aligned>>(
            cut.grid(), cut.threads, size_t(cut.slab_bytes) + scratch, stream, cut, eps, x, gamma, beta, y, mean, rstd);
    launch<group_norm_moments_kernel<T, aligned>>(cut.grid(), cut.threads, scratch, stream, cut, x, partial);
    launch<group_norm_normalise_kernel<T, with_silu, aligned>>(cut.grid(), cut.threads, 0, stream, cut, eps, x, gamma,
                                                               beta, partial, y, mean, rstd);
}

template <class T, bool with_silu, bool aligned>
void backward(const Cut& cut, const Given& given, const T* dy, const T* x, T* dx, float2* partial, float* rows,
              cudaStream_t stream) {
    const size_t scratch = cut.sums_bytes(each<T>);
    if (cut.one_read)
        return launch<group_norm_backward_one_read_kernel<T, with_silu, aligned>>(
            cut.grid(), cut.threads, size_t(cut.slab_bytes) + scratch, stream, cut, given, dy, x, dx, rows);
    launch<group_norm_sums_kernel<T, with_silu, aligned>>(cut.grid(), cut.threads, scratch, stream, cut, given, dy, x,
                                                          partial, rows);
    launch<group_norm_input_gradient_kernel<T, with_silu, aligned>>(cut.grid(), cut.threads, 0, stream, cut, given, dy,
                                                                    x, partial, dx, rows);
}

}  // namespace

size_t group_norm_workspace(const GroupNormShape& s) {
    if (s.s * s.c == 0) return 0;
    auto bytes = [&](const Cut& cut) {
        return size_t(s.n) * size_t(cut.chunks) * (size_t(s.groups) * sizeof(float2) + 3 * size_t(s.c) * sizeof(float));
    };
    // one forward's partial results need no more than a backward's
    return std::max({bytes(cut_sample<float>(s, 1)), bytes(cut_sample<float>(s, 2)), bytes(cut_sample<bfloat16>(s, 1)),
                     bytes(cut_sample<bfloat16>(s, 2))});
}

template <class T>
void group_norm_forward(const GroupNormShape& s, float eps, const T* x, const float* gamma, const float* beta, T* y,
                        float* mean, float* rstd, void* workspace, cudaStream_t stream) {
    if (s.n * s.s * s.c == 0) return;
    if (use_naive) {
        launch<naive_statistics_kernel<T>>(naive_grid(s.n * s.groups), naive_threads, 0, stream, s, eps, x, mean, rstd);
        return launch<naive_normalise_kernel<T>>(naive_grid(s.n * s.s * s.c), naive_threads, 0, stream, s,
                                                 Given{gamma, beta, mean, rstd}, x, y);
    }
    const bool aligned = s.c % each<T> == 0 && aligned16({x, y});
    const auto run = s.silu ? (aligned ? forward<T, true, true> : forward<T, true, false>)
                            : (aligned ? forward<T, false, true> : forward<T, false, false>);
    run(cut_sample<T>(s, 1), eps, x, gamma, beta, y, mean, rstd, static_cast<float2*>(workspace), stream);
}

template <class T>
void group_norm_backward(const GroupNormShape& s, const T* dy, const T* x, const float* gamma, const float* beta,
                         const float* mean, const float* rstd, T* dx, float* dgamma, float* dbeta, float* dx_sum,
                         void* workspace, cudaStream_t stream) {
    if (s.c == 0) return;
    const Given given{gamma, beta, mean, rstd};
    float2* const partial = static_cast<float2*>(workspace);
    if (use_naive) {
        if (s.n * s.s > 0) {
            launch<naive_group_means_kernel<T>>(naive_grid(s.n * s.groups), naive_threads, 0, stream, s, given, dy, x,
                                                partial);
            launch<naive_input_gradient_kernel<T>>(naive_grid(s.n * s.s * s.c), naive_threads, 0, stream, s, given, dy,
                                                   x, partial, dx);
        }
        return launch<naive_channel_gradients_kernel<T>>(naive_grid(s.c), naive_threads, 0, stream, s, given, dy, x,
                                                         partial, dgamma, dbeta, dx_sum);
    }
    Cut cut{};
    float* rows = nullptr;
    if (s.n * s.s > 0) {
        cut = cut_sample<T>(s, 2);
        rows = rows_behind(partial, cut);
        const bool aligned = s.c % each<T> == 0 && aligned16({x, dy, dx});
        const auto run = s.silu ? (aligned ? backward<T, true, true> : backward<T, true, false>)
                                : (aligned ? backward<T, false, true> : backward<T, false, false>);
        run(cut, given, dy, x, dx, partial, rows, stream);
    }
    const int64_t columns = (dx_sum ? 3 : 2) * s.c;
    launch<group_norm_batch_kernel>(dim3(unsigned((columns + sum_columns - 1) / sum_columns)),
                                    dim3(sum_columns, sum_threads), 0, stream, cut.n * cut.chunks, s.c, rows, dgamma,
                                    dbeta, dx_sum);
}

#define PYDIFF_INSTANTIATE(T)                                                                                         \
    template void group_norm_forward<T>(const GroupNormShape&, float, const T*, const float*, const float*, T*,       \
                                        float*, float*, void*, cudaStream_t);                                         \
    template void group_norm_backward<T>(const GroupNormShape&, const T*, const T*, const float*, const float*,       \
                                         const float*, const float*, T*, float*, float*, float*, void*, cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
