// One call from Python to a kernel: its arrays checked, its scratch memory, its stream. What differs between NumPy's
// arrays, CuPy's and those of the emulator is in cpu/bindings.cpp, cuda/bindings.cpp and simt/call.cpp.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gil.h"

#if defined(PYDIFF_CPU)
#include "../cpu/kernels.h"
#else
#include "../cuda/kernels.h"
#endif

namespace pydiff {

using Shape = std::vector<int64_t>;
std::string text(const Shape& shape);  // as Python writes it

// ValueError if it is another one. -1 in the expected shape matches any size.
void check_shape(const char* name, const Shape& shape, const Shape& expected);

enum class Type { float32, bfloat16, float64, uint32, int32, boolean, float16, other };
constexpr int64_t bytes_of[] = {4, 2, 8, 4, 4, 1, 2, 1};
constexpr const char* name_of[] = {"float32", "bfloat16", "float64", "uint32", "int32", "bool", "float16"};

#if defined(PYDIFF_CPU)
constexpr bool on_cpu = true;
constexpr std::initializer_list<Type> floating = {Type::float32};  // what flows through the network
#else
constexpr bool on_cpu = false;  // under the emulator neither: it stands for a GPU
constexpr std::initializer_list<Type> floating = {Type::float32, Type::bfloat16};
#endif

enum class Use { in, out, in_place };  // out: every element is written, none is read

// An array argument after its checks.
struct Argument {
    void* data = nullptr;
    Type type = Type::float32;
    Shape shape, strides;  // in elements

    template <class T>
    T* as() const { return static_cast<T*>(data); }
    int64_t size(size_t axis) const { return shape[axis]; }
    int64_t span() const;  // elements from the first to behind the last that the strides reach
};

// An array before its checks.
struct Found {
    Argument argument;
    bool contiguous = false;     // C-contiguous
    bool writable = true;
    bool whole_strides = true;   // all strides are multiples of the element size
};

class Call {
public:
    Call();
    ~Call();
    Call(const Call&) = delete;

    // An array of one of these types and of this shape, where -1 matches any size. It must be aligned to its elements
    // and C-contiguous; rows_only: axes but the last may have any strides that are not negative. What is written must
    // be writable and share no memory with another argument. Raises TypeError or ValueError.
    Argument array(const pybind11::object& object, const char* name, const Shape& shape,
                   std::initializer_list<Type> types, Use use = Use::in, bool rows_only = false);
    // The same for what may be None; data is then null.
    Argument optional(const pybind11::object& object, const char* name, const Shape& shape,
                      std::initializer_list<Type> types, Use use = Use::in) {
        return object.is_none() ? Argument{} : array(object, name, shape, types, use);
    }

    // Calls launch(T{}, ..) without Python's lock, T being float or bfloat16 as `type` says; reports what went wrong.
    // The dots are what csrc/kernels.h calls ON_STREAM: the stream, or on the CPU nothing.
    template <class Launch>
    void run(Type type, Launch&& launch) {
#if defined(PYDIFF_CPU)
        (void)type;
        const Unlocked unlocked;
        launch(float{});
#else
        {
            const Unlocked unlocked;
            if (type == Type::bfloat16)
                launch(bfloat16{}, stream());
            else
                launch(float{}, stream());
        }
        finish();
#endif
    }
    // The same for IN_WORKSPACE, with this many bytes: uninitialised, aligned to 256, kept until the stream is past
    // this.
    template <class Launch>
    void run_in(size_t bytes, Type type, Launch&& launch) {
#if defined(PYDIFF_CPU)
        (void)bytes;
        run(type, launch);
#else
        void* memory = workspace(bytes);
        run(type, [&](auto zero, cudaStream_t s) { launch(zero, memory, s); });
#endif
    }

private:
    // What there is to say about an array. Raises TypeError if it is none.
    static Found find(const pybind11::object& object, const char* name);
    // Where the kernel finds what a checked argument holds: in the argument's memory, or in a copy.
    void* admit(const Argument& argument, const char* name, Use use);
    void check_overlap(const Argument& argument, const char* name, bool written);
#if !defined(PYDIFF_CPU)
    void* workspace(size_t bytes);  // null for 0
    cudaStream_t stream() const;
    void finish();
#endif

    struct Range {
        const char* name;
        uintptr_t begin, end;  // addresses
        bool written;
    };
    std::vector<Range> ranges_;
    struct World;
    std::unique_ptr<World> world_;
};

void bind_kernels(pybind11::module_& m);  // kernels.cpp
// The same file's check of x (n, s, c) and groups, for cpu/bindings.cpp too. Raises ValueError.
GroupNormShape group_norm_shape(const Shape& x, int64_t groups, bool silu);

}  // namespace pydiff
