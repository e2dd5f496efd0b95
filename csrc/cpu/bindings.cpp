// The Python face of the CPU kernels: turns arrays into pointers, and refuses what a kernel could not take.
// One function a kernel, same name, same argument order, outputs last and allocated by the caller.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "array_memory.h"
#include "conv2d_methods.h"
#include "elementwise.h"
#include "kernels.h"
#include "levels.h"
#include "parallel.h"

namespace py = pybind11;
using namespace pydiff;

namespace {

// An array argument after its checks: dtype, rank and shape, alignment, memory order, and writability of outputs.
// A -1 in the expected shape matches any size. Overlap of outputs with inputs is the caller's contract (ops/ allocates).
template <class T>
class Array {
public:
    Array(const py::object& object, const char* name, const Shape& expected, bool output = false, bool rows_only = false) {
        if (!py::isinstance<py::array>(object))
            throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                                 std::string(py::str(py::type::of(object).attr("__name__"))));
        py::array array = py::reinterpret_borrow<py::array>(object);
        if (!py::isinstance<py::array_t<T>>(array))
            throw py::type_error(std::string(name) + " must have dtype " + std::string(py::str(py::dtype::of<T>())) +
                                 " in native byte order, got " + std::string(py::str(array.dtype())));
        shape_.assign(array.shape(), array.shape() + array.ndim());
        check_shape(name, shape_, expected);
        for (py::ssize_t i = 0; i < array.ndim(); ++i) strides_.push_back(array.strides(i) / static_cast<int64_t>(sizeof(T)));
        if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0)
            throw py::value_error(std::string(name) + " is not aligned to its element size");
        if (rows_only ? !contiguous_rows(array) : !(array.flags() & py::array::c_style))
            throw py::value_error(std::string(name) + " must be C-contiguous" + (rows_only ? " along its last axis" : ""));
        if (output && !array.writeable()) throw py::value_error(std::string(name) + " is read-only");
        data_ = const_cast<T*>(static_cast<const T*>(array.data()));
    }
    const T* in() const { return data_; }
    T* out() const { return data_; }
    int64_t size(size_t axis) const { return shape_[axis]; }
    int64_t stride(size_t axis) const { return strides_[axis]; }
    const Shape& shape() const { return shape_; }
    const Shape& strides() const { return strides_; }  // in elements

private:
    static bool contiguous_rows(const py::array& array) {
        if (array.size() == 0) return true;  // NumPy gives some empty arrays strides of zero
        const auto last = array.ndim() - 1;
        if (array.shape(last) > 1 && array.strides(last) != static_cast<py::ssize_t>(sizeof(T))) return false;
        for (py::ssize_t i = 0; i < last; ++i)
            if (array.shape(i) > 1 && (array.strides(i) < 0 || array.strides(i) % static_cast<py::ssize_t>(sizeof(T)))) return false;
        return true;
    }
    T* data_ = nullptr;
    Shape shape_, strides_;
};

using Floats = Array<float>;
using Words = Array<uint32_t>;

Floats input(const py::object& o, const char* name, const Shape& s) { return Floats(o, name, s); }
Floats output(const py::object& o, const char* name, const Shape& s) { return Floats(o, name, s, true); }

// Of any rank: the caller checks the shape.
Floats any_rank(const py::object& o, const char* name, bool output = false) {
    const auto rank = py::isinstance<py::array>(o) ? py::reinterpret_borrow<py::array>(o).ndim() : 0;
    return Floats(o, name, Shape(static_cast<size_t>(rank), -1), output);
}

// An optional array: a null pointer for None.
const float* optional_input(const py::object& o, const char* name, const Shape& s) {
    return o.is_none() ? nullptr : input(o, name, s).in();
}
float* optional_output(const py::object& o, const char* name, const Shape& s) {
    return o.is_none() ? nullptr : output(o, name, s).out();
}

// ---------------------------------------------------------------- conv2d

