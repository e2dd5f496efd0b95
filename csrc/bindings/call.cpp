// The checks of an array argument, whatever it lives in. Errors say what was got and what was expected.
#include "call.h"

#include <algorithm>

namespace py = pybind11;

namespace pydiff {

std::string text(const Shape& shape) {
    std::string s = "(";
    for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
    return s + (shape.size() == 1 ? ",)" : ")");
}

void check_shape(const char* name, const Shape& shape, const Shape& expected) {
    bool fits = shape.size() == expected.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = expected[i] < 0 || shape[i] == expected[i];
    if (!fits) throw py::value_error(std::string(name) + " must have shape " + text(expected) + ", got " + text(shape));
}

int64_t Argument::span() const {
    int64_t last = 0;
    for (size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0) return 0;
        last += (shape[i] - 1) * strides[i];
    }
    return last + 1;
}

Argument Call::array(const py::object& object, const char* name, const Shape& shape, std::initializer_list<Type> types,
                     Use use, bool rows_only) {
    const Found found = find(object, name);
    Argument a = found.argument;
    if (std::find(types.begin(), types.end(), a.type) == types.end()) {
        std::string expected;
        for (Type type : types) expected += (expected.empty() ? "" : " or ") + std::string(name_of[int(type)]);
        throw py::type_error(std::string(name) + " must have dtype " + expected + " in native byte order, got " +
                             std::string(py::str(object.attr("dtype"))));
    }
    check_shape(name, a.shape, shape);
    const bool empty = std::find(a.shape.begin(), a.shape.end(), 0) != a.shape.end();
    if (!empty) {  // else no element could lie in a wrong place, whatever pointer and strides are
        if (reinterpret_cast<uintptr_t>(a.data) % static_cast<uintptr_t>(bytes_of[int(a.type)]) != 0)
            throw py::value_error(std::string(name) + " is not aligned to its element size");
        bool rows = found.whole_strides;  // each row contiguous, the other strides not negative
        for (size_t i = 0; i < a.shape.size(); ++i)
            rows = rows && (a.shape[i] == 1 || (i + 1 == a.shape.size() ? a.strides[i] == 1 : a.strides[i] >= 0));
        if (rows_only ? !rows : !found.contiguous)
            throw py::value_error(std::string(name) + " must be C-contiguous" +
                                  (rows_only ? " along its last axis" : ""));
    }
    if (use != Use::in && !found.writable) throw py::value_error(std::string(name) + " is read-only");
    check_overlap(a, name, use != Use::in);
    a.data = admit(a, name, use);
    return a;
}

// Kernels read an input again after they have begun to write, and several threads write at once.
void Call::check_overlap(const Argument& a, const char* name, bool written) {
    const auto begin = reinterpret_cast<uintptr_t>(a.data);
    const Range range{name, begin, begin + static_cast<uintptr_t>(a.span() * bytes_of[int(a.type)]), written};
    if (range.begin == range.end) return;
    for (const Range& other : ranges_)
        if ((written || other.written) && range.begin < other.end && other.begin < range.end)
            throw py::value_error(std::string(name) + " shares memory with " + other.name +
                                  ", and a kernel's outputs must have memory of their own");
    if (ranges_.empty()) ranges_.reserve(16);
    ranges_.push_back(range);
}

}  // namespace pydiff
