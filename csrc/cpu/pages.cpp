#include "pages.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>

namespace pydiff {
namespace {

std::atomic<size_t> calls{0};

bool unmap(void* memory, size_t size) {
    ++calls;
    return munmap(memory, size) == 0;
}

}  // namespace

// A mapping begins at a multiple of an ordinary page: so one with room to spare is made, and cut at both ends.
void* map_pages(size_t size) {
    ++calls;
    void* found = mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    const size_t before = (huge_page - reinterpret_cast<uintptr_t>(found) % huge_page) % huge_page;
    char* memory = static_cast<char*>(found) + before;
    if (before > 0) unmap(found, before);
    unmap(memory + size, huge_page - before);
#ifdef MADV_HUGEPAGE
    ++calls;
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return memory;
}

bool unmap_pages(void* memory, size_t size) { return unmap(memory, size); }

void discard_pages(char* begin, char* end) {
    const uintptr_t from = round_up(reinterpret_cast<uintptr_t>(begin), huge_page);
    const uintptr_t to = reinterpret_cast<uintptr_t>(end) / huge_page * huge_page;
    if (from >= to) return;
    ++calls;
    madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

size_t system_calls() { return calls; }

}  // namespace pydiff