void bind_conv2d_forward(py::object x, py::object w, py::object bias, py::object add, std::pair<int64_t, int64_t> stride,
                         std::pair<int64_t, int64_t> pad, int64_t up, py::object y) {
    const Floats xa = input(x, "x", {-1, -1, -1, -1}), wa = input(w, "w", {-1, -1, -1, -1});
    const Floats ya = output(y, "y", {-1, -1, -1, -1});
    const Conv2dShape s = conv2d_shape(xa.shape(), wa.shape(), ya.shape(), stride, pad, up);
    Addends addends;
    if (!bias.is_none()) {
        const Floats ba = any_rank(bias, "bias");
        addends.bias = ba.in(), addends.bias_step = bias_step(s, ba.shape(), "bias");
    }
    addends.add = optional_input(add, "add", ya.shape());
    py::gil_scoped_release nogil;
    conv2d_forward(s, xa.in(), wa.in(), addends, ya.out());
}

void bind_conv2d_backward_input(py::object dy, py::object w, std::pair<int64_t, int64_t> stride,
                                std::pair<int64_t, int64_t> pad, int64_t up, py::object dx) {
    const Floats dya = input(dy, "dy", {-1, -1, -1, -1}), wa = input(w, "w", {-1, -1, -1, -1});
    const Floats dxa = output(dx, "dx", {-1, -1, -1, -1});
    const Conv2dShape s = conv2d_shape(dxa.shape(), wa.shape(), dya.shape(), stride, pad, up);
    py::gil_scoped_release nogil;
    conv2d_backward_input(s, dya.in(), wa.in(), dxa.out());
}

void bind_conv2d_backward_weight(py::object dy, py::object x, std::pair<int64_t, int64_t> stride,
                                 std::pair<int64_t, int64_t> pad, int64_t up, py::object dw, py::object dbias) {
    const Floats dya = input(dy, "dy", {-1, -1, -1, -1}), xa = input(x, "x", {-1, -1, -1, -1});
    const Floats dwa = output(dw, "dw", {-1, -1, -1, -1});
    const Conv2dShape s = conv2d_shape(xa.shape(), dwa.shape(), dya.shape(), stride, pad, up);
    float* db = nullptr;
    int64_t step = 0;
    if (!dbias.is_none()) {
        const Floats dba = any_rank(dbias, "dbias", true);
        db = dba.out(), step = bias_step(s, dba.shape(), "dbias");
    }
    py::gil_scoped_release nogil;
    conv2d_backward_weight(s, dya.in(), xa.in(), dwa.out(), db, step);
}

// ---------------------------------------------------------------- group_norm

void bind_group_norm_forward(py::object x, py::object gamma, py::object beta, int64_t groups, float eps, bool silu,
                             py::object y, py::object mean, py::object rstd) {
    const Floats xa = input(x, "x", {-1, -1, -1});
    const GroupNormShape s = group_norm_shape(xa.shape(), groups, silu);
    const Floats ga = input(gamma, "gamma", {s.c}), ba = input(beta, "beta", {s.c});
    const Floats ya = output(y, "y", xa.shape());
    const Floats ma = output(mean, "mean", {s.n, groups}), ra = output(rstd, "rstd", {s.n, groups});
    py::gil_scoped_release nogil;
    group_norm_forward(s, eps, xa.in(), ga.in(), ba.in(), ya.out(), ma.out(), ra.out());
}

void bind_group_norm_backward(py::object dy, py::object x, py::object gamma, py::object beta, py::object mean,
                              py::object rstd, int64_t groups, bool silu, py::object dx, py::object dgamma,
                              py::object dbeta, py::object dx_sum) {
    const Floats xa = input(x, "x", {-1, -1, -1}), dya = input(dy, "dy", xa.shape());
    const GroupNormShape s = group_norm_shape(xa.shape(), groups, silu);
    const Floats ga = input(gamma, "gamma", {s.c}), ba = input(beta, "beta", {s.c});
    const Floats ma = input(mean, "mean", {s.n, groups}), ra = input(rstd, "rstd", {s.n, groups});
    const Floats dxa = output(dx, "dx", xa.shape()), dga = output(dgamma, "dgamma", {s.c}),
                 dba = output(dbeta, "dbeta", {s.c});
    float* sum = optional_output(dx_sum, "dx_sum", {s.c});
    py::gil_scoped_release nogil;
    group_norm_backward(s, dya.in(), xa.in(), ga.in(), ba.in(), ma.in(), ra.in(), dxa.out(), dga.out(), dba.out(), sum);
}

// ---------------------------------------------------------------- attention

Floats rows(const py::object& o, const char* name, const Shape& s) { return Floats(o, name, s, false, true); }

