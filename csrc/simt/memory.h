// How a kernel reaches memory: shared arrays whose bounds are checked, aligned vectors, atomics.
//
// Sources: CUDA C++ Programming Guide, "Variable Memory Space Specifiers", "Atomic Functions", "Device Memory Accesses"
// (an access of 8 or 16 bytes needs an address aligned to its size).
#pragma once
#include <type_traits>

#include "block.h"

namespace pydiff::simt {

void check_aligned(const void* address, size_t alignment, const char* what, Site site);
void* shared_memory(size_t bytes, size_t alignment, const char* name, Site site);  // one array a declaration and block
void* dynamic_shared_memory();

// For the race build: the runtime itself is not instrumented, so it reports the accesses it makes for a thread.
void note_read(const void* address, size_t bytes);
void note_write(const void* address, size_t bytes);

[[noreturn]] void report_index(const char* name, long long index, size_t extent, Site declared);

// A shared array, or a row of one. Every index is compared with its extent, so a step over the end of a row is found
// although it stays inside the array. As a pointer it is not checked; the gaps around the array and the address build
// are for that.
template <class T>
class SharedArray;

template <class T, size_t extent>
class SharedArray<T[extent]> {
public:
    SharedArray(T* begin, const char* name, Site declared) : begin_(begin), name_(name), declared_(declared) {}

    template <class Index>
    decltype(auto) operator[](Index index) const {
        static_assert(std::is_integral_v<Index>, "a shared array is indexed by integers");
        const auto i = static_cast<long long>(index);
        if (i < 0 || i >= static_cast<long long>(extent)) report_index(name_, i, extent, declared_);
        if constexpr (std::is_array_v<T>)
            return SharedArray<T>(begin_[i], name_, declared_);
        else
            return static_cast<T&>(begin_[i]);
    }
    operator T*() const { return begin_; }

private:
    T* begin_;
    const char* name_;
    Site declared_;
};

template <class T>
SharedArray<T> make_shared_array(size_t alignment, const char* name, Site site = Site::here()) {
    using Row = std::remove_extent_t<T>;
    return {static_cast<Row*>(shared_memory(sizeof(T), alignment, name, site)), name, site};
}

enum class Atomic { add, max, compare_and_swap };
int atomic_int(Atomic operation, int* address, int value, int compare, Site site);
unsigned atomic_unsigned(Atomic operation, unsigned* address, unsigned value, unsigned compare, Site site);
float atomic_add_float(float* address, float value, Site site);

}  // namespace pydiff::simt

// ---- the names of CUDA -------------------------------------------------------------------------------------------

using SimtSite = pydiff::simt::Site;

template <class T>
T __ldg(const T* address, SimtSite site = SimtSite::here()) {
    pydiff::simt::check_aligned(address, alignof(T), "__ldg", site);
    return *address;
}

// Each returns the value before. They are counted (pydiff._simt.counters): sums of floats in an order that changes from
// run to run have no place in our kernels.
inline int atomicAdd(int* address, int value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_int(pydiff::simt::Atomic::add, address, value, 0, site);
}
inline unsigned atomicAdd(unsigned* address, unsigned value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_unsigned(pydiff::simt::Atomic::add, address, value, 0, site);
}
inline float atomicAdd(float* address, float value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_add_float(address, value, site);
}
inline int atomicMax(int* address, int value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_int(pydiff::simt::Atomic::max, address, value, 0, site);
}
inline unsigned atomicMax(unsigned* address, unsigned value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_unsigned(pydiff::simt::Atomic::max, address, value, 0, site);
}
inline int atomicCAS(int* address, int compare, int value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_int(pydiff::simt::Atomic::compare_and_swap, address, value, compare, site);
}
inline unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value, SimtSite site = SimtSite::here()) {
    return pydiff::simt::atomic_unsigned(pydiff::simt::Atomic::compare_and_swap, address, value, compare, site);
}
