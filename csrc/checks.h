// What a call must fulfil, whatever the arrays live in: used by the bindings of the CPU and of the CUDA kernels.
// ValueErrors say what was got and what was expected.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "shapes.h"

namespace pydiff {

using Shape = std::vector<int64_t>;

inline std::string text(const Shape& shape) {
    std::string s = "(";
    for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
    return s + (shape.size() == 1 ? ",)" : ")");
}

// -1 in the expected shape matches any size.
inline void check_shape(const char* name, const Shape& shape, const Shape& expected) {
    bool fits = shape.size() == expected.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = expected[i] < 0 || shape[i] == expected[i];
    if (!fits)
        throw pybind11::value_error(std::string(name) + " must have shape " + text(expected) + ", got " + text(shape));
}

inline int64_t positive(int64_t value, const char* name) {
    if (value < 1)
        throw pybind11::value_error(std::string(name) + " must be at least 1, got " + std::to_string(value));
    return value;
}

inline Conv2dShape conv2d_shape(const Shape& x, const Shape& w, const Shape& y, std::pair<int64_t, int64_t> stride,
                                std::pair<int64_t, int64_t> pad, int64_t up) {
    if (up != 1 && up != 2)
        throw pybind11::value_error("the upsampling factor must be 1 or 2, got " + std::to_string(up));
    const Conv2dShape s{x[0], up * x[1], up * x[2], x[3], w[0], w[1], w[3], y[1], y[2],
                        positive(stride.first, "stride"), positive(stride.second, "stride"), pad.first, pad.second, up};
    positive(s.kh, "kernel height");
    positive(s.kw, "kernel width");
    if (pad.first < 0 || pad.second < 0) throw pybind11::value_error("padding must not be negative");
    // so that sums and products of these with sizes stay within 64 bits
    if (std::max({stride.first, stride.second, pad.first, pad.second}) > std::numeric_limits<int32_t>::max())
        throw pybind11::value_error("stride and padding must be below 2^31");
    if (w[2] != s.cin)
        throw pybind11::value_error("w must take " + std::to_string(s.cin) + " channels as x has, got " + text(w));
    if (y[0] != s.n || y[3] != s.cout)
        throw pybind11::value_error("y must have " + std::to_string(s.n) + " pictures of " + std::to_string(s.cout) +
                                    " channels, got " + text(y));
    return s;
}

// bias (cout), or (n, cout) with one for each sample: the distance from one sample's to the next.
inline int64_t bias_step(const Conv2dShape& s, const Shape& bias, const char* name) {
    check_shape(name, bias, bias.size() == 2 ? Shape{s.n, s.cout} : Shape{s.cout});
    return bias.size() == 2 ? s.cout : 0;
}

inline GroupNormShape group_norm_shape(const Shape& x, int64_t groups, bool silu) {
    const GroupNormShape s{x[0], x[1], x[2], positive(groups, "groups"), silu};
    if (s.c % groups != 0)
        throw pybind11::value_error(std::to_string(s.c) + " channels do not divide into " + std::to_string(groups) +
                                    " groups");
    if (s.c >= int64_t{1} << 31)  // the CUDA kernels count the channels of a pixel in int
        throw pybind11::value_error("x may have at most 2^31 - 1 channels, got " + std::to_string(s.c));
    return s;
}

// Strides of q, k and v in elements.
inline AttentionShape attention_shape(const Shape& q, const Shape& k, const Shape& q_strides, const Shape& k_strides,
                                      const Shape& v_strides, int64_t heads, float scale) {
    if (q[2] % positive(heads, "heads") != 0)
        throw pybind11::value_error(std::to_string(q[2]) + " channels do not divide into " + std::to_string(heads) +
                                    " heads");
    if (k[1] < 1) throw pybind11::value_error("attention needs at least one key");
    return {q[0], q[1], k[1], heads, q[2] / heads, q_strides[0], q_strides[1], k_strides[0], k_strides[1],
            v_strides[0], v_strides[1], scale};
}

// The counter of the generator holds the number of a block of four normals in 32 bits.
inline void check_noise_size(int64_t size) {
    if (size > (int64_t{1} << 34))
        throw pybind11::value_error("a sample may have at most 2^34 elements, got " + std::to_string(size));
}

// table (rows, 9 + k)
inline void check_denoise_table(const Shape& table, size_t history) {
    if (history > most_history)
        throw pybind11::value_error("denoise takes at most " + std::to_string(most_history) + " history arrays, got " +
                                    std::to_string(history));
    if (table[0] < 1 || table[1] != static_cast<int64_t>(9 + history))
        throw pybind11::value_error("denoise takes rows of 9 coefficients and one per history array, got " +
                                    text(table) + " for " + std::to_string(history) + " arrays");
}

}  // namespace pydiff