void bind_attention_forward(py::object q, py::object k, py::object v, int64_t heads, float scale, py::object out,
                            py::object lse) {
    const Floats qa = rows(q, "q", {-1, -1, -1}), ka = rows(k, "k", {qa.size(0), -1, qa.size(2)}),
                 va = rows(v, "v", ka.shape());
    const AttentionShape s =
        attention_shape(qa.shape(), ka.shape(), qa.strides(), ka.strides(), va.strides(), heads, scale);
    const Floats oa = output(out, "out", qa.shape()), la = output(lse, "lse", {s.n, heads, s.tq});
    py::gil_scoped_release nogil;
    attention_forward(s, qa.in(), ka.in(), va.in(), oa.out(), la.out());
}

void bind_attention_backward(py::object dout, py::object q, py::object k, py::object v, py::object out, py::object lse,
                             int64_t heads, float scale, py::object dq, py::object dk, py::object dv) {
    const Floats qa = rows(q, "q", {-1, -1, -1}), ka = rows(k, "k", {qa.size(0), -1, qa.size(2)}),
                 va = rows(v, "v", ka.shape());
    const AttentionShape s =
        attention_shape(qa.shape(), ka.shape(), qa.strides(), ka.strides(), va.strides(), heads, scale);
    const Floats doa = input(dout, "dout", qa.shape()), oa = input(out, "out", qa.shape()),
                 la = input(lse, "lse", {s.n, heads, s.tq});
    const Floats dqa = output(dq, "dq", qa.shape()), dka = output(dk, "dk", ka.shape()), dva = output(dv, "dv", ka.shape());
    py::gil_scoped_release nogil;
    attention_backward(s, doa.in(), qa.in(), ka.in(), va.in(), oa.in(), la.in(), dqa.out(), dka.out(), dva.out());
}

// ---------------------------------------------------------------- noise

NoiseKey noise_key(uint64_t seed, uint32_t purpose, const py::object& sample, const py::object& step, int64_t n) {
    return {seed, purpose, Words(sample, "sample", {n}).in(), Words(step, "step", {n}).in()};
}

void bind_normal(uint64_t seed, uint32_t purpose, py::object sample, py::object step, py::object eps) {
    const Floats ea = output(eps, "eps", {-1, -1});
    check_noise_size(ea.size(1));
    const NoiseKey key = noise_key(seed, purpose, sample, step, ea.size(0));
    py::gil_scoped_release nogil;
    normal(ea.size(0), ea.size(1), key, ea.out());
}

void bind_noise_forward(py::object x0, py::object alpha, py::object sigma, uint64_t seed, uint32_t purpose,
                        py::object sample, py::object step, py::object x_t, py::object eps) {
    const Floats xa = input(x0, "x0", {-1, -1});
    const int64_t n = xa.size(0), size = xa.size(1);
    check_noise_size(size);
    const Floats aa = input(alpha, "alpha", {n}), sa = input(sigma, "sigma", {n});
    const NoiseKey key = noise_key(seed, purpose, sample, step, n);
    const Floats ta = output(x_t, "x_t", xa.shape());
    float* e = optional_output(eps, "eps", xa.shape());
    py::gil_scoped_release nogil;
    noise_forward(n, size, xa.in(), aa.in(), sa.in(), key, ta.out(), e);
}

void bind_noise_backward(py::object dx_t, py::object alpha, py::object dx0) {
    const Floats da = input(dx_t, "dx_t", {-1, -1}), aa = input(alpha, "alpha", {da.size(0)}),
                 oa = output(dx0, "dx0", da.shape());
    py::gil_scoped_release nogil;
    noise_backward(da.size(0), da.size(1), da.in(), aa.in(), oa.out());
}

void bind_noise_loss_forward(py::object f, py::object x0, py::object p, py::object q, py::object weight, uint64_t seed,
                             uint32_t purpose, py::object sample, py::object step, py::object loss) {
    const Floats fa = input(f, "f", {-1, -1}), xa = input(x0, "x0", fa.shape());
    const int64_t n = fa.size(0), size = fa.size(1);
    check_noise_size(size);
    const Floats pa = input(p, "p", {n}), qa = input(q, "q", {n}), wa = input(weight, "weight", {n});
    const NoiseKey key = noise_key(seed, purpose, sample, step, n);
    const Floats la = output(loss, "loss", {n});
    py::gil_scoped_release nogil;
    noise_loss_forward(n, size, fa.in(), xa.in(), pa.in(), qa.in(), wa.in(), key, la.out());
}

