// conv2d: cross-correlation over channels-last images, and its gradients.
//
//   y[n, i, j, o] = sum_{a, b, c} X[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] w[a, b, c, o]
//                   + bias[o] + add[n, i, j, o]
//
// with X = 0 outside the image. X is x, or x with every pixel repeated up x up times: X[n, p, q] is
// x[n, p / up, q / up]. The bias may be one for each sample, bias[n, o]. Backward (the gradient of `add` is dy itself):
//     1. dX[n, p, q, c] = sum of dy[n, i, j, o] w[a, b, c, o] over o and all (i, a) with i stride_h + a - pad_top = p,
//                         (j, b) with j stride_w + b - pad_left = q
//        dx[n, p, q, c] = sum of dX[n, up p + e, up q + f, c] over e, f < up
//     2. dw[a, b, c, o] = sum_{n, i, j} X[n, i stride_h + a - pad_top, j stride_w + b - pad_left, c] dy[n, i, j, o]
//     3. dbias[o]       = sum_{n, i, j} dy[n, i, j, o],   or dbias[n, o] = sum_{i, j}
//
// A linear layer is a 1 x 1 kernel over n images of one pixel.
//
// Array path: pydiff/ops/conv2d.py. Reference: pydiff/reference/conv2d.py. CPU: csrc/cpu/conv2d.cpp.
//
// Layout: images (n, h, w, channels), weights (kh, kw, cin, cout). Each of the three is a product of matrices that
// tile_product.h makes, a tile a block. The matrix of pixels exists nowhere, nor does X: elements are copied from the
// images when a tile needs them (Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning", section 3).
//
//                       m: rows        n: columns   k: summed          left (m, k)          right (k, n)
//     forward           pixels of y    o            (a, b, c)          pixels of x, by k    w, by n
//     backward_input    pixels of x    c            (e, a, f, b, o)    pixels of dy, by k   w, by k
//     backward_weight   (a, b, c)      o            pixels of y        pixels of x, by m    dy, by n
//
// A sum's order does not depend on where in a tile its pixel is, so an image's y and dx are the same alone and in any
// batch; a dbias for each sample is summed by its own blocks. backward_weight has few tiles and many pixels: these are
// divided into parts, whose sums are added in their order. Heights, widths and kh kw cin are counted in 32 bits,
// everything else in 64.
//
// Beside it: conv2d_gather.h, forward and backward_input; conv2d_weight.h, backward_weight. Here are the naive kernels
// and the launchers.
#include "conv2d_gather.h"
#include "conv2d_weight.h"

namespace pydiff {
namespace {

// ---- the equations, one thread an element: what the fast kernels are compared with -------------------------------

constexpr int flat_threads = 256;

template <class T>
__global__ void forward_naive_kernel(Conv2dShape s, const T* x, const T* w, Conv2dAddends<T> addends, T* y) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= s.n * s.oh * s.ow * s.cout) return;
    const int64_t o = e % s.cout, j = e / s.cout % s.ow, i = e / s.cout / s.ow % s.oh, n = e / s.cout / s.ow / s.oh;
    float sum = 0.0f;
    for (int64_t a = 0; a < s.kh; ++a)
        for (int64_t b = 0; b < s.kw; ++b) {
            const int64_t p = i * s.stride_h + a - s.pad_top, q = j * s.stride_w + b - s.pad_left;
            if (p < 0 || p >= s.h || q < 0 || q >= s.w) continue;
            for (int64_t c = 0; c < s.cin; ++c)
                sum += to_float(x[((n * s.h + p) / s.up * (s.w / s.up) + q / s.up) * s.cin + c]) *
                       to_float(w[((a * s.kw + b) * s.cin + c) * s.cout + o]);
        }
    if (addends.bias) sum += addends.bias[n * addends.bias_step + o];
    if (addends.add) sum += to_float(addends.add[e]);
    y[e] = from_float<T>(sum);
}

