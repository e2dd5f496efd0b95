// csrc/cuda/dropout.cu and csrc/cpu/dropout.cpp against their equation.
#include "key.h"

namespace pydiff::check {
namespace {

// offset: elements from an aligned address to the arrays' start.
template <class T>
void check_dropout(int64_t n, int64_t size, size_t offset) {
    const Noise noise(n, size);
    Numbers x = random_numbers(n * size, 1), y;
    const Array<T> x_(x, offset);
    const float p = 0.3f, scale = 1.0f / 0.7f;
    for (int64_t e = 0; e < n * size; ++e) y.push_back(noise.uniform[size_t(e)] >= double(p) ? scale * x[size_t(e)] : 0.0);
    judge(name("dropout_forward", sizeof(T), {n, size, int64_t(offset)}), {y}, tolerance<T>, [&] {
        const Array<T> y_(n * size, offset);
        launch(dropout_forward<T>, n, size, x_, p, scale, noise.key, y_);
        return std::vector<Numbers>{y_.read()};
    });
}

template <class T>
void check_dropout() {
    check_dropout<T>(0, 8, 0);
    check_dropout<T>(1, 1, 0);
    check_dropout<T>(3, 7, 0);
    check_dropout<T>(2, 64, 0);
    check_dropout<T>(2, 64, 1);
    check_dropout<T>(1, 4101, 0);  // several blocks
}

const Op dropout_op("dropout", {check_dropout<float>, check_dropout<bfloat16>});

}  // namespace
}  // namespace pydiff::check
