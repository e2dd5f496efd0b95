// The Python face of the kernels: one function a kernel, same name, same argument order, outputs last and allocated by
// the caller. What a kernel could not take is refused here. Compiled three times: for NumPy's arrays and the kernels of
// csrc/cpu (pydiff._cpu..), for CuPy's and those of csrc/cuda (pydiff._cuda), and for NumPy's and csrc/cuda under the
// emulator (pydiff._simt). In all of them `rest` is what csrc/kernels.h calls ON_STREAM or IN_WORKSPACE.
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "call.h"

namespace py = pybind11;

namespace pydiff {
namespace {

using Pair = std::pair<int64_t, int64_t>;
constexpr std::initializer_list<Type> single = {Type::float32}, wide = {Type::float64}, words = {Type::uint32},
                                      truth = {Type::boolean};

int64_t positive(int64_t value, const char* name) {
    if (value < 1) throw py::value_error(std::string(name) + " must be at least 1, got " + std::to_string(value));
    return value;
}

// ---------------------------------------------------------------- conv2d

// Of an enlarged image a forward pass may leave out the first rows of what one pixel became: negative padding above it.
Conv2dShape conv2d_shape(const Shape& x, const Shape& w, const Shape& y, Pair stride, Pair pad, int64_t up,
                         bool forward = false) {
    if (up != 1 && up != 2) throw py::value_error("the upsampling factor must be 1 or 2, got " + std::to_string(up));
    const Conv2dShape s{x[0], up * x[1], up * x[2], x[3], w[0], w[1], w[3], y[1], y[2],
                        positive(stride.first, "stride"), positive(stride.second, "stride"), pad.first, pad.second, up};
    positive(s.kh, "kernel height");
    positive(s.kw, "kernel width");
    if (pad.first < (forward ? 1 - up : 0) || pad.second < 0) throw py::value_error("padding must not be negative");
    // so that sums and products of these stay within 64 bits, and the CUDA kernels may count them in int
    if (std::max({s.h, s.w, s.cin, s.kh, s.kw, s.cout, s.oh, s.ow, stride.first, stride.second, pad.first,
                  pad.second}) > std::numeric_limits<int32_t>::max())
        throw py::value_error("the sizes of images and kernel, stride and padding must be below 2^31");
    if (w[2] != s.cin)
        throw py::value_error("w must take " + std::to_string(s.cin) + " channels as x has, got " + text(w));
    if (y[0] != s.n || y[3] != s.cout)
        throw py::value_error("y must have " + std::to_string(s.n) + " images of " + std::to_string(s.cout) +
                              " channels, got " + text(y));
    return s;
}

// bias or dbias: None, (cout), or (n, cout), one for each sample.
Argument bias_array(Call& call, const py::object& object, const char* name, const Conv2dShape& s, Use use = Use::in) {
    const bool each = py::hasattr(object, "shape") && py::len(object.attr("shape")) == 2;
    return call.optional(object, name, each ? Shape{s.n, s.cout} : Shape{s.cout}, single, use);
}
// From one sample's bias to the next one's.
int64_t step_of(const Argument& bias, const Conv2dShape& s) { return bias.shape.size() == 2 ? s.cout : 0; }

void bind_conv2d_forward(py::object x, py::object w, py::object bias, py::object add, Pair stride, Pair pad, int64_t up,
                         py::object y) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1, -1}, floating);
    const Argument wa = call.array(w, "w", {-1, -1, -1, -1}, {xa.type});
    const Argument ya = call.array(y, "y", {-1, -1, -1, -1}, {xa.type}, Use::out);
    const Conv2dShape s = conv2d_shape(xa.shape, wa.shape, ya.shape, stride, pad, up, true);
    const Argument ba = bias_array(call, bias, "bias", s), aa = call.optional(add, "add", ya.shape, {xa.type});
    const int64_t step = step_of(ba, s);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        conv2d_forward<T>(s, xa.as<T>(), wa.as<T>(), {ba.as<float>(), step, aa.as<T>()}, ya.as<T>(), rest...);
    });
}

