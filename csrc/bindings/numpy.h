// A NumPy array before its checks: for the CPU's kernels, and for CUDA's under the emulator.
#pragma once
#include <pybind11/numpy.h>

#include <string>

#include "call.h"

namespace pydiff {

// Quick for the common types: NumPy makes a dtype's name in Python. ml_dtypes' bfloat16 is of kind V, raw bytes.
inline Type type_of(const pybind11::dtype& dtype) {
    if (dtype.byteorder() != '=' && dtype.byteorder() != '|') return Type::other;
    const char kind = dtype.kind();
    const auto size = dtype.itemsize();
    if (kind == 'f')
        return size == 4   ? Type::float32
               : size == 8 ? Type::float64
               : size == 2 ? Type::float16
                           : Type::other;
    if (kind == 'u') return size == 4 ? Type::uint32 : Type::other;
    if (kind == 'i') return size == 4 ? Type::int32 : Type::other;
    if (kind == 'b') return Type::boolean;
    const bool bfloat16 = kind == 'V' && size == 2 && std::string(pybind11::str(dtype.attr("name"))) == "bfloat16";
    return bfloat16 ? Type::bfloat16 : Type::other;
}

inline Found find_numpy(const pybind11::object& object, const char* name) {
    namespace py = pybind11;
    if (!py::isinstance<py::array>(object))
        throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                             std::string(py::str(py::type::of(object).attr("__name__"))));
    const py::array array = py::reinterpret_borrow<py::array>(object);
    Found found;
    Argument& a = found.argument;
    a.type = type_of(array.dtype());
    a.shape.assign(array.shape(), array.shape() + array.ndim());
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        const auto bytes = static_cast<int64_t>(array.strides(i));
        a.strides.push_back(bytes / bytes_of[int(a.type)]);
        if (bytes % bytes_of[int(a.type)] && array.shape(i) > 1) found.whole_strides = false;
    }
    a.data = const_cast<void*>(array.data());
    found.contiguous = (array.flags() & py::array::c_style) != 0;
    found.writable = array.writeable();
    return found;
}

}  // namespace pydiff