template <class T>
__global__ void backward_input_naive_kernel(Conv2dShape s, const T* dy, const T* w, T* dx) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t h = s.h / s.up, width = s.w / s.up;  // of x
    if (e >= s.n * h * width * s.cin) return;
    const int64_t c = e % s.cin, q = e / s.cin % width, p = e / s.cin / width % h, n = e / s.cin / width / h;
    float sum = 0.0f;
    for (int64_t P = s.up * p; P < s.up * (p + 1); ++P)  // a pixel (P, Q) of dX
        for (int64_t Q = s.up * q; Q < s.up * (q + 1); ++Q)
            for (int64_t a = 0; a < s.kh; ++a)
                for (int64_t b = 0; b < s.kw; ++b) {
                    const int64_t down = P + s.pad_top - a, right = Q + s.pad_left - b;  // i stride_h, j stride_w
                    if (down < 0 || down % s.stride_h || right < 0 || right % s.stride_w) continue;
                    const int64_t i = down / s.stride_h, j = right / s.stride_w;
                    if (i >= s.oh || j >= s.ow) continue;
                    for (int64_t o = 0; o < s.cout; ++o)  // 1
                        sum += to_float(dy[((n * s.oh + i) * s.ow + j) * s.cout + o]) *
                               to_float(w[((a * s.kw + b) * s.cin + c) * s.cout + o]);
                }
    dx[e] = from_float<T>(sum);
}

template <class T>
__global__ void backward_weight_naive_kernel(Conv2dShape s, int64_t biases, const T* dy, const T* x, float* dw,
                                             float* dbias /* (biases, cout) */) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, size = s.kh * s.kw * s.cin * s.cout;
    if (e >= size + biases * s.cout) return;
    float sum = 0.0f;
    if (e >= size) {
        const int64_t pixels = s.n * s.oh * s.ow / biases, first = (e - size) / s.cout * pixels;
        for (int64_t m = first; m < first + pixels; ++m) sum += to_float(dy[m * s.cout + (e - size) % s.cout]);  // 3
        dbias[e - size] = sum;
        return;
    }
    const int64_t o = e % s.cout, c = e / s.cout % s.cin, b = e / s.cout / s.cin % s.kw, a = e / s.cout / s.cin / s.kw;
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t i = 0; i < s.oh; ++i)
            for (int64_t j = 0; j < s.ow; ++j) {
                const int64_t p = i * s.stride_h + a - s.pad_top, q = j * s.stride_w + b - s.pad_left;
                if (p < 0 || p >= s.h || q < 0 || q >= s.w) continue;
                sum += to_float(x[((n * s.h + p) / s.up * (s.w / s.up) + q / s.up) * s.cin + c]) *
                       to_float(dy[((n * s.oh + i) * s.ow + j) * s.cout + o]);  // 2
            }
    dw[e] = sum;
}

// ---- the launchers ------------------------------------------------------------------------------------------------

dim3 flat_grid(int64_t elements, int block = flat_threads) { return dim3(unsigned(ceil_div(elements, block))); }

template <class T, int up>
void weight_gradient(const Conv2dShape& s, const T* dy, const T* x, float* dw, float* dbias, void* workspace,
                     cudaStream_t stream) {
    const int64_t size = s.kh * s.kw * s.cin * s.cout, apart = size + s.cout;
    const Parts parts = parts_of(s);
    float* dw_parts = parts.count > 1 ? static_cast<float*>(workspace) : dw;
    float* dbias_parts = parts.count > 1 && dbias ? dw_parts + size : dbias;
    // one block of rows at least: without input channels there is still a bias
    const int64_t tiles = std::max<int64_t>(ceil_div(size / s.cout, m_tile), 1) * ceil_div(s.cout, n_tile);
    launch<conv2d_weight_kernel<T, up>>(dim3(unsigned(tiles), unsigned(parts.count)), dim3(threads),
                                        Tiles<T, false, false>::bytes, stream, s, parts.pixels,
                                        s.cin % chunk<T> == 0 && aligned16({x}),
                                        s.cout % chunk<T> == 0 && aligned16({dy}),
                                        s.cout % 8 == 0 && aligned16({dw_parts}), apart, dy, x, dw_parts, dbias_parts);
    if (parts.count > 1)
        launch<sum_parts_kernel>(flat_grid(apart, sum_threads), dim3(sum_threads), 0, stream, parts.count, size, s.cout,
                                 dw_parts, dw, dbias);
}

}  // namespace