void bind_conv2d_backward_input(py::object dy, py::object w, Pair stride, Pair pad, int64_t up, py::object dx) {
    Call call;
    const Argument dya = call.array(dy, "dy", {-1, -1, -1, -1}, floating);
    const Argument wa = call.array(w, "w", {-1, -1, -1, -1}, {dya.type});
    const Argument dxa = call.array(dx, "dx", {-1, -1, -1, -1}, {dya.type}, Use::out);
    const Conv2dShape s = conv2d_shape(dxa.shape, wa.shape, dya.shape, stride, pad, up);
    call.run(dya.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        conv2d_backward_input<T>(s, dya.as<T>(), wa.as<T>(), dxa.as<T>(), rest...);
    });
}

void bind_conv2d_backward_weight(py::object dy, py::object x, Pair stride, Pair pad, int64_t up, py::object dw,
                                 py::object dbias) {
    Call call;
    const Argument dya = call.array(dy, "dy", {-1, -1, -1, -1}, floating);
    const Argument xa = call.array(x, "x", {-1, -1, -1, -1}, {dya.type});
    const Argument dwa = call.array(dw, "dw", {-1, -1, -1, -1}, single, Use::out);
    const Conv2dShape s = conv2d_shape(xa.shape, dwa.shape, dya.shape, stride, pad, up);
    const Argument dba = bias_array(call, dbias, "dbias", s, Use::out);
    const int64_t step = step_of(dba, s);
    call.run_in(conv2d_backward_weight_workspace(s), dya.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        conv2d_backward_weight<T>(s, dya.as<T>(), xa.as<T>(), dwa.as<float>(), dba.as<float>(), step, rest...);
    });
}

// ---------------------------------------------------------------- group_norm

}  // namespace

GroupNormShape group_norm_shape(const Shape& x, int64_t groups, bool silu) {
    const GroupNormShape s{x[0], x[1], x[2], positive(groups, "groups"), silu};
    if (s.c % groups != 0)
        throw py::value_error(std::to_string(s.c) + " channels do not divide into " + std::to_string(groups) +
                              " groups");
    if (s.c >= int64_t{1} << 31)  // the CUDA kernels count the channels of a pixel in int
        throw py::value_error("x may have at most 2^31 - 1 channels, got " + std::to_string(s.c));
    return s;
}

namespace {

void bind_group_norm_forward(py::object x, py::object gamma, py::object beta, int64_t groups, float eps, bool silu,
                             py::object y, py::object mean, py::object rstd) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1}, floating);
    const GroupNormShape s = group_norm_shape(xa.shape, groups, silu);
    const Argument ga = call.array(gamma, "gamma", {s.c}, single), ba = call.array(beta, "beta", {s.c}, single);
    const Argument ya = call.array(y, "y", xa.shape, {xa.type}, Use::out);
    const Argument ma = call.array(mean, "mean", {s.n, groups}, single, Use::out);
    const Argument ra = call.array(rstd, "rstd", {s.n, groups}, single, Use::out);
    call.run_in(group_norm_workspace(s), xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        group_norm_forward<T>(s, eps, xa.as<T>(), ga.as<float>(), ba.as<float>(), ya.as<T>(), ma.as<float>(),
                              ra.as<float>(), rest...);
    });
}

void bind_group_norm_backward(py::object dy, py::object x, py::object gamma, py::object beta, py::object mean,
                              py::object rstd, int64_t groups, bool silu, py::object dx, py::object dgamma,
                              py::object dbeta, py::object dx_sum) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1}, floating), dya = call.array(dy, "dy", xa.shape, {xa.type});
    const GroupNormShape s = group_norm_shape(xa.shape, groups, silu);
    const Argument ga = call.array(gamma, "gamma", {s.c}, single), ba = call.array(beta, "beta", {s.c}, single);
    const Argument ma = call.array(mean, "mean", {s.n, groups}, single);
    const Argument ra = call.array(rstd, "rstd", {s.n, groups}, single);
    const Argument dxa = call.array(dx, "dx", xa.shape, {xa.type}, Use::out);
    const Argument dga = call.array(dgamma, "dgamma", {s.c}, single, Use::out);
    const Argument dba = call.array(dbeta, "dbeta", {s.c}, single, Use::out);
    const Argument dsa = call.optional(dx_sum, "dx_sum", {s.c}, single, Use::out);
    call.run_in(group_norm_workspace(s), xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        group_norm_backward<T>(s, dya.as<T>(), xa.as<T>(), ga.as<float>(), ba.as<float>(), ma.as<float>(),
                               ra.as<float>(), dxa.as<T>(), dga.as<float>(), dba.as<float>(), dsa.as<float>(), rest...);
    });
}

