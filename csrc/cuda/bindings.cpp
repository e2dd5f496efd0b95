// The Python face of the CUDA kernels: the functions of csrc/cpu/bindings.cpp, same names, same arguments, outputs last and
// allocated by the caller. Compiled twice: into pydiff._cuda for CuPy arrays, into pydiff._simt for NumPy arrays.
#include <pybind11/stl.h>

#include <tuple>

#include "call.h"

namespace py = pybind11;

namespace pydiff {
namespace {

using Pair = std::pair<int64_t, int64_t>;
constexpr std::initializer_list<Type> single = {Type::float32}, wide = {Type::float64}, words = {Type::uint32};

// ---------------------------------------------------------------- conv2d

// bias or dbias: None, (cout), or (n, cout), one for each sample.
Argument bias_array(Call& call, const py::object& object, const char* name, const Conv2dShape& s, Use use = Use::in) {
    const bool each = py::hasattr(object, "shape") && py::len(object.attr("shape")) == 2;
    return call.optional(object, name, each ? Shape{s.n, s.cout} : Shape{s.cout}, single, use);
}
int64_t step_of(const Argument& bias, const char* name, const Conv2dShape& s) {
    return bias.shape.empty() ? 0 : bias_step(s, bias.shape, name);
}

void bind_conv2d_forward(py::object x, py::object w, py::object bias, py::object add, Pair stride, Pair pad, int64_t up,
                         py::object y) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1, -1}, floating);
    const Argument wa = call.array(w, "w", {-1, -1, -1, -1}, {xa.type});
    const Argument ya = call.array(y, "y", {-1, -1, -1, -1}, {xa.type}, Use::out);
    const Conv2dShape s = conv2d_shape(xa.shape, wa.shape, ya.shape, stride, pad, up);
    const Argument ba = bias_array(call, bias, "bias", s), aa = call.optional(add, "add", ya.shape, {xa.type});
    const int64_t step = step_of(ba, "bias", s);
    call.run([&](cudaStream_t stream) {
        by_type(xa.type, [&](auto zero) {
            using T = decltype(zero);
            conv2d_forward<T>(s, xa.as<T>(), wa.as<T>(), {ba.as<float>(), step, aa.as<T>()}, ya.as<T>(), stream);
        });
    });
}

