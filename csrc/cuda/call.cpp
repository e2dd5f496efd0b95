// pydiff._cuda: calls with CuPy arrays. Memory for scratch comes from CuPy's pool, in the order of the current stream.
#include "call.h"

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

Argument Call::array(const py::object& object, const char* name, const Shape& shape, std::initializer_list<Type> types,
                     Use use, bool rows_only) {
    if (!py::isinstance(object, py::module_::import("cupy").attr("ndarray")))
        throw py::type_error(std::string(name) + " must be a CuPy array, got " +
                             std::string(py::str(py::type::of(object).attr("__name__"))));
    Found found{};
    Argument& a = found.argument;
    found.dtype = py::str(object.attr("dtype").attr("name"));
    const auto type = std::find(std::begin(name_of), std::end(name_of), found.dtype);
    if (type == std::end(name_of))
        throw py::type_error(std::string(name) + " has dtype " + found.dtype + ", which no kernel takes");
    a.type = Type(type - std::begin(name_of));
    a.shape = object.attr("shape").cast<Shape>();
    for (int64_t bytes : object.attr("strides").cast<Shape>()) {
        if (bytes % int64_t(bytes_of[int(a.type)]))
            throw py::value_error(std::string(name) + " has strides that are no multiple of its element size");
        a.strides.push_back(bytes / int64_t(bytes_of[int(a.type)]));
    }
    a.data = reinterpret_cast<void*>(object.attr("data").attr("ptr").cast<uintptr_t>());
    found.contiguous = object.attr("flags").attr("c_contiguous").cast<bool>();
    found.writable = true;  // CuPy has no read-only arrays
    check(found, name, shape, types, use, rows_only);
    return a;
}

void* Call::workspace(size_t bytes) {
    if (bytes == 0) return nullptr;
    world_->keep.push_back(py::module_::import("cupy").attr("cuda").attr("alloc")(bytes));
    return reinterpret_cast<void*>(world_->keep.back().attr("ptr").cast<uintptr_t>());
}

cudaStream_t Call::stream() const { return world_->stream; }

void Call::finish() {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) throw std::runtime_error(std::string("a kernel could not be launched: ") + cudaGetErrorString(error));
}

}  // namespace pydiff

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "pydiff's CUDA kernels for CuPy arrays; see csrc/README.md. Call them through pydiff.ops.";
    pydiff::bind_kernels(m);
}