// ---------------------------------------------------------------- attention

// Strides of q, k and v in elements.
AttentionShape attention_shape(const Shape& q, const Shape& k, const Shape& q_strides, const Shape& k_strides,
                               const Shape& v_strides, int64_t heads, float scale, bool causal) {
    if (q[2] % positive(heads, "heads") != 0)
        throw py::value_error(std::to_string(q[2]) + " channels do not divide into " + std::to_string(heads) +
                              " heads");
    if (k[1] < 1) throw py::value_error("attention needs at least one key");
    return {q[0], q[1], k[1], heads, q[2] / heads, q_strides[0], q_strides[1], k_strides[0], k_strides[1],
            v_strides[0], v_strides[1], scale, causal};
}

void bind_attention_forward(py::object q, py::object k, py::object v, int64_t heads, float scale, bool causal,
                            py::object key_mask, py::object out, py::object lse) {
    Call call;
    const Argument qa = call.array(q, "q", {-1, -1, -1}, floating, Use::in, true);
    const Argument ka = call.array(k, "k", {qa.size(0), -1, qa.size(2)}, {qa.type}, Use::in, true);
    const Argument va = call.array(v, "v", ka.shape, {qa.type}, Use::in, true);
    const AttentionShape s = attention_shape(qa.shape, ka.shape, qa.strides, ka.strides, va.strides, heads, scale,
                                             causal);
    const Argument mask = call.optional(key_mask, "key_mask", {s.n, s.tk}, truth);
    const Argument oa = call.array(out, "out", qa.shape, {qa.type}, Use::out);
    const Argument la = call.array(lse, "lse", {s.n, heads, s.tq}, single, Use::out);
    call.run(qa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        attention_forward<T>(s, qa.as<T>(), ka.as<T>(), va.as<T>(), mask.as<bool>(), oa.as<T>(), la.as<float>(),
                             rest...);
    });
}

void bind_attention_backward(py::object dout, py::object q, py::object k, py::object v, py::object out, py::object lse,
                             int64_t heads, float scale, bool causal, py::object key_mask, py::object dq,
                             py::object dk, py::object dv) {
    Call call;
    const Argument qa = call.array(q, "q", {-1, -1, -1}, floating, Use::in, true);
    const Argument ka = call.array(k, "k", {qa.size(0), -1, qa.size(2)}, {qa.type}, Use::in, true);
    const Argument va = call.array(v, "v", ka.shape, {qa.type}, Use::in, true);
    const AttentionShape s = attention_shape(qa.shape, ka.shape, qa.strides, ka.strides, va.strides, heads, scale,
                                             causal);
    const Argument mask = call.optional(key_mask, "key_mask", {s.n, s.tk}, truth);
    const Argument doa = call.array(dout, "dout", qa.shape, {qa.type});
    const Argument oa = call.array(out, "out", qa.shape, {qa.type});
    const Argument la = call.array(lse, "lse", {s.n, heads, s.tq}, single);
    const Argument dqa = call.array(dq, "dq", qa.shape, {qa.type}, Use::out);
    const Argument dka = call.array(dk, "dk", ka.shape, {qa.type}, Use::out);
    const Argument dva = call.array(dv, "dv", ka.shape, {qa.type}, Use::out);
    call.run_in(attention_backward_workspace(s), qa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        attention_backward<T>(s, doa.as<T>(), qa.as<T>(), ka.as<T>(), va.as<T>(), mask.as<bool>(), oa.as<T>(),
                              la.as<float>(), dqa.as<T>(), dka.as<T>(), dva.as<T>(), rest...);
    });
}

// ---------------------------------------------------------------- layer_norm