void bind_noise_loss_backward(py::object dloss, py::object f, py::object x0, py::object p, py::object q,
                              py::object weight, uint64_t seed, uint32_t purpose, py::object sample, py::object step,
                              py::object df) {
    const Floats fa = input(f, "f", {-1, -1}), xa = input(x0, "x0", fa.shape());
    const int64_t n = fa.size(0), size = fa.size(1);
    check_noise_size(size);
    const Floats da = input(dloss, "dloss", {n}), pa = input(p, "p", {n}), qa = input(q, "q", {n}),
                 wa = input(weight, "weight", {n});
    const NoiseKey key = noise_key(seed, purpose, sample, step, n);
    const Floats oa = output(df, "df", fa.shape());
    py::gil_scoped_release nogil;
    noise_loss_backward(n, size, da.in(), fa.in(), xa.in(), pa.in(), qa.in(), wa.in(), key, oa.out());
}

// ---------------------------------------------------------------- denoise

// row: None, or an array (1,) that says which row of the table (rows, 9 + k) this step uses.
DenoiseTable denoise_table(const py::object& table, const py::object& row, size_t history) {
    const Floats ta = input(table, "table", {-1, -1});
    check_denoise_table(ta.shape(), history);
    const int32_t* ra = row.is_none() ? nullptr : Array<int32_t>(row, "row", {1}).in();
    if (ra && (*ra < 0 || *ra >= ta.size(0)))
        throw py::value_error("row must be from 0 to " + std::to_string(ta.size(0) - 1) + ", got " + std::to_string(*ra));
    return {ta.in(), ra, ta.size(0), {}, static_cast<int64_t>(history)};
}

void bind_denoise_forward(py::object x, py::object f, py::object f_uncond, py::object table, py::object row,
                          const std::vector<py::object>& history, py::object noise, py::object x_next, py::object x0_hat) {
    const Floats xa = input(x, "x", {-1, -1}), fa = input(f, "f", xa.shape());
    const float* fu = optional_input(f_uncond, "f_uncond", xa.shape());
    DenoiseTable step = denoise_table(table, row, history.size());
    for (size_t i = 0; i < history.size(); ++i) step.history[i] = input(history[i], "history", xa.shape()).in();
    const Floats na = output(x_next, "x_next", xa.shape()), ha = output(x0_hat, "x0_hat", xa.shape());
    NoiseKey key{};
    const bool noisy = !noise.is_none();
    if (noisy) {
        check_noise_size(xa.size(1));
        std::tuple<uint64_t, uint32_t, py::object, py::object> parts;
        try {
            parts = noise.cast<decltype(parts)>();
        } catch (const py::cast_error&) {
            throw py::type_error("noise must be None or (seed, purpose, sample, step), got " + std::string(py::repr(noise)));
        }
        key = noise_key(std::get<0>(parts), std::get<1>(parts), std::get<2>(parts), std::get<3>(parts), xa.size(0));
    }
    py::gil_scoped_release nogil;
    denoise_forward(xa.size(0), xa.size(1), step, xa.in(), fa.in(), fu, noisy ? &key : nullptr, na.out(), ha.out());
}

void bind_denoise_backward(py::object dx_next, py::object dx0_hat, py::object x, py::object f, py::object f_uncond,
                           py::object table, py::object row, py::object dx, py::object df) {
    const Floats xa = input(x, "x", {-1, -1}), fa = input(f, "f", xa.shape());
    const float* fu = optional_input(f_uncond, "f_uncond", xa.shape());
    const Floats ga = input(dx_next, "dx_next", xa.shape()), ha = input(dx0_hat, "dx0_hat", xa.shape());
    const int64_t columns = input(table, "table", {-1, -1}).size(1);
    // the history has no gradient here, so it is not given; its coefficients may be there all the same
    const DenoiseTable step = denoise_table(table, row, static_cast<size_t>(std::max<int64_t>(columns - 9, 0)));
    const Floats dxa = output(dx, "dx", xa.shape()), dfa = output(df, "df", xa.shape());
    py::gil_scoped_release nogil;
    denoise_backward(xa.size(0), xa.size(1), step, ga.in(), ha.in(), xa.in(), fa.in(), fu, dxa.out(), dfa.out());
}