void bind_conv2d_backward_input(py::object dy, py::object w, Pair stride, Pair pad, int64_t up, py::object dx) {
    Call call;
    const Argument dya = call.array(dy, "dy", {-1, -1, -1, -1}, floating);
    const Argument wa = call.array(w, "w", {-1, -1, -1, -1}, {dya.type});
    const Argument dxa = call.array(dx, "dx", {-1, -1, -1, -1}, {dya.type}, Use::out);
    const Conv2dShape s = conv2d_shape(dxa.shape, wa.shape, dya.shape, stride, pad, up);
    call.run([&](cudaStream_t stream) {
        by_type(dya.type, [&](auto zero) {
            using T = decltype(zero);
            conv2d_backward_input<T>(s, dya.as<T>(), wa.as<T>(), dxa.as<T>(), stream);
        });
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
    const int64_t step = step_of(dba, "dbias", s);
    void* workspace = call.workspace(conv2d_backward_weight_workspace(s));
    call.run([&](cudaStream_t stream) {
        by_type(dya.type, [&](auto zero) {
            using T = decltype(zero);
            conv2d_backward_weight<T>(s, dya.as<T>(), xa.as<T>(), dwa.as<float>(), dba.as<float>(), step, workspace,
                                      stream);
        });
    });
}

// ---------------------------------------------------------------- group_norm

void bind_group_norm_forward(py::object x, py::object gamma, py::object beta, int64_t groups, float eps, bool silu,
                             py::object y, py::object mean, py::object rstd) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1}, floating);
    const GroupNormShape s = group_norm_shape(xa.shape, groups, silu);
    const Argument ga = call.array(gamma, "gamma", {s.c}, single), ba = call.array(beta, "beta", {s.c}, single);
    const Argument ya = call.array(y, "y", xa.shape, {xa.type}, Use::out);
    const Argument ma = call.array(mean, "mean", {s.n, groups}, single, Use::out);
    const Argument ra = call.array(rstd, "rstd", {s.n, groups}, single, Use::out);
    void* workspace = call.workspace(group_norm_workspace(s));
    call.run([&](cudaStream_t stream) {
        by_type(xa.type, [&](auto zero) {
            using T = decltype(zero);
            group_norm_forward<T>(s, eps, xa.as<T>(), ga.as<float>(), ba.as<float>(), ya.as<T>(), ma.as<float>(),
                                  ra.as<float>(), workspace, stream);
        });
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
    void* workspace = call.workspace(group_norm_workspace(s));
    call.run([&](cudaStream_t stream) {
        by_type(xa.type, [&](auto zero) {
            using T = decltype(zero);
            group_norm_backward<T>(s, dya.as<T>(), xa.as<T>(), ga.as<float>(), ba.as<float>(), ma.as<float>(),
                                   ra.as<float>(), dxa.as<T>(), dga.as<float>(), dba.as<float>(), dsa.as<float>(),
                                   workspace, stream);
        });
    });
}

// ---------------------------------------------------------------- attention

void bind_attention_forward(py::object q, py::object k, py::object v, int64_t heads, float scale, py::object out,
                            py::object lse) {
    Call call;
    const Argument qa = call.array(q, "q", {-1, -1, -1}, floating, Use::in, true);
    const Argument ka = call.array(k, "k", {qa.size(0), -1, qa.size(2)}, {qa.type}, Use::in, true);
    const Argument va = call.array(v, "v", ka.shape, {qa.type}, Use::in, true);
    const AttentionShape s = attention_shape(qa.shape, ka.shape, qa.strides, ka.strides, va.strides, heads, scale);
    const Argument oa = call.array(out, "out", qa.shape, {qa.type}, Use::out);
    const Argument la = call.array(lse, "lse", {s.n, heads, s.tq}, single, Use::out);
    call.run([&](cudaStream_t stream) {
        by_type(qa.type, [&](auto zero) {
            using T = decltype(zero);
            attention_forward<T>(s, qa.as<T>(), ka.as<T>(), va.as<T>(), oa.as<T>(), la.as<float>(), stream);
        });
    });
}

void bind_attention_backward(py::object dout, py::object q, py::object k, py::object v, py::object out, py::object lse,
                             int64_t heads, float scale, py::object dq, py::object dk, py::object dv) {
    Call call;
    const Argument qa = call.array(q, "q", {-1, -1, -1}, floating, Use::in, true);
    const Argument ka = call.array(k, "k", {qa.size(0), -1, qa.size(2)}, {qa.type}, Use::in, true);
    const Argument va = call.array(v, "v", ka.shape, {qa.type}, Use::in, true);
    const AttentionShape s = attention_shape(qa.shape, ka.shape, qa.strides, ka.strides, va.strides, heads, scale);
    const Argument doa = call.array(dout, "dout", qa.shape, {qa.type}), oa = call.array(out, "out", qa.shape, {qa.type});
    const Argument la = call.array(lse, "lse", {s.n, heads, s.tq}, single);
    const Argument dqa = call.array(dq, "dq", qa.shape, {qa.type}, Use::out);
    const Argument dka = call.array(dk, "dk", ka.shape, {qa.type}, Use::out);
    const Argument dva = call.array(dv, "dv", ka.shape, {qa.type}, Use::out);
    void* workspace = call.workspace(attention_backward_workspace(s));
    call.run([&](cudaStream_t stream) {
        by_type(qa.type, [&](auto zero) {
            using T = decltype(zero);
            attention_backward<T>(s, doa.as<T>(), qa.as<T>(), ka.as<T>(), va.as<T>(), oa.as<T>(), la.as<float>(),
                                  dqa.as<T>(), dka.as<T>(), dva.as<T>(), workspace, stream);
        });
    });
}

// ---------------------------------------------------------------- noise

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
    call.run([&](cudaStream_t stream) {
        by_type(ea.type, [&](auto zero) {
            using T = decltype(zero);
            normal<T>(ea.size(0), ea.size(1), key, ea.as<T>(), stream);
        });
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
    call.run([&](cudaStream_t stream) {
        by_type(xa.type, [&](auto zero) {
            using T = decltype(zero);
            noise_forward<T>(n, size, xa.as<T>(), aa.as<float>(), sa.as<float>(), key, ta.as<T>(), ea.as<T>(), stream);
        });
    });
}

void bind_noise_backward(py::object dx_t, py::object alpha, py::object dx0) {
    Call call;
    const Argument da = call.array(dx_t, "dx_t", {-1, -1}, floating);
    const Argument aa = call.array(alpha, "alpha", {da.size(0)}, single);
    const Argument oa = call.array(dx0, "dx0", da.shape, {da.type}, Use::out);
    call.run([&](cudaStream_t stream) {
        by_type(da.type, [&](auto zero) {
            using T = decltype(zero);
            noise_backward<T>(da.size(0), da.size(1), da.as<T>(), aa.as<float>(), oa.as<T>(), stream);
        });
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
    void* workspace = call.workspace(noise_loss_workspace(n, size));
    call.run([&](cudaStream_t stream) {
        by_type(fa.type, [&](auto zero) {
            using T = decltype(zero);
            noise_loss_forward<T>(n, size, fa.as<T>(), xa.as<T>(), pa.as<float>(), qa.as<float>(), wa.as<float>(), key,
                                  la.as<float>(), workspace, stream);
        });
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
    call.run([&](cudaStream_t stream) {
        by_type(fa.type, [&](auto zero) {
            using T = decltype(zero);
            noise_loss_backward<T>(n, size, da.as<float>(), fa.as<T>(), xa.as<T>(), pa.as<float>(), qa.as<float>(),
                                   wa.as<float>(), key, oa.as<T>(), stream);
        });
    });
}

// ---------------------------------------------------------------- denoise

// row: None, or an array (1,) that says which row of the table (rows, 9 + k) this step uses.
DenoiseTable denoise_table(Call& call, const py::object& table, const py::object& row,
                           const std::vector<py::object>& history, const Shape& shape) {
    const Argument ta = call.array(table, "table", {-1, -1}, single);
    check_denoise_table(ta.shape, history.size());
    DenoiseTable step{ta.as<float>(), call.optional(row, "row", {1}, {Type::int32}).as<int32_t>(), ta.size(0), {},
                      static_cast<int64_t>(history.size())};
    for (size_t i = 0; i < history.size(); ++i)
        step.history[i] = call.array(history[i], "history", shape, single).as<float>();
    return step;
}

void bind_denoise_forward(py::object x, py::object f, py::object f_uncond, py::object table, py::object row,
                          const std::vector<py::object>& history, py::object noise, py::object x_next,
                          py::object x0_hat) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1}, single), fa = call.array(f, "f", xa.shape, floating);
    const Argument ua = call.optional(f_uncond, "f_uncond", xa.shape, {fa.type});
    const DenoiseTable step = denoise_table(call, table, row, history, xa.shape);
    const Argument na = call.array(x_next, "x_next", xa.shape, single, Use::out);
    const Argument ha = call.array(x0_hat, "x0_hat", xa.shape, single, Use::out);
    NoiseKey key{};
    if (!noise.is_none()) {
        check_noise_size(xa.size(1));
        std::tuple<uint64_t, uint32_t, py::object, py::object> parts;
        try {
            parts = noise.cast<decltype(parts)>();
        } catch (const py::cast_error&) {
            throw py::type_error("noise must be None or (seed, purpose, sample, step), got " + std::string(py::repr(noise)));
        }
        key = noise_key(call, std::get<0>(parts), std::get<1>(parts), std::get<2>(parts), std::get<3>(parts), xa.size(0));
    }
    call.run([&](cudaStream_t stream) {
        by_type(fa.type, [&](auto zero) {
            using T = decltype(zero);
            denoise_forward<T>(xa.size(0), xa.size(1), step, xa.as<float>(), fa.as<T>(), ua.as<T>(),
                               key.sample ? &key : nullptr, na.as<float>(), ha.as<float>(), stream);
        });
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
    check_denoise_table(ta.shape, static_cast<size_t>(std::max<int64_t>(ta.size(1) - 9, 0)));
    const DenoiseTable step{ta.as<float>(), call.optional(row, "row", {1}, {Type::int32}).as<int32_t>(), ta.size(0), {},
                            ta.size(1) - 9};
    const Argument dxa = call.array(dx, "dx", xa.shape, single, Use::out);
    const Argument dfa = call.array(df, "df", xa.shape, {fa.type}, Use::out);
    call.run([&](cudaStream_t stream) {
        by_type(fa.type, [&](auto zero) {
            using T = decltype(zero);
            denoise_backward<T>(xa.size(0), xa.size(1), step, ga.as<float>(), ha.as<float>(), xa.as<float>(),
                                fa.as<T>(), ua.as<T>(), dxa.as<float>(), dfa.as<T>(), stream);
        });
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
    const Argument la = call.optional(low, "low", pa.shape, {Type::bfloat16}, Use::in_place);
    const AdamWStep step{beta1, beta2, eps, weight_decay, call.array(schedule, "schedule", {4}, wide).as<double>(),
                         call.optional(norm2, "norm2", {1}, wide).as<double>()};
    call.run([&](cudaStream_t stream) {
        adamw(pa.size(0), step, pa.as<float>(), ga.as<float>(), ma.as<float>(), va.as<float>(), ea.as<float>(),
              la.as<bfloat16>(), stream);
    });
}

void bind_squared_norm(py::object g, py::object norm2) {
    Call call;
    const Argument ga = call.array(g, "g", {-1}, single);
    const Argument na = call.array(norm2, "norm2", {1}, wide, Use::out);
    void* workspace = call.workspace(squared_norm_workspace(ga.size(0)));
    call.run([&](cudaStream_t stream) { squared_norm(ga.size(0), ga.as<float>(), na.as<double>(), workspace, stream); });
}

}  // namespace

void check(const Found& found, const char* name, const Shape& shape, std::initializer_list<Type> types, Use use,
           bool rows_only) {
    const Argument& a = found.argument;
    if (std::find(types.begin(), types.end(), a.type) == types.end()) {
        std::string expected;
        for (Type type : types) expected += (expected.empty() ? "" : " or ") + std::string(name_of[int(type)]);
        throw py::type_error(std::string(name) + " must have dtype " + expected + ", got " + found.dtype);
    }
    check_shape(name, a.shape, shape);
    if (reinterpret_cast<uintptr_t>(a.data) % bytes_of[int(a.type)] != 0)
        throw py::value_error(std::string(name) + " is not aligned to its element size");
    bool rows = true;  // each row contiguous, the other strides not negative
    const bool empty = std::find(a.shape.begin(), a.shape.end(), 0) != a.shape.end();  // may have strides of zero
    for (size_t i = 0; rows_only && !empty && i < a.shape.size(); ++i)
        rows = rows && (a.shape[i] == 1 || (i + 1 == a.shape.size() ? a.strides[i] == 1 : a.strides[i] >= 0));
    if (rows_only ? !rows : !found.contiguous)
        throw py::value_error(std::string(name) + " must be C-contiguous" + (rows_only ? " along its last axis" : ""));
    if (use != Use::in && !found.writable) throw py::value_error(std::string(name) + " is read-only");
}

void bind_kernels(py::module_& m) {
    m.def("set_naive", [](bool naive) { use_naive = naive; }, py::arg("naive"), "Whether to use the naive kernels.");
    m.def("conv2d_forward", &bind_conv2d_forward);
    m.def("conv2d_backward_input", &bind_conv2d_backward_input);
    m.def("conv2d_backward_weight", &bind_conv2d_backward_weight);
    m.def("group_norm_forward", &bind_group_norm_forward);
    m.def("group_norm_backward", &bind_group_norm_backward);
    m.def("attention_forward", &bind_attention_forward);
    m.def("attention_backward", &bind_attention_backward);
    m.def("normal", &bind_normal);
    m.def("noise_forward", &bind_noise_forward);
    m.def("noise_backward", &bind_noise_backward);
    m.def("noise_loss_forward", &bind_noise_loss_forward);
    m.def("noise_loss_backward", &bind_noise_loss_backward);
    m.def("denoise_forward", &bind_denoise_forward);
    m.def("denoise_backward", &bind_denoise_backward);
    m.def("adamw", &bind_adamw);
    m.def("squared_norm", &bind_squared_norm);
}

}  // namespace pydiff