void bind_layer_norm_forward(py::object x, py::object gamma, py::object beta, float eps, py::object y, py::object mean,
                             py::object rstd) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1}, floating);
    const int64_t rows = xa.size(0), c = xa.size(1);
    const Argument ga = call.optional(gamma, "gamma", {c}, single), ba = call.optional(beta, "beta", {c}, single);
    const Argument ya = call.array(y, "y", xa.shape, {xa.type}, Use::out);
    const Argument ma = call.array(mean, "mean", {rows}, single, Use::out);
    const Argument ra = call.array(rstd, "rstd", {rows}, single, Use::out);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        layer_norm_forward<T>(rows, c, eps, xa.as<T>(), ga.as<float>(), ba.as<float>(), ya.as<T>(), ma.as<float>(),
                              ra.as<float>(), rest...);
    });
}

void bind_layer_norm_backward(py::object dy, py::object x, py::object gamma, py::object mean, py::object rstd,
                              py::object dx, py::object dgamma, py::object dbeta) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1}, floating), dya = call.array(dy, "dy", xa.shape, {xa.type});
    const int64_t rows = xa.size(0), c = xa.size(1);
    const Argument ga = call.optional(gamma, "gamma", {c}, single);
    const Argument ma = call.array(mean, "mean", {rows}, single), ra = call.array(rstd, "rstd", {rows}, single);
    const Argument dxa = call.array(dx, "dx", xa.shape, {xa.type}, Use::out);
    const Argument dga = call.optional(dgamma, "dgamma", {c}, single, Use::out);
    const Argument dba = call.optional(dbeta, "dbeta", {c}, single, Use::out);
    call.run_in(layer_norm_backward_workspace(rows, c), xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        layer_norm_backward<T>(rows, c, dya.as<T>(), xa.as<T>(), ga.as<float>(), ma.as<float>(), ra.as<float>(),
                               dxa.as<T>(), dga.as<float>(), dba.as<float>(), rest...);
    });
}

// ---------------------------------------------------------------- gelu

void bind_gelu_forward(py::object x, py::object y) {
    Call call;
    const Argument xa = call.array(x, "x", {-1}, floating), ya = call.array(y, "y", xa.shape, {xa.type}, Use::out);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        gelu_forward<T>(xa.size(0), xa.as<T>(), ya.as<T>(), rest...);
    });
}

void bind_gelu_backward(py::object dy, py::object x, py::object dx) {
    Call call;
    const Argument xa = call.array(x, "x", {-1}, floating), dya = call.array(dy, "dy", xa.shape, {xa.type});
    const Argument dxa = call.array(dx, "dx", xa.shape, {xa.type}, Use::out);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        gelu_backward<T>(xa.size(0), dya.as<T>(), xa.as<T>(), dxa.as<T>(), rest...);
    });
}

void bind_geglu_forward(py::object x, py::object y) {
    Call call;
    const Argument ya = call.array(y, "y", {-1, -1}, floating, Use::out);
    const Argument xa = call.array(x, "x", {ya.size(0), 2 * ya.size(1)}, {ya.type});
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        geglu_forward<T>(ya.size(0), ya.size(1), xa.as<T>(), ya.as<T>(), rest...);
    });
}

void bind_geglu_backward(py::object dy, py::object x, py::object dx) {
    Call call;
    const Argument dya = call.array(dy, "dy", {-1, -1}, floating);
    const Argument xa = call.array(x, "x", {dya.size(0), 2 * dya.size(1)}, {dya.type});
    const Argument dxa = call.array(dx, "dx", xa.shape, {xa.type}, Use::out);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        geglu_backward<T>(dya.size(0), dya.size(1), dya.as<T>(), xa.as<T>(), dxa.as<T>(), rest...);
    });
}

// ---------------------------------------------------------------- noise

// The counter of the generator holds the number of a block of four normals in 32 bits.
void check_noise_size(int64_t size) {
    if (size > (int64_t{1} << 34))
        throw py::value_error("a sample may have at most 2^34 elements, got " + std::to_string(size));
}

NoiseKey noise_key(Call& call, uint64_t seed, uint32_t purpose, const py::object& sample, const py::object& step,
                   int64_t n) {
    return {seed, purpose, call.array(sample, "sample", {n}, words).as<uint32_t>(),
            call.array(step, "step", {n}, words).as<uint32_t>()};
}