// ---------------------------------------------------------------- adamw

void bind_adamw(py::object p, py::object g, py::object m, py::object v, py::object ema, py::object low, double beta1,
                double beta2, double eps, double weight_decay, py::object schedule, py::object norm2) {
    const Floats pa = output(p, "p", {-1}), ga = input(g, "g", pa.shape());
    const Floats ma = output(m, "m", pa.shape()), va = output(v, "v", pa.shape());
    float* e = optional_output(ema, "ema", pa.shape());
    if (!low.is_none()) throw py::type_error("low, a bfloat16 copy, is kept on GPUs only; it must be None");
    const AdamWStep step{beta1, beta2, eps, weight_decay, Array<double>(schedule, "schedule", {4}).in(),
                         norm2.is_none() ? nullptr : Array<double>(norm2, "norm2", {1}).in()};
    py::gil_scoped_release nogil;
    adamw(pa.size(0), step, pa.out(), ga.in(), ma.out(), va.out(), e);
}

void bind_squared_norm(py::object g, py::object norm2) {
    const Floats ga = input(g, "g", {-1});
    const Array<double> na(norm2, "norm2", {1}, true);
    py::gil_scoped_release nogil;
    squared_norm(ga.size(0), ga.in(), na.out());
}

// ---------------------------------------------------------------- sums and copies of large arrays

void bind_add_rows(py::object a, py::object b, py::object out) {
    const Floats aa = input(a, "a", {-1, -1}), ba = input(b, "b", {-1, aa.size(1)}), oa = output(out, "out", aa.shape());
    if (aa.size(0) > 0 && (ba.size(0) == 0 || aa.size(0) % ba.size(0) != 0))
        throw py::value_error("the rows of a must be a multiple of those of b, got " + std::to_string(aa.size(0)) +
                              " and " + std::to_string(ba.size(0)));
    py::gil_scoped_release nogil;
    add_rows(aa.size(0), ba.size(0), aa.size(1), aa.in(), ba.in(), oa.out());
}

void bind_join_rows(py::object a, py::object b, py::object out) {
    const Floats aa = input(a, "a", {-1, -1}), ba = input(b, "b", {aa.size(0), -1});
    const Floats oa = output(out, "out", {aa.size(0), aa.size(1) + ba.size(1)});
    py::gil_scoped_release nogil;
    join_rows(aa.size(0), aa.size(1), ba.size(1), aa.in(), ba.in(), oa.out());
}

void bind_split_rows(py::object joined, py::object a, py::object b) {
    const Floats aa = output(a, "a", {-1, -1}), ba = output(b, "b", {aa.size(0), -1});
    const Floats ja = input(joined, "joined", {aa.size(0), aa.size(1) + ba.size(1)});
    py::gil_scoped_release nogil;
    split_rows(ja.size(0), aa.size(1), ba.size(1), ja.in(), aa.out(), ba.out());
}

void bind(py::module_& m) {
    m.doc() = "pydiff's CPU kernels; see csrc/README.md. Call them through pydiff.ops, which allocates the outputs.";
    m.def("supported_levels", &supported_levels);
    m.def("threads", &threads, py::call_guard<py::gil_scoped_release>());
    m.def("set_threads", &set_threads, py::arg("n"), py::call_guard<py::gil_scoped_release>());

    bind_array_memory(m);
    m.def("add_rows", &bind_add_rows, py::arg("a"), py::arg("b"), py::arg("out"));
    m.def("join_rows", &bind_join_rows, py::arg("a"), py::arg("b"), py::arg("out"));
    m.def("split_rows", &bind_split_rows, py::arg("joined"), py::arg("a"), py::arg("b"));
    m.def("use_winograd", &use_winograd, py::arg("on"));
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

}  // namespace

// This file is compiled once, for the baseline, and linked into the modules of all instruction sets. Python calls the
// function that is named after the module.
PYBIND11_MODULE(_cpu, m) { bind(m); }
PYBIND11_MODULE(_cpu_avx2, m) { bind(m); }
PYBIND11_MODULE(_cpu_avx512, m) { bind(m); }
