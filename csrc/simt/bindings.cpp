// pydiff._simt: the emulated kernels, with NumPy arrays in and out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "../bindings/call.h"
#include "copies.h"
#include "guarded.h"
#include "ptx.h"
#include "selftest/kernels.h"

namespace py = pybind11;
namespace pydiff::simt {
namespace {

using selftest::Plant;
template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// The memory of an emulated GPU for the length of one call: arrays between gaps, aligned as cudaMalloc does.
class Device {
public:
    explicit Device(size_t bytes) : memory_(bytes + (64 << 10)) {}

    template <class T>
    const T* in(const Array<T>& array, const char* name) {
        T* copy = out<T>(size_t(array.size()), name);
        std::memcpy(copy, array.data(), size_t(array.nbytes()));
        return copy;
    }
    template <class T>
    T* out(size_t count, const char* name) {
        return reinterpret_cast<T*>(memory_.allocate(count * sizeof(T), 256, name, {name, 0}));
    }
    // The output as an array, once the gaps are seen to be whole.
    template <class T>
    Array<T> take(const T* from, std::vector<py::ssize_t> shape) const {
        const std::string damage = memory_.damage();
        if (!damage.empty()) throw Fault("global memory was overrun: " + damage);
        Array<T> array(shape);
        std::memcpy(array.mutable_data(), from, size_t(array.nbytes()));
        return array;
    }

private:
    GuardedMemory memory_;
};

Plant plant_named(const std::string& name) {
    for (size_t i = 0; i < std::size(selftest::plant_names); ++i)
        if (name == selftest::plant_names[i]) return Plant(i);
    throw py::value_error("no plant is called '" + name + "'");
}

Array<float> bind_block_sum(const Array<float>& x, const std::string& plant) {
    const int n = int(x.size()), blocks = (n + selftest::sum_threads - 1) / selftest::sum_threads;
    Device device(size_t(x.nbytes()) * 2);
    float* sums = device.out<float>(blocks, "sums");
    selftest::block_sum(device.in(x, "x"), sums, n, plant_named(plant));
    return device.take(sums, {blocks});
}

Array<float> bind_scale(const Array<float>& x, float factor, const std::string& plant) {
    Device device(size_t(x.nbytes()) * 2);
    float* y = device.out<float>(x.size(), "y");
    selftest::scale(device.in(x, "x"), y, int(x.size()), factor, plant_named(plant));
    return device.take(y, {x.size()});
}

Array<float> bind_stage(const Array<float>& x, const std::string& plant) {
    Device device(size_t(x.nbytes()) * 2);
    float* y = device.out<float>(x.size(), "y");
    selftest::stage(device.in(x, "x"), y, int(x.size()), plant_named(plant));
    return device.take(y, {x.size()});
}

template <void (*matmul)(const float*, const float*, float*, int, int, int, Plant)>
Array<float> bind_matmul(const Array<float>& a, const Array<float>& b, const std::string& plant) {
    if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(0))
        throw py::value_error("a is (m, k) and b is (k, n)");
    const auto m = a.shape(0), k = a.shape(1), n = b.shape(1);
    Device device(size_t(a.nbytes() + b.nbytes() + m * n * 4));
    float* c = device.out<float>(m * n, "c");
    matmul(device.in(a, "a"), device.in(b, "b"), c, int(m), int(n), int(k), plant_named(plant));
    return device.take(c, {m, n});
}

Array<int> bind_collectives(const Array<int>& x, const std::string& plant) {
    if (x.size() != warp_size) throw py::value_error("x has 32 elements, one a lane");
    Device device(1 << 14);
    int* rows = device.out<int>(selftest::collective_rows * 32, "rows");
    selftest::collectives(device.in(x, "x"), rows, plant_named(plant));
    return device.take(rows, {selftest::collective_rows, warp_size});
}

Array<uint32_t> bind_fragments(const Array<uint16_t>& x) {
    if (x.size() != 32 * 8) throw py::value_error("x is (32, 8): four matrices of 8 x 8");
    Device device(1 << 14);
    uint32_t* out = device.out<uint32_t>(14 * 32, "out");
    selftest::fragments(device.in(x, "x"), out);
    return device.take(out, {14, warp_size});
}

py::tuple bind_atomics(const Array<int>& x) {
    Device device(size_t(x.nbytes()) + 64);
    int* totals = device.out<int>(4, "totals");
    float* sum = device.out<float>(1, "sum");
    totals[0] = 0, totals[1] = INT32_MIN, totals[2] = 0, totals[3] = 1, *sum = 0;
    selftest::atomics(device.in(x, "x"), totals, sum, int(x.size()));
    return py::make_tuple(device.take(totals, {4}), *sum);
}

Array<uint16_t> to_bfloat16(const Array<float>& x) {
    Array<uint16_t> y(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) y.mutable_data()[i] = __float2bfloat16_rn(x.data()[i]).bits;
    return y;
}

// A function of one float, element by element.
template <float (*f)(float)>
Array<float> bind_each(const Array<float>& x) {
    Array<float> y(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) y.mutable_data()[i] = f(x.data()[i]);
    return y;
}

py::dict count() {
    py::dict result;
    result["switches"] = counters.switches;
    result["barriers"] = counters.barriers;
    result["collectives"] = counters.collectives;
    result["atomics"] = counters.atomics;
    result["copies"] = counters.copies;
    result["helpers"] = counters.helpers;
    counters = {};
    return result;
}

}  // namespace
}  // namespace pydiff::simt

PYBIND11_MODULE(_simt, m) {
    using namespace pydiff::simt;
    m.doc() = "CUDA kernels run by the emulator of csrc/simt; docs/simt.md";
    py::register_exception<Fault>(m, "Fault", PyExc_RuntimeError);
    pydiff::bind_kernels(m);  // those of csrc/cuda
    m.def("set_naive", [](bool naive) { pydiff::use_naive = naive; }, py::arg("naive"), "Whether to use the naive kernels.");
    m.def("set_seed", &set_seed, py::arg("seed"));
    m.def("threads", &threads, "CPU threads that a launch may use.");
    m.def("set_threads", &set_threads, py::arg("n"));
    m.def("counters", &count, "What this thread's launches did since the last call.");
    m.def("to_bfloat16", &to_bfloat16, py::arg("x"), "Bits of x in bfloat16, as the emulator rounds.");
    m.def("sqrt_approx", &bind_each<pydiff::sqrt_approx>, py::arg("x"), "As the emulator makes it for sqrt.approx.");
    m.def("exp2_fast", &bind_each<pydiff::exp2_fast>, py::arg("x"), "2^x as the emulator makes it for ex2.approx.ftz.");
    const auto plant = py::arg("plant") = "none";
    m.def("block_sum", &bind_block_sum, py::arg("x"), plant);
    m.def("scale", &bind_scale, py::arg("x"), py::arg("factor"), plant);
    m.def("stage", &bind_stage, py::arg("x"), plant);
    m.def("matmul_bf16", &bind_matmul<pydiff::selftest::matmul_bf16>, py::arg("a"), py::arg("b"), plant);
    m.def("matmul_tf32", &bind_matmul<pydiff::selftest::matmul_tf32>, py::arg("a"), py::arg("b"), plant);
    m.def("collectives", &bind_collectives, py::arg("x"), plant);
    m.def("fragments", &bind_fragments, py::arg("x"));
    m.def("atomics", &bind_atomics, py::arg("x"));
}
