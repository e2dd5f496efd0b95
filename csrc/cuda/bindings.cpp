// pydiff._cuda: calls with CuPy arrays. Memory for scratch comes from CuPy's pool, in the order of the current stream.
#include <algorithm>

#include "../bindings/call.h"

namespace py = pybind11;

namespace pydiff {

struct Call::World {
    cudaStream_t stream;
    std::vector<py::object> keep;  // scratch memory; CuPy's pool hands it out again in the stream's order only
};

Call::Call() : world_(new World) {
    const py::object current = py::module_::import("cupy").attr("cuda").attr("get_current_stream")();
    world_->stream = reinterpret_cast<cudaStream_t>(current.attr("ptr").cast<uintptr_t>());
}

Call::~Call() = default;

Found Call::find(const py::object& object, const char* name) {
    if (!py::isinstance(object, py::module_::import("cupy").attr("ndarray")))
        throw py::type_error(std::string(name) + " must be a CuPy array, got " +
                             std::string(py::str(py::type::of(object).attr("__name__"))));
    Found found;
    Argument& a = found.argument;
    const std::string dtype = py::str(object.attr("dtype").attr("name"));
    a.type = Type(std::find(std::begin(name_of), std::end(name_of), dtype) - std::begin(name_of));  // or other
    a.shape = object.attr("shape").cast<Shape>();
    for (const int64_t bytes : object.attr("strides").cast<Shape>()) {
        a.strides.push_back(bytes / bytes_of[int(a.type)]);
        if (bytes % bytes_of[int(a.type)]) found.whole_strides = false;
    }
    a.data = reinterpret_cast<void*>(object.attr("data").attr("ptr").cast<uintptr_t>());
    found.contiguous = object.attr("flags").attr("c_contiguous").cast<bool>();
    return found;  // writable: CuPy has no read-only arrays
}

void* Call::admit(const Argument& argument, const char*, Use) { return argument.data; }

void* Call::workspace(size_t bytes) {
    if (bytes == 0) return nullptr;
    world_->keep.push_back(py::module_::import("cupy").attr("cuda").attr("alloc")(bytes));
    return reinterpret_cast<void*>(world_->keep.back().attr("ptr").cast<uintptr_t>());
}

cudaStream_t Call::stream() const { return world_->stream; }

void Call::finish() {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("a kernel could not be launched: ") + cudaGetErrorString(error));
}

}  // namespace pydiff

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "pydiff's CUDA kernels for CuPy arrays; see csrc/README.md. Call them through pydiff.ops.";
    pydiff::bind_kernels(m);
    m.def("set_naive", [](bool naive) { pydiff::use_naive = naive; }, py::arg("naive"), "Whether to use the naive kernels.");
}
