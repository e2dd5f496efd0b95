// Memory with a gap before and behind every array. Everything starts as bytes of 0xFF, which is NaN in float32,
// bfloat16 and float64 and -1 in integers: what a kernel forgot to write is seen in its result.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "fault.h"

namespace pydiff::simt {

constexpr unsigned char poison = 0xFF;
constexpr unsigned char gap_byte = 0xDB;
constexpr size_t gap_bytes = 256;

class GuardedMemory {
public:
    // Room for `capacity` bytes in arrays and gaps. reset() forgets the arrays and poisons what they used.
    explicit GuardedMemory(size_t capacity);
    ~GuardedMemory();
    void reset();

    // `bytes` of poison, aligned to `alignment` (a power of two) and to nothing more, as the worst a GPU may do: code
    // that relies on luck for its 16-byte accesses has none here. Throws Fault when the capacity is used up.
    unsigned char* allocate(size_t bytes, size_t alignment, const char* name, Site site);
    // The array that was declared there, or null.
    unsigned char* find(Site site, size_t bytes) const;
    bool contains(const void* begin, size_t bytes) const;  // wholly inside one array
    // Empty when every gap is whole, otherwise which array was written past.
    std::string damage() const;

private:
    struct Array {
        unsigned char* begin;
        size_t bytes;
        std::string name;
        Site site;
    };
    size_t capacity_, used_ = 0;
    std::unique_ptr<unsigned char[]> memory_;
    std::vector<Array> arrays_;
};

}  // namespace pydiff::simt
