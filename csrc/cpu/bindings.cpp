// pydiff._cpu, _cpu_avx2 and _cpu_avx512: calls with NumPy arrays, whose memory the kernels read and write where it is.
#include <pybind11/stl.h>

#include "../bindings/numpy.h"
#include "array_memory.h"
#include "conv2d_methods.h"
#include "elementwise.h"
#include "group_norm_bands.h"
#include "levels.h"
#include "parallel.h"

namespace py = pybind11;

namespace pydiff {

struct Call::World {};  // nothing besides the arrays

Call::Call() = default;
Call::~Call() = default;
Found Call::find(const py::object& object, const char* name) { return find_numpy(object, name); }
void* Call::admit(const Argument& argument, const char*, Use) { return argument.data; }

namespace {

// ---- sums and copies of large arrays, for the array path ----

constexpr std::initializer_list<Type> single = {Type::float32};

void bind_add_rows(py::object a, py::object b, py::object out) {
    Call call;
    const Argument aa = call.array(a, "a", {-1, -1}, single), ba = call.array(b, "b", {-1, aa.size(1)}, single);
    const Argument oa = call.array(out, "out", aa.shape, single, Use::out);
    if (aa.size(0) > 0 && (ba.size(0) == 0 || aa.size(0) % ba.size(0) != 0))
        throw py::value_error("the rows of a must be a multiple of those of b, got " + std::to_string(aa.size(0)) +
                              " and " + std::to_string(ba.size(0)));
    const Unlocked unlocked;
    add_rows(aa.size(0), ba.size(0), aa.size(1), aa.as<float>(), ba.as<float>(), oa.as<float>());
}

void bind_join_rows(py::object a, py::object b, py::object out) {
    Call call;
    const Argument aa = call.array(a, "a", {-1, -1}, single), ba = call.array(b, "b", {aa.size(0), -1}, single);
    const Argument oa = call.array(out, "out", {aa.size(0), aa.size(1) + ba.size(1)}, single, Use::out);
    const Unlocked unlocked;
    join_rows(aa.size(0), aa.size(1), ba.size(1), aa.as<float>(), ba.as<float>(), oa.as<float>());
}

void bind_split_rows(py::object joined, py::object a, py::object b) {
    Call call;
    const Argument aa = call.array(a, "a", {-1, -1}, single, Use::out);
    const Argument ba = call.array(b, "b", {aa.size(0), -1}, single, Use::out);
    const Argument ja = call.array(joined, "joined", {aa.size(0), aa.size(1) + ba.size(1)}, single);
    const Unlocked unlocked;
    split_rows(ja.size(0), aa.size(1), ba.size(1), ja.as<float>(), aa.as<float>(), ba.as<float>());
}

void bind_turn_weights(py::object w, int64_t first, py::object out) {
    Call call;
    const Argument wa = call.array(w, "w", {-1, -1, -1}, {Type::float32, Type::float16});
    const Argument oa = call.array(out, "out", {wa.size(2), wa.size(1), -1}, single, Use::out);
    if (first < 0 || first > oa.size(2) - wa.size(0))
        throw py::value_error("out has no room for " + std::to_string(wa.size(0)) + " columns from " +
                              std::to_string(first));
    const Unlocked unlocked;
    const auto turn = [&](const auto* from) {
        turn_weights(wa.size(0), wa.size(1), wa.size(2), from, oa.size(2), oa.as<float>() + first);
    };
    if (wa.type == Type::float16)
        turn(wa.as<uint16_t>());
    else
        turn(wa.as<float>());
}

// ---- group_norm in two halves ----

void bind_group_norm_statistics(py::object x, int64_t groups, float eps, py::object mean, py::object rstd) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1}, single);
    const GroupNormShape s = group_norm_shape(xa.shape, groups, false);
    const Argument ma = call.array(mean, "mean", {s.n, groups}, single, Use::out);
    const Argument ra = call.array(rstd, "rstd", {s.n, groups}, single, Use::out);
    const Unlocked unlocked;
    group_norm_statistics(s, eps, xa.as<float>(), ma.as<float>(), ra.as<float>());
}

void bind_group_norm_apply(py::object x, py::object gamma, py::object beta, py::object mean, py::object rstd,
                           int64_t groups, bool silu, py::object y) {
    Call call;
    const Argument xa = call.array(x, "x", {-1, -1, -1}, single);
    const GroupNormShape s = group_norm_shape(xa.shape, groups, silu);
    const Argument ga = call.array(gamma, "gamma", {s.c}, single), ba = call.array(beta, "beta", {s.c}, single);
    const Argument ma = call.array(mean, "mean", {s.n, groups}, single);
    const Argument ra = call.array(rstd, "rstd", {s.n, groups}, single);
    const Argument ya = call.array(y, "y", xa.shape, single, Use::out);
    const Unlocked unlocked;
    group_norm_apply(s, xa.as<float>(), ga.as<float>(), ba.as<float>(), ma.as<float>(), ra.as<float>(),
                     ya.as<float>());
}

void bind(py::module_& m) {
    m.doc() = "pydiff's CPU kernels; see csrc/README.md. Call them through pydiff.ops, which allocates the outputs.";
    bind_kernels(m);
    m.def("supported_levels", &supported_levels);
    m.def("threads", &threads, py::call_guard<Unlocked>());
    m.def("set_threads", &set_threads, py::arg("n"), py::call_guard<Unlocked>());
    m.def("use_winograd", &use_winograd, py::arg("on"));
    m.def("release_scratch", &release_scratch);
    bind_array_memory(m);
    m.def("add_rows", &bind_add_rows, py::arg("a"), py::arg("b"), py::arg("out"));
    m.def("join_rows", &bind_join_rows, py::arg("a"), py::arg("b"), py::arg("out"));
    m.def("split_rows", &bind_split_rows, py::arg("joined"), py::arg("a"), py::arg("b"));
    m.def("turn_weights", &bind_turn_weights, py::arg("w"), py::arg("first"), py::arg("out"));
    m.def("group_norm_statistics", &bind_group_norm_statistics, py::arg("x"), py::arg("groups"), py::arg("eps"),
          py::arg("mean"), py::arg("rstd"));
    m.def("group_norm_apply", &bind_group_norm_apply, py::arg("x"), py::arg("gamma"), py::arg("beta"),
          py::arg("mean"), py::arg("rstd"), py::arg("groups"), py::arg("silu"), py::arg("y"));
}

}  // namespace
}  // namespace pydiff

// This file is compiled once, for the baseline, and linked into the modules of all instruction sets. Python calls the
// function that is named after the module.
PYBIND11_MODULE(_cpu, m) { pydiff::bind(m); }
PYBIND11_MODULE(_cpu_avx2, m) { pydiff::bind(m); }
PYBIND11_MODULE(_cpu_avx512, m) { pydiff::bind(m); }