void bind_normal(uint64_t seed, uint32_t purpose, py::object sample, py::object step, py::object eps) {
    Call call;
    const Argument ea = call.array(eps, "eps", {-1, -1}, floating, Use::out);
    check_noise_size(ea.size(1));
    const NoiseKey key = noise_key(call, seed, purpose, sample, step, ea.size(0));
    call.run(ea.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        normal<T>(ea.size(0), ea.size(1), key, ea.as<T>(), rest...);
    });
}

void bind_noise_forward(py::object x0, py::object alpha, py::object sigma, uint64_t seed, uint32_t purpose,
                        py::object sample, py::object step, py::object x_t, py::object eps) {
    Call call;
    const Argument xa = call.array(x0, "x0", {-1, -1}, floating);
    const int64_t n = xa.size(0), size = xa.size(1);
    check_noise_size(size);
    const Argument aa = call.array(alpha, "alpha", {n}, single), sa = call.array(sigma, "sigma", {n}, single);
    const NoiseKey key = noise_key(call, seed, purpose, sample, step, n);
    const Argument ta = call.array(x_t, "x_t", xa.shape, {xa.type}, Use::out);
    const Argument ea = call.optional(eps, "eps", xa.shape, {xa.type}, Use::out);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        noise_forward<T>(n, size, xa.as<T>(), aa.as<float>(), sa.as<float>(), key, ta.as<T>(), ea.as<T>(), rest...);
    });
}

void bind_noise_backward(py::object dx_t, py::object alpha, py::object dx0) {
    Call call;
    const Argument da = call.array(dx_t, "dx_t", {-1, -1}, floating);
    const Argument aa = call.array(alpha, "alpha", {da.size(0)}, single);
    const Argument oa = call.array(dx0, "dx0", da.shape, {da.type}, Use::out);
    call.run(da.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        noise_backward<T>(da.size(0), da.size(1), da.as<T>(), aa.as<float>(), oa.as<T>(), rest...);
    });
}

void bind_noise_loss_forward(py::object f, py::object x0, py::object p, py::object q, py::object weight, uint64_t seed,
                             uint32_t purpose, py::object sample, py::object step, py::object loss) {
    Call call;
    const Argument fa = call.array(f, "f", {-1, -1}, floating), xa = call.array(x0, "x0", fa.shape, {fa.type});
    const int64_t n = fa.size(0), size = fa.size(1);
    check_noise_size(size);
    const Argument pa = call.array(p, "p", {n}, single), qa = call.array(q, "q", {n}, single);
    const Argument wa = call.array(weight, "weight", {n}, single);
    const NoiseKey key = noise_key(call, seed, purpose, sample, step, n);
    const Argument la = call.array(loss, "loss", {n}, single, Use::out);
    call.run_in(noise_loss_workspace(n, size), fa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        noise_loss_forward<T>(n, size, fa.as<T>(), xa.as<T>(), pa.as<float>(), qa.as<float>(), wa.as<float>(), key,
                              la.as<float>(), rest...);
    });
}

void bind_noise_loss_backward(py::object dloss, py::object f, py::object x0, py::object p, py::object q,
                              py::object weight, uint64_t seed, uint32_t purpose, py::object sample, py::object step,
                              py::object df) {
    Call call;
    const Argument fa = call.array(f, "f", {-1, -1}, floating), xa = call.array(x0, "x0", fa.shape, {fa.type});
    const int64_t n = fa.size(0), size = fa.size(1);
    check_noise_size(size);
    const Argument da = call.array(dloss, "dloss", {n}, single), pa = call.array(p, "p", {n}, single);
    const Argument qa = call.array(q, "q", {n}, single), wa = call.array(weight, "weight", {n}, single);
    const NoiseKey key = noise_key(call, seed, purpose, sample, step, n);
    const Argument oa = call.array(df, "df", fa.shape, {fa.type}, Use::out);
    call.run(fa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        noise_loss_backward<T>(n, size, da.as<float>(), fa.as<T>(), xa.as<T>(), pa.as<float>(), qa.as<float>(),
                               wa.as<float>(), key, oa.as<T>(), rest...);
    });
}

// ---------------------------------------------------------------- dropout

