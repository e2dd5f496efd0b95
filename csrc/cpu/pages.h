// Memory straight from the system, in huge pages where it has them: a processor keeps the addresses of some thousand
// pages at hand, which of 4 KB each are a few megabytes, and a huge page is filled with zeros in one go.
#pragma once
#include <cstddef>

namespace pydiff {

constexpr size_t huge_page = 2 << 20;  // bytes: of x86-64, and of 64-bit ARM with ordinary pages of 4 KB

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// `size` bytes, zero, that begin at a multiple of a huge page; null if the system refuses. size: a multiple of huge_page.
void* map_pages(size_t size);
bool unmap_pages(void* memory, size_t size);  // false if the system refuses; all is then as it was

// Gives back the huge pages that lie within [begin, end): what they held is lost, new ones come when they are used.
void discard_pages(char* begin, char* end);

size_t system_calls();  // of the functions above, so far

}  // namespace pydiff
