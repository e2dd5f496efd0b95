// pydiff._simt: calls of the CUDA kernels with NumPy arrays. What a kernel sees are copies in guarded memory, aligned as
// cudaMalloc aligns, or as views are; outputs start as NaN and are copied back, so what was not written is seen.
#include "../cuda/call.h"

#include <pybind11/numpy.h>

#include <cstring>

#include "guarded.h"

namespace py = pybind11;

namespace pydiff {

namespace {

using simt::Fault;
using simt::GuardedMemory;

// Elements from the first to behind the last that these strides reach.
int64_t span(const Argument& a) {
    int64_t last = 0;
    for (size_t i = 0; i < a.shape.size(); ++i) {
        if (a.shape[i] == 0) return 0;
        last += (a.shape[i] - 1) * a.strides[i];
    }
    return last + 1;
}

}  // namespace

struct Call::World {
    struct Output {
        void* to;
        const void* from;
        size_t bytes;
    };
    std::vector<std::unique_ptr<GuardedMemory>> memory;  // one an array: how many there will be is not known before
    std::vector<Output> outputs;

    void* allocate(size_t bytes, const char* name) {
        memory.push_back(std::make_unique<GuardedMemory>(bytes + 4 * 256 + 2 * simt::gap_bytes));
        return memory.back()->allocate(bytes, 256, name, {name, 0});
    }
};

Call::Call() : world_(new World) {}
Call::~Call() = default;

Argument Call::array(const py::object& object, const char* name, const Shape& shape, std::initializer_list<Type> types,
                     Use use, bool rows_only) {
    if (!py::isinstance<py::array>(object))
        throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                             std::string(py::str(py::type::of(object).attr("__name__"))));
    const py::array array = py::reinterpret_borrow<py::array>(object);
    Found found{};
    Argument& a = found.argument;
    found.dtype = py::str(array.dtype().attr("name"));
    const auto type = std::find(std::begin(name_of), std::end(name_of), found.dtype);
    if (type == std::end(name_of) || !array.dtype().attr("isnative").cast<bool>())
        throw py::type_error(std::string(name) + " has dtype " + std::string(py::str(array.dtype())) +
                             ", which no kernel takes");
    a.type = Type(type - std::begin(name_of));
    const auto item = static_cast<int64_t>(bytes_of[int(a.type)]);
    a.shape.assign(array.shape(), array.shape() + array.ndim());
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        if (array.strides(i) % item && array.shape(i) > 1)
            throw py::value_error(std::string(name) + " has strides that are no multiple of its element size, so it is not "
                                                      "C-contiguous along its last axis");
        a.strides.push_back(array.strides(i) / item);
    }
    void* original = const_cast<void*>(array.data());
    a.data = original;
    found.contiguous = (array.flags() & py::array::c_style) != 0;
    found.writable = array.writeable();
    check(found, name, shape, types, use, rows_only);
    const size_t bytes = size_t(span(a)) * size_t(item);
    // A view that starts within 16 bytes of its array does so here too: NumPy's own arrays are aligned to that.
    const size_t shift = bytes ? reinterpret_cast<uintptr_t>(original) % 16 : 0;
    a.data = static_cast<unsigned char*>(world_->allocate(bytes + shift, name)) + shift;
    if (use != Use::out) std::memcpy(a.data, original, bytes);
    if (use != Use::in) world_->outputs.push_back({original, a.data, bytes});
    return a;
}

void* Call::workspace(size_t bytes) { return bytes ? world_->allocate(bytes, "workspace") : nullptr; }

cudaStream_t Call::stream() const { return nullptr; }

void Call::finish() {
    for (const auto& memory : world_->memory) {
        const std::string damage = memory->damage();
        if (!damage.empty()) throw Fault("global memory was overrun: " + damage);
    }
    for (const auto& output : world_->outputs) std::memcpy(output.to, output.from, output.bytes);
}

}  // namespace pydiff
