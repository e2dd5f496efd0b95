#include "memory.h"

#include <algorithm>

#if defined(PYDIFF_SIMT_RACE)
extern "C" void __tsan_read_range(void* address, unsigned long bytes);
extern "C" void __tsan_write_range(void* address, unsigned long bytes);
#endif

namespace pydiff::simt {
namespace {

// Blocks may run on several CPU threads, so these are atomics of the CPU. The value before is returned; a compare and
// swap that does not find `compare` leaves the memory alone.
template <class T>
T exchange(Atomic operation, T* address, T value, T compare, Site site) {
    running();
    check_aligned(address, sizeof(T), "an atomic", site);
    ++counters.atomics;
    T before = __atomic_load_n(address, __ATOMIC_SEQ_CST), after = value;
    do {
        if (operation == Atomic::compare_and_swap && before != compare) return before;
        switch (operation) {
            case Atomic::add: after = T(uint32_t(before) + uint32_t(value)); break;  // wraps around, as on the GPU
            case Atomic::max: after = std::max(before, value); break;
            case Atomic::compare_and_swap: break;
        }
    } while (!__atomic_compare_exchange_n(address, &before, after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return before;
}

}  // namespace

void check_aligned(const void* address, size_t alignment, const char* what, Site site) {
    const size_t over = reinterpret_cast<uintptr_t>(address) % alignment;
    if (over)
        fault(site, "misaligned access: " + std::string(what) + " of " + std::to_string(alignment) +
                        " bytes at an address " + std::to_string(over) + " bytes beyond a multiple of that");
}

void* shared_memory(size_t bytes, size_t alignment, const char* name, Site site) {
    Block& block = *running().block;
    if (unsigned char* array = block.shared.find(site, bytes)) return array;
    block.static_bytes += bytes;
    if (block.static_bytes > max_static_bytes)
        fault(site, std::to_string(block.static_bytes) + " bytes of static shared memory; a block has 49152");
    const size_t all = block.static_bytes + block.dynamic_bytes;
    if (all > max_shared_bytes)
        fault(site, std::to_string(all) + " bytes of shared memory; a block has 232448");
    return block.shared.allocate(bytes, alignment, name, site);
}

void* dynamic_shared_memory() { return running().block->dynamic; }

void report_index(const char* name, long long index, size_t extent, Site declared) {
    const Site last = running().block->last_barrier;
    fault(declared, "out of bounds: index " + std::to_string(index) + " of '" + name + "', declared here with " +
                        std::to_string(extent) + (last.line ? ", after the barrier at " + last.text() : ""));
}

int atomic_int(Atomic operation, int* address, int value, int compare, Site site) {
    return exchange(operation, address, value, compare, site);
}

unsigned atomic_unsigned(Atomic operation, unsigned* address, unsigned value, unsigned compare, Site site) {
    return exchange(operation, address, value, compare, site);
}

float atomic_add_float(float* address, float value, Site site) {
    running();
    check_aligned(address, sizeof(float), "an atomic", site);
    ++counters.atomics;
    auto* bits = reinterpret_cast<uint32_t*>(address);
    uint32_t before = __atomic_load_n(bits, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(bits, &before, __float_as_uint(__uint_as_float(before) + value), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return __uint_as_float(before);
}

#if defined(PYDIFF_SIMT_RACE)
void note_read(const void* address, size_t bytes) { __tsan_read_range(const_cast<void*>(address), bytes); }
void note_write(const void* address, size_t bytes) { __tsan_write_range(const_cast<void*>(address), bytes); }
#else
void note_read(const void*, size_t) {}
void note_write(const void*, size_t) {}
#endif

}  // namespace pydiff::simt