void bind_dropout_forward(py::object x, float p, float scale, uint64_t seed, uint32_t purpose, py::object sample,
                  py::object step, py::object y) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1}, floating);
    check_noise_size(xa.size(1));
    const NoiseKey key = noise_key(call, seed, purpose, sample, step, xa.size(0));
    const Argument ya = call.array(y, "y", xa.shape, {xa.type}, Use::out);
    call.run(xa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        dropout_forward<T>(xa.size(0), xa.size(1), xa.as<T>(), p, scale, key, ya.as<T>(), rest...);
    });
}

// ---------------------------------------------------------------- denoise

void check_history(size_t history) {
    if (history > most_history)
        throw py::value_error("denoise takes at most " + std::to_string(most_history) + " history arrays, got " +
                              std::to_string(history));
}

// table (rows, 9 + k)
void check_denoise_table(const Shape& table, size_t history) {
    check_history(history);
    if (table[0] < 1 || table[1] != static_cast<int64_t>(9 + history))
        throw py::value_error("denoise takes rows of 9 coefficients and one per history array, got " + text(table) +
                              " for " + std::to_string(history) + " arrays");
}

// table (rows, 9 + k); row: None, or an array (1,) that says which row this step uses. The CPU's is looked at; what lies
// in a GPU's memory is not known before the kernel runs, which makes NaN of a row that is not there.
DenoiseTable denoise_table(Call& call, const Argument& table, const py::object& row, size_t history) {
    check_denoise_table(table.shape, history);
    const int32_t* at = call.optional(row, "row", {1}, {Type::int32}).as<int32_t>();
    if (on_cpu && at && (*at < 0 || *at >= table.size(0)))
        throw py::value_error("row must be from 0 to " + std::to_string(table.size(0) - 1) + ", got " +
                              std::to_string(*at));
    return {table.as<float>(), at, table.size(0), {}, static_cast<int64_t>(history)};
}

void bind_denoise_forward(py::object x, py::object f, py::object f_uncond, py::object table, py::object row,
                          const py::sequence& history, py::object noise, py::object x_next, py::object x0_hat) {
    Call call;
    check_history(history.size());  // before a list is made of it, however long it is
    const std::vector<py::object> past(history.begin(), history.end());
    const Argument xa = call.array(x, "x", {-1, -1}, single), fa = call.array(f, "f", xa.shape, floating);
    const Argument ua = call.optional(f_uncond, "f_uncond", xa.shape, {fa.type});
    const Argument ta = call.array(table, "table", {-1, -1}, single);
    DenoiseTable step = denoise_table(call, ta, row, past.size());
    for (size_t i = 0; i < past.size(); ++i)
        step.history[i] = call.array(past[i], "history", xa.shape, single).as<float>();
    const Argument na = call.array(x_next, "x_next", xa.shape, single, Use::out);
    const Argument ha = call.array(x0_hat, "x0_hat", xa.shape, single, Use::out);
    NoiseKey key{};
    const bool noisy = !noise.is_none();
    if (noisy) {
        check_noise_size(xa.size(1));
        std::tuple<uint64_t, uint32_t, py::object, py::object> parts;
        try {
            parts = noise.cast<decltype(parts)>();
        } catch (const py::cast_error&) {
            throw py::type_error("noise must be None or (seed, purpose, sample, step), got " +
                                 std::string(py::repr(noise)));
        }
        const auto& [seed, purpose, sample, number] = parts;
        key = noise_key(call, seed, purpose, sample, number, xa.size(0));
    }
    call.run(fa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        denoise_forward<T>(xa.size(0), xa.size(1), step, xa.as<float>(), fa.as<T>(), ua.as<T>(),
                           noisy ? &key : nullptr, na.as<float>(), ha.as<float>(), rest...);
    });
}

