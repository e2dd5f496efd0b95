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
//     chunk   some pixels, at most 64 chunks a sample: a block's, so that one large image keeps the GPU busy
//
// A reduction and a map follow one another, in one of two ways; s, c and groups say which. Bytes are what counts; in
// bfloat16 an element takes:                                                                       forward    backward
//     one read    all pixels of a slab fit into the shared memory of a block and stay there              4           6
//     two passes  partial results of every chunk go through the workspace; the input is read twice       6          10
// Every thread meets its own packs again, so shared memory needs no barrier and knows no bank conflict. (Blocks of a
// cluster could share a larger slab; the emulator has no clusters, so there is no such kernel.)
//
// Nothing is added by atomics: every block writes what it found, and the next kernel adds in a fixed order.
//
// Beside it: group_norm_cut.h, how a sample is cut; group_norm_forward.h and group_norm_backward.h, the fast kernels.
// Here are the naive ones and the launchers.
#include "group_norm_backward.h"
#include "group_norm_forward.h"

namespace pydiff {
namespace {

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
