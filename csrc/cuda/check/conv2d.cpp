// csrc/cuda/conv2d.cu and csrc/cpu/conv2d.cpp against their equations.
#include "check.h"

#if defined(PYDIFF_CPU)
#include "../../cpu/conv2d_methods.h"
#endif

namespace pydiff::check {
namespace {

// The CPU's naive way is one without Winograd's algorithm.
void choose_method() {
#if defined(PYDIFF_CPU)
    use_winograd(!use_naive);
#endif
}

// visit(index of x, index of w, index of y) for every product of the convolution.
template <class Visit>
void convolve(const Conv2dShape& s, Visit visit) {
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t i = 0; i < s.oh; ++i)
            for (int64_t j = 0; j < s.ow; ++j)
                for (int64_t a = 0; a < s.kh; ++a)
                    for (int64_t b = 0; b < s.kw; ++b) {
                        const int64_t h = i * s.stride_h + a - s.pad_top, w = j * s.stride_w + b - s.pad_left;
                        if (h < 0 || h >= s.h || w < 0 || w >= s.w) continue;
                        const int64_t pixel = (n * (s.h / s.up) + h / s.up) * (s.w / s.up) + w / s.up;
                        for (int64_t c = 0; c < s.cin; ++c)
                            for (int64_t o = 0; o < s.cout; ++o)
                                visit(pixel * s.cin + c, ((a * s.kw + b) * s.cin + c) * s.cout + o,
                                      ((n * s.oh + i) * s.ow + j) * s.cout + o);
                    }
}

enum class Bias { none, shared, each };  // each: one for each sample, and something to add to y

template <class T>
void check_conv2d(int64_t n, int64_t h, int64_t w, int64_t cin, int64_t k, int64_t cout, int64_t stride, Bias kind,
                  int64_t up = 1) {
    const int64_t pad = k / 2, oh = (up * h + 2 * pad - k) / stride + 1, ow = (up * w + 2 * pad - k) / stride + 1;
    const Conv2dShape s{n, up * h, up * w, cin, k, k, cout, oh, ow, stride, stride, pad, pad, up};
    const int64_t step = kind == Bias::each ? cout : 0;
    Numbers x = random_numbers(n * h * w * cin, 1), weight = random_numbers(k * k * cin * cout, 2);
    Numbers bias = random_numbers(step ? n * cout : cout, 3), dy = random_numbers(n * oh * ow * cout, 4);
    Numbers add = random_numbers(dy.size(), 5);
    const Array<T> x_(x), weight_(weight), dy_(dy), add_(add);
    const Array<float> bias_(bias);
    Conv2dAddends<T> addends;
    if (kind != Bias::none) addends.bias = bias_, addends.bias_step = step;
    if (kind == Bias::each) addends.add = add_;

    Numbers y(dy.size()), dx(x.size()), dw(weight.size()), dbias(bias.size());
    for (size_t i = 0; i < y.size(); ++i) {
        const size_t at = i % cout + i / (oh * ow * cout) * step;
        y[i] = (addends.bias ? bias[at] : 0.0) + (addends.add ? add[i] : 0.0);
        dbias[at] += dy[i];
    }
    convolve(s, [&](int64_t at_x, int64_t at_w, int64_t at_y) {
        y[at_y] += x[at_x] * weight[at_w];
        dx[at_x] += dy[at_y] * weight[at_w];
        dw[at_w] += dy[at_y] * x[at_x];
    });

    const auto label = [&](const char* op) { return name(op, sizeof(T), {n, h, w, cin, k, cout, stride, up}); };
    judge(label("conv2d_forward"), {y}, tolerance<T>, [&] {
        const Array<T> y_(y.size());
        choose_method();
        launch(conv2d_forward<T>, s, x_, weight_, addends, y_);
        return std::vector<Numbers>{y_.read()};
    });
    judge(label("conv2d_backward_input"), {dx}, tolerance<T>, [&] {
        const Array<T> dx_(dx.size());
        choose_method();
        launch(conv2d_backward_input<T>, s, dy_, weight_, dx_);
        return std::vector<Numbers>{dx_.read()};
    });
    judge(label("conv2d_backward_weight"), {dw, addends.bias ? dbias : Numbers{}}, tolerance<T>, [&] {
        const Array<float> dw_(dw.size()), dbias_(addends.bias ? dbias.size() : 0);
        choose_method();
        launch_in(conv2d_backward_weight_workspace(s), conv2d_backward_weight<T>, s, dy_, x_, dw_,
                  addends.bias ? static_cast<float*>(dbias_) : nullptr, step);
        return std::vector<Numbers>{dw_.read(), dbias_.read()};
    });
}

template <class T>
void check_conv2d() {
    check_conv2d<T>(0, 4, 4, 8, 3, 8, 1, Bias::shared);
    check_conv2d<T>(1, 5, 7, 3, 3, 5, 1, Bias::shared);  // nothing is a multiple of anything
    check_conv2d<T>(2, 4, 4, 16, 3, 8, 1, Bias::none);
    check_conv2d<T>(1, 7, 6, 8, 3, 24, 2, Bias::shared);
    check_conv2d<T>(3, 1, 1, 17, 1, 9, 1, Bias::shared);  // a linear layer
    check_conv2d<T>(1, 9, 9, 40, 1, 72, 1, Bias::none);
    check_conv2d<T>(0, 4, 4, 8, 3, 8, 1, Bias::each, 2);
    check_conv2d<T>(3, 5, 4, 8, 3, 16, 1, Bias::each);
    check_conv2d<T>(2, 3, 5, 7, 3, 5, 1, Bias::each, 2);
    check_conv2d<T>(2, 5, 4, 16, 3, 8, 1, Bias::none, 2);
    check_conv2d<T>(2, 4, 3, 8, 3, 24, 2, Bias::shared, 2);
    check_conv2d<T>(1, 5, 4, 8, 4, 8, 3, Bias::each, 2);
    if (!on_cpu) return;
    check_conv2d<T>(2, 9, 10, 17, 3, 33, 1, Bias::shared);  // by Winograd's algorithm, half a tile over the edge
    check_conv2d<T>(1, 16, 16, 48, 3, 64, 1, Bias::shared);
    check_conv2d<T>(1, 3, 5, 528, 3, 512, 1, Bias::shared);  // .. with many channels
    check_conv2d<T>(2, 7, 9, 21, 3, 3, 1, Bias::shared);  // narrow: the last layer
    check_conv2d<T>(2, 6, 11, 3, 3, 64, 1, Bias::shared);  // .. and the first
    check_conv2d<T>(1, 5, 5, 101, 3, 10, 1, Bias::none);  // more terms than a panel is deep
    check_conv2d<T>(1, 6, 5, 300, 1, 40, 1, Bias::shared);  // linear: few rows
    check_conv2d<T>(1, 101, 5, 33, 1, 270, 1, Bias::shared);  // .. more of them than an item of work has
    check_conv2d<T>(1, 2, 1, 70, 1, 530, 1, Bias::none);  // .. less than a tile
    check_conv2d<T>(1, 97, 3, 40, 1, 70, 1, Bias::each);
    check_conv2d<T>(2, 40, 30, 5, 1, 7, 1, Bias::shared);  // more pixels than one part of the weight gradient
    check_conv2d<T>(1, 6, 6, 4, 5, 9, 2, Bias::shared);
    check_conv2d<T>(2, 5, 6, 24, 3, 40, 1, Bias::each, 2);  // Winograd's with everything
    check_conv2d<T>(4, 16, 16, 16, 3, 64, 1, Bias::each);  // .. and blocks of channels that must come out even
    check_conv2d<T>(2, 5, 6, 24, 3, 3, 1, Bias::each, 2);
}

const Op conv2d_op("conv2d", {check_conv2d<float>, check_conv2d<bfloat16>});

}  // namespace
}  // namespace pydiff::check