void bind_denoise_backward(py::object dx_next, py::object dx0_hat, py::object x, py::object f, py::object f_uncond,
                           py::object table, py::object row, py::object dx, py::object df) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1}, single), fa = call.array(f, "f", xa.shape, floating);
    const Argument ua = call.optional(f_uncond, "f_uncond", xa.shape, {fa.type});
    const Argument ga = call.array(dx_next, "dx_next", xa.shape, single);
    const Argument ha = call.array(dx0_hat, "dx0_hat", xa.shape, single);
    const Argument ta = call.array(table, "table", {-1, -1}, single);
    // the history has no gradient here, so it is not given; its coefficients may be there all the same
    const DenoiseTable step = denoise_table(call, ta, row, static_cast<size_t>(std::max<int64_t>(ta.size(1) - 9, 0)));
    const Argument dxa = call.array(dx, "dx", xa.shape, single, Use::out);
    const Argument dfa = call.array(df, "df", xa.shape, {fa.type}, Use::out);
    call.run(fa.type, [&](auto zero, auto... rest) {
        using T = decltype(zero);
        denoise_backward<T>(xa.size(0), xa.size(1), step, ga.as<float>(), ha.as<float>(), xa.as<float>(),
                            fa.as<T>(), ua.as<T>(), dxa.as<float>(), dfa.as<T>(), rest...);
    });
}

// ---------------------------------------------------------------- adamw

void bind_adamw(py::object p, py::object g, py::object m, py::object v, py::object ema, py::object low, double beta1,
                double beta2, double eps, double weight_decay, py::object schedule, py::object norm2) {
    Call call;
    const Argument pa = call.array(p, "p", {-1}, single, Use::in_place), ga = call.array(g, "g", pa.shape, single);
    const Argument ma = call.array(m, "m", pa.shape, single, Use::in_place);
    const Argument va = call.array(v, "v", pa.shape, single, Use::in_place);
    const Argument ea = call.optional(ema, "ema", pa.shape, single, Use::in_place);
    if (on_cpu && !low.is_none()) throw py::type_error("low, a bfloat16 copy, is kept on GPUs only; it must be None");
    const Argument la = call.optional(low, "low", pa.shape, {Type::bfloat16}, Use::in_place);
    const AdamWStep step{beta1, beta2, eps, weight_decay, call.array(schedule, "schedule", {4}, wide).as<double>(),
                         call.optional(norm2, "norm2", {1}, wide).as<double>()};
    call.run(Type::float32, [&](auto, auto... rest) {
        adamw(pa.size(0), step, pa.as<float>(), ga.as<float>(), ma.as<float>(), va.as<float>(), ea.as<float>(),
              la.as<bfloat16>(), rest...);
    });
}

void bind_squared_norm(py::object g, py::object norm2) {
    Call call;
    const Argument ga = call.array(g, "g", {-1}, single);
    const Argument na = call.array(norm2, "norm2", {1}, wide, Use::out);
    call.run_in(squared_norm_workspace(ga.size(0)), Type::float32, [&](auto, auto... rest) {
        squared_norm(ga.size(0), ga.as<float>(), na.as<double>(), rest...);
    });
}

}  // namespace

void bind_kernels(py::module_& m) {
    m.def("conv2d_forward", &bind_conv2d_forward);
    m.def("conv2d_backward_input", &bind_conv2d_backward_input);
    m.def("conv2d_backward_weight", &bind_conv2d_backward_weight);
    m.def("group_norm_forward", &bind_group_norm_forward);
    m.def("group_norm_backward", &bind_group_norm_backward);
    m.def("attention_forward", &bind_attention_forward);
    m.def("attention_backward", &bind_attention_backward);
    m.def("layer_norm_forward", &bind_layer_norm_forward);
    m.def("layer_norm_backward", &bind_layer_norm_backward);
    m.def("gelu_forward", &bind_gelu_forward);
    m.def("gelu_backward", &bind_gelu_backward);
    m.def("geglu_forward", &bind_geglu_forward);
    m.def("geglu_backward", &bind_geglu_backward);
    m.def("normal", &bind_normal);
    m.def("noise_forward", &bind_noise_forward);
    m.def("noise_backward", &bind_noise_backward);
    m.def("noise_loss_forward", &bind_noise_loss_forward);
    m.def("noise_loss_backward", &bind_noise_loss_backward);
    m.def("dropout_forward", &bind_dropout_forward);
    m.def("denoise_forward", &bind_denoise_forward);
    m.def("denoise_backward", &bind_denoise_backward);
    m.def("adamw", &bind_adamw);
    m.def("squared_norm", &bind_squared_norm);
}

}  // namespace pydiff
