// One call from Python to a launcher: its arrays checked, its scratch memory, its stream. Bodies for two worlds: call.cpp
// for CuPy arrays, ../simt/call.cpp for NumPy arrays under the emulator.
#pragma once
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace pydiff {

enum class Type { float32, bfloat16, float64, uint32, int32 };
constexpr size_t bytes_of[] = {4, 2, 8, 4, 4};
constexpr const char* name_of[] = {"float32", "bfloat16", "float64", "uint32", "int32"};
constexpr std::initializer_list<Type> floating = {Type::float32, Type::bfloat16};

enum class Use { in, out, in_place };  // out: every element is written, none is read

// An array argument after its checks.
struct Argument {
    void* data = nullptr;
    Type type = Type::float32;
    Shape shape, strides;  // in elements

    template <class T>
    T* as() const { return static_cast<T*>(data); }
    int64_t size(size_t axis) const { return shape[axis]; }
};

class Call {
public:
    Call();
    ~Call();
    Call(const Call&) = delete;

    // An array of one of these types and of this shape, where -1 matches any size. Raises TypeError or ValueError.
    // rows_only: the other axes may have any strides that are not negative; otherwise it must be C-contiguous.
    Argument array(const pybind11::object& object, const char* name, const Shape& shape,
                   std::initializer_list<Type> types, Use use = Use::in, bool rows_only = false);
    // The same for what may be None; data is then null.
    Argument optional(const pybind11::object& object, const char* name, const Shape& shape,
                      std::initializer_list<Type> types, Use use = Use::in) {
        return object.is_none() ? Argument{} : array(object, name, shape, types, use);
    }
    // Uninitialised memory, aligned to 256 bytes, until this call is over on the stream. Null for 0 bytes.
    void* workspace(size_t bytes);

    // Launches without Python's lock; then reports what went wrong with it.
    template <class Launch>
    void run(Launch&& launch) {
        {
            pybind11::gil_scoped_release nogil;
            launch(stream());
        }
        finish();
    }

private:
    cudaStream_t stream() const;
    void finish();
    struct World;
    std::unique_ptr<World> world_;
};

// What both bodies find out about an array, before the checks they share.
struct Found {
    Argument argument;
    std::string dtype;      // as the array's library calls it
    bool contiguous, writable;
};
void check(const Found& found, const char* name, const Shape& shape, std::initializer_list<Type> types, Use use,
           bool rows_only);

// launch(T{}) with T = float or bfloat16, as the argument is.
template <class Launch>
void by_type(Type type, Launch&& launch) {
    if (type == Type::bfloat16)
        launch(bfloat16{});
    else
        launch(float{});
}

void bind_kernels(pybind11::module_& m);  // bindings.cpp

}  // namespace pydiff
