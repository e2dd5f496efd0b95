// An arena: memory for arrays that come and go in every step, kept for the next step instead of going back to the
// system, which would hand it out again page by page, filled with zeros. Chunks come from the system, blocks are cut
// from them:
//
//     chunk    | Chunk |  used  |    free    | used |  used  |            rest             |
//                      .        .
//     block            | Block  | the caller's memory, aligned to 64 bytes |
//
// take       takes the smallest free block that is large enough ("best fit") and splits off what is not needed. The rest,
//            the free block at the end of a chunk, is taken when nothing else fits: it may never have been touched, and
//            then it occupies no memory yet.
// give back  joins a block with its neighbours that are free, so that no two free blocks lie side by side. A block knows
//            its own size and its left neighbour ("boundary tags"), so neither is searched for.
//
// Knuth 1997, "The Art of Computer Programming", vol. 1, section 2.5: algorithm A with best fit, and boundary tags.
// Wilson et al. 1995, "Dynamic storage allocation: a survey and critical review": best fit wastes least in real programs.
// A training step frees most arrays in the reverse order in which it made them, so that neighbours meet again.
//
// Requests below `arena_least` go to malloc, which is good at them. Any thread may call any of this; a forked child has
// its own copy. array_memory.h is what makes NumPy use it.
#pragma once
#include <cstddef>

namespace pydiff {

constexpr size_t arena_least = 32 << 10;  // bytes

// As malloc, calloc, realloc and free: null if the system refuses; what arena_resize cannot resize stays as it was.
// Memory is aligned to 64 bytes, or to 16 below arena_least, and goes back to these functions only.
void* arena_allocate(size_t bytes);
void* arena_zeroed(size_t count, size_t size);
void* arena_resize(void* memory, size_t bytes);
void arena_free(void* memory);

// Returns to the system what no block uses: chunks that are free as a whole, and the huge pages within free blocks.
void arena_trim();

// Without what went to malloc.
struct ArenaCounters {
    size_t blocks;    // handed out
    size_t in_use;    // bytes of these, with their headers
    size_t peak;      // the most that in_use has been
    size_t touched;   // bytes of chunks up to the end of the farthest block since the last trim: what they occupy at most
    size_t reserved;  // bytes of chunks: addresses
    size_t chunks;
    size_t system_calls;  // so far, of pages.h; none in a step like the step before
};
ArenaCounters arena_counters();

// Visits every block: throws std::logic_error if one was lost or overlaps another. For tests.
void arena_check();

}  // namespace pydiff