template <class T>
void conv2d_forward(const Conv2dShape& s, const T* x, const T* w, const Conv2dAddends<T>& addends, T* y,
                    cudaStream_t stream) {
    const int64_t size = s.n * s.oh * s.ow * s.cout;
    if (size == 0) return;
    if (use_naive)
        return launch<forward_naive_kernel<T>>(flat_grid(size), dim3(flat_threads), 0, stream, s, x, w, addends, y);
    (s.up == 2 ? convolve<T, false, 2> : convolve<T, false, 1>)(s, x, w, addends, y, stream);
}

template <class T>
void conv2d_backward_input(const Conv2dShape& s, const T* dy, const T* w, T* dx, cudaStream_t stream) {
    const int64_t size = s.n * (s.h / s.up) * (s.w / s.up) * s.cin;
    if (size == 0) return;
    if (use_naive)
        return launch<backward_input_naive_kernel<T>>(flat_grid(size), dim3(flat_threads), 0, stream, s, dy, w, dx);
    (s.up == 2 ? convolve<T, true, 2> : convolve<T, true, 1>)(s, dy, w, {}, dx, stream);
}

size_t conv2d_backward_weight_workspace(const Conv2dShape& s) {
    const int64_t parts = parts_of(s).count;
    return parts == 1 ? 0 : size_t(parts * (s.kh * s.kw * s.cin + 1) * s.cout) * sizeof(float);
}

template <class T>
void conv2d_backward_weight(const Conv2dShape& s, const T* dy, const T* x, float* dw, float* dbias, int64_t dbias_step,
                            void* workspace, cudaStream_t stream) {
    if (s.cout == 0) return;
    if (use_naive) {
        const int64_t biases = dbias ? (dbias_step ? s.n : 1) : 0;
        const int64_t size = (s.kh * s.kw * s.cin + biases) * s.cout;
        if (size == 0) return;
        return launch<backward_weight_naive_kernel<T>>(flat_grid(size), dim3(flat_threads), 0, stream, s, biases, dy, x,
                                                       dw, dbias);
    }
    if (dbias && dbias_step) {
        if (s.n > 0)
            launch<sample_bias_kernel<T>>(rows_grid(s.n, s.cout, n_tile), dim3(bias_threads), 0, stream, s.n,
                                          s.oh * s.ow, s.cout, s.cout % 8 == 0 && aligned16({dy}), dy, dbias);
        dbias = nullptr;  // which is done
    }
    (s.up == 2 ? weight_gradient<T, 2> : weight_gradient<T, 1>)(s, dy, x, dw, dbias, workspace, stream);
}

#define PYDIFF_INSTANTIATE(T)                                                                                        \
    template void conv2d_forward<T>(const Conv2dShape&, const T*, const T*, const Conv2dAddends<T>&, T*,             \
                                    cudaStream_t);                                                                   \
    template void conv2d_backward_input<T>(const Conv2dShape&, const T*, const T*, T*, cudaStream_t);                \
    template void conv2d_backward_weight<T>(const Conv2dShape&, const T*, const T*, float*, float*, int64_t, void*,  \
                                            cudaStream_t);
PYDIFF_INSTANTIATE(float)
PYDIFF_INSTANTIATE(bfloat16)
#undef PYDIFF_INSTANTIATE

}  // namespace pydiff
