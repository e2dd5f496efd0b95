#include "guarded.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#endif

#if defined(PYDIFF_SIMT_RACE)
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#else
#define AnnotateIgnoreWritesBegin(file, line) ((void)0)
#define AnnotateIgnoreWritesEnd(file, line) ((void)0)
#endif

namespace pydiff::simt {

GuardedMemory::GuardedMemory(size_t capacity) : capacity_(capacity), memory_(new unsigned char[capacity]) {
    used_ = capacity;
    reset();
}

GuardedMemory::~GuardedMemory() { ASAN_UNPOISON_MEMORY_REGION(memory_.get(), capacity_); }

void GuardedMemory::reset() {
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), capacity_);
    std::memset(memory_.get(), gap_byte, used_);
    ASAN_POISON_MEMORY_REGION(memory_.get(), capacity_);
    used_ = 0;
    arrays_.clear();
}

unsigned char* GuardedMemory::allocate(size_t bytes, size_t alignment, const char* name, Site site) {
    const size_t need = used_ + gap_bytes + 2 * alignment + bytes + gap_bytes;
    if (need > capacity_) fault(site, std::string("no room for '") + name + "', " + std::to_string(bytes) + " bytes");
    const auto base = reinterpret_cast<uintptr_t>(memory_.get());
    uintptr_t begin = (base + used_ + gap_bytes + alignment - 1) & ~uintptr_t(alignment - 1);
    if (begin % (2 * alignment) == 0) begin += alignment;  // aligned to `alignment`, and to nothing more
    auto* array = reinterpret_cast<unsigned char*>(begin);
    ASAN_UNPOISON_MEMORY_REGION(array, bytes);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);  // the first thread to name an array does not race with the others
    std::memset(array, poison, bytes);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    arrays_.push_back({array, bytes, name, site});
    used_ = begin - base + bytes + gap_bytes;
    return array;
}

unsigned char* GuardedMemory::find(Site site, size_t bytes) const {
    for (const Array& array : arrays_)
        if (array.bytes == bytes && array.site == site) return array.begin;
    return nullptr;
}

bool GuardedMemory::contains(const void* begin, size_t bytes) const {
    const auto* first = static_cast<const unsigned char*>(begin);
    return std::any_of(arrays_.begin(), arrays_.end(), [&](const Array& array) {
        return first >= array.begin && first + bytes <= array.begin + array.bytes;
    });
}

std::string GuardedMemory::damage() const {
#if !defined(__SANITIZE_ADDRESS__)  // there the gaps may not be read, and a write into one has already been reported
    for (const Array& array : arrays_) {
        const unsigned char* end = array.begin + array.bytes;
        for (size_t i = 0; i < gap_bytes; ++i) {
            const bool behind = end[i] != gap_byte;
            if (!behind && array.begin[-1 - ptrdiff_t(i)] == gap_byte) continue;
            return "a write " + std::to_string(behind ? i : i + 1) + " bytes " +
                   (behind ? "behind the end" : "before the start") + " of '" + array.name + "' (" +
                   array.site.text() + ", " + std::to_string(array.bytes) + " bytes)";
        }
    }
#endif
    return "";
}

}  // namespace pydiff::simt
