// The arena of arena.h: blocks and their lists, then chunks, then what the caller sees.
#include "arena.h"

#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>

#include "pages.h"

namespace pydiff {
namespace {

constexpr size_t line = 64;               // blocks begin and end at multiples of this
constexpr size_t least_free = 4 << 10;    // less is not split off
constexpr size_t chunk_size = 256 << 20;  // or more, for a block that needs more
constexpr size_t most = std::numeric_limits<size_t>::max() / 4;  // bytes of a block, so that no sum overflows

// The header right before the caller's memory, which says where it is from. Odd numbers, to detect anything else.
enum class Mark : uint64_t { none = 0, block = 0x9e3779b97f4a7c15, malloc = 0xc2b2ae3d27d4eb4f };

struct Block;

struct alignas(line) Chunk {
    size_t size;
    size_t touched;  // bytes up to the end of the farthest block that was handed out
    Block* last;
    Chunk* next;

    char* begin() { return reinterpret_cast<char*>(this); }
    Block* first() { return reinterpret_cast<Block*>(begin() + line); }
};

struct alignas(line) Block {
    Chunk* chunk;
    size_t size;             // with this header
    Block* left;             // neighbour; null for the first of a chunk
    Block *previous, *next;  // in its list: of the free blocks that are not the rest of a chunk
    bool free;
    char unused[15];
    Mark mark;  // last, so that it is right before the memory

    char* begin() { return reinterpret_cast<char*>(this); }
    char* memory() { return begin() + line; }
    char* end() { return begin() + size; }
    Block* right() { return this == chunk->last ? nullptr : reinterpret_cast<Block*>(end()); }
    bool rest() { return this == chunk->last && free; }
};
static_assert(sizeof(Chunk) == line && sizeof(Block) == line, "a header is a line");

// Before memory from malloc.
struct alignas(16) Small {
    size_t bytes;
    Mark mark;
};
static_assert(sizeof(Small) == 16, "malloc aligns to 16 bytes, and so must this");

Block* block_of(void* memory) { return reinterpret_cast<Block*>(static_cast<char*>(memory) - sizeof(Block)); }
Small* small_of(void* memory) { return reinterpret_cast<Small*>(static_cast<char*>(memory) - sizeof(Small)); }

bool in_block(void* memory) {
    Mark mark;
    std::memcpy(&mark, static_cast<char*>(memory) - sizeof mark, sizeof mark);
    if (mark == Mark::block || mark == Mark::malloc) return mark == Mark::block;
    std::fputs("pydiff: the memory of an array was freed twice, or something wrote in front of it\n", stderr);
    std::abort();
}

class Arena {
public:
    std::mutex mutex;  // held while anything below runs

    // A block of this size or a little more; null if the system refuses.
    Block* take(size_t size) {
        Block* b = best_fit(size);
        if (!b) b = rest(size);
        if (!b) b = new_chunk(size);
        if (!b) return nullptr;
        unlist(b);
        b->free = false;
        b->mark = Mark::block;
        ++blocks_;
        cut_and_count(b, size);
        return b;
    }

    void give_back(Block* b) {
        b->mark = Mark::none;
        --blocks_;
        in_use_ -= b->size;
        join(b);
    }

    // Makes a block longer or shorter where it is; false if it has not got the room.
    bool resize(Block* b, size_t size) {
        Block* right = b->right();
        const bool larger = right && right->free && b->size + right->size >= size;
        if (b->size < size && !larger) return false;
        in_use_ -= b->size;
        if (b->size < size) {
            unlist(right);
            absorb(b, right);
        }
        cut_and_count(b, size);
        return true;
    }

    void trim() {
        for (Chunk** at = &chunks_; *at;) {
            Chunk* chunk = *at;
            Chunk* next = chunk->next;
            if (chunk->first()->rest() && unmap_pages(chunk, chunk->size)) {
                *at = next;
                continue;
            }
            for (Block* b = chunk->first(); b; b = b->right())
                if (b->free) discard_pages(b->memory(), b->end());
            if (chunk->last->free) chunk->touched = static_cast<size_t>(chunk->last->begin() - chunk->begin());
            at = &chunk->next;
        }
    }

    ArenaCounters counters() const {
        ArenaCounters c{blocks_, in_use_, peak_, 0, 0, 0, system_calls()};
        for (const Chunk* chunk = chunks_; chunk; chunk = chunk->next) {
            c.touched += chunk->touched;
            c.reserved += chunk->size;
            ++c.chunks;
        }
        return c;
    }

    void check() const {
        const auto require = [](bool holds, const char* otherwise) {
            if (!holds) throw std::logic_error(otherwise);
        };
        size_t blocks = 0, in_use = 0, unlisted = 0;
        for (Chunk* chunk = chunks_; chunk; chunk = chunk->next) {
            Block* left = nullptr;
            for (Block* b = chunk->first(); b; left = b, b = b->right()) {
                require(b->chunk == chunk && b->left == left, "a block does not know its neighbours");
                require(b->size > line && b->size % line == 0, "a block has an impossible size");
                require(b->free == (b->mark == Mark::none), "a block has a wrong mark");
                require(!(b->free && left && left->free), "two free blocks lie side by side");
                if (b->free && !b->rest()) ++unlisted;
                if (b->free) continue;
                ++blocks;
                in_use += b->size;
                require(static_cast<size_t>(b->end() - chunk->begin()) <= chunk->touched, "a block lies too far out");
            }
            require(left == chunk->last && left->end() == chunk->begin() + chunk->size, "blocks do not fill a chunk");
        }
        for (int k = 0; k < bins; ++k)
            for (Block *b = lists_[k], *previous = nullptr; b; previous = b, b = b->next, --unlisted)
                require(b->free && bin(b->size) == k && b->previous == previous, "a block is in a wrong list");
        require(unlisted == 0, "a free block is in no list");
        require(blocks == blocks_ && in_use == in_use_ && in_use <= peak_, "the counters are wrong");
    }

private:
    // ---- lists of free blocks, one for all sizes with the same highest bit; the rests of chunks are in none

    static constexpr int bins = 64;
    static int bin(size_t size) { return 63 - __builtin_clzll(size); }

    void list(Block* b) {
        Block*& head = lists_[bin(b->size)];
        b->previous = nullptr;
        b->next = head;
        if (head) head->previous = b;
        head = b;
    }
    void unlist(Block* b) {
        if (b->rest()) return;
        (b->previous ? b->previous->next : lists_[bin(b->size)]) = b->next;
        if (b->next) b->next->previous = b->previous;
    }

    // The smallest that is large enough; of several the one at the lowest address, so that the high ones stay together.
    Block* best_fit(size_t size) const {
        for (int k = bin(size); k < bins; ++k) {
            Block* best = nullptr;
            for (Block* b = lists_[k]; b; b = b->next)
                if (b->size >= size && (!best || b->size < best->size || (b->size == best->size && b < best))) best = b;
            if (best) return best;
        }
        return nullptr;
    }
    Block* rest(size_t size) const {
        Block* best = nullptr;
        for (Chunk* chunk = chunks_; chunk; chunk = chunk->next)
            if (chunk->last->rest() && chunk->last->size >= size && (!best || chunk->last->size < best->size))
                best = chunk->last;
        return best;
    }

    // ---- blocks

    // Shortens a block that is handed out; what it does not need becomes free.
    void cut_and_count(Block* b, size_t size) {
        Chunk* chunk = b->chunk;
        if (b->size - size >= least_free) {
            Block* right = b->right();
            Block* cut = new (b->begin() + size) Block{chunk, b->size - size, b, nullptr, nullptr, false, {}, Mark::none};
            (right ? right->left : chunk->last) = cut;
            b->size = size;
            join(cut);
        }
        in_use_ += b->size;
        peak_ = std::max(peak_, in_use_);
        chunk->touched = std::max(chunk->touched, static_cast<size_t>(b->end() - chunk->begin()));
    }

    // Makes one block of two neighbours that are in no list.
    void absorb(Block* b, Block* right) {
        Block* next = right->right();
        b->size += right->size;
        (next ? next->left : b->chunk->last) = b;
    }

    // Frees a block, together with its neighbours if they are free.
    void join(Block* b) {
        if (Block* right = b->right(); right && right->free) {
            unlist(right);
            absorb(b, right);
        }
        if (Block* left = b->left; left && left->free) {
            unlist(left);
            absorb(left, b);
            b = left;
        }
        b->free = true;
        if (!b->rest()) list(b);
    }

    // ---- chunks

    // The free block of a new chunk. If the system refuses, a smaller one is requested, and then once more without what
    // is free.
    Block* new_chunk(size_t block) {
        const size_t least = round_up(line + block, huge_page), usual = std::max(least, chunk_size);
        size_t size = usual;
        void* memory = map_pages(size);
        if (!memory && usual > least) memory = map_pages(size = least);
        if (!memory) {
            trim();
            memory = map_pages(size);
        }
        if (!memory) return nullptr;
        Chunk* chunk = new (memory) Chunk{size, line, nullptr, nullptr};
        chunk->last = new (chunk->first()) Block{chunk, size - line, nullptr, nullptr, nullptr, true, {}, Mark::none};
        Chunk** at = &chunks_;
        while (*at) at = &(*at)->next;
        return (*at = chunk)->last;
    }

    Chunk* chunks_ = nullptr;  // the oldest first
    Block* lists_[bins] = {};
    size_t blocks_ = 0, in_use_ = 0, peak_ = 0;
};

// Never destroyed: arrays may be freed while the process exits.
Arena& arena() {
    static Arena* const the = [] {
        // A fork waits until no thread is in the arena, so that the child's copy is whole.
        const auto unlock = [] { arena().mutex.unlock(); };
        pthread_atfork([] { arena().mutex.lock(); }, unlock, unlock);
        return new Arena;
    }();
    return *the;
}

std::unique_lock<std::mutex> locked() { return std::unique_lock<std::mutex>(arena().mutex); }

size_t block_size(size_t bytes) { return line + round_up(bytes, line); }

}  // namespace

void* arena_allocate(size_t bytes) {
    if (bytes > most) return nullptr;
    if (bytes < arena_least) {
        void* found = std::malloc(sizeof(Small) + bytes);
        return found ? new (found) Small{bytes, Mark::malloc} + 1 : nullptr;
    }
    const auto lock = locked();
    Block* b = arena().take(block_size(bytes));
    return b ? b->memory() : nullptr;
}

void* arena_zeroed(size_t count, size_t size) {
    if (size > 0 && count > most / size) return nullptr;
    void* memory = arena_allocate(count * size);
    return memory ? std::memset(memory, 0, count * size) : nullptr;
}

void* arena_resize(void* memory, size_t bytes) {
    if (!memory) return arena_allocate(bytes);
    if (bytes > most) return nullptr;
    size_t held;
    if (in_block(memory)) {
        const auto lock = locked();
        Block* b = block_of(memory);
        if (bytes >= arena_least && arena().resize(b, block_size(bytes))) return memory;
        held = b->size - line;
    } else {
        held = small_of(memory)->bytes;
    }
    void* moved = arena_allocate(bytes);
    if (!moved) return nullptr;
    std::memcpy(moved, memory, std::min(held, bytes));
    arena_free(memory);
    return moved;
}

void arena_free(void* memory) {
    if (!memory) return;
    if (in_block(memory)) {
        const auto lock = locked();
        arena().give_back(block_of(memory));
    } else {
        std::free(small_of(memory));
    }
}

void arena_trim() {
    const auto lock = locked();
    arena().trim();
}

ArenaCounters arena_counters() {
    const auto lock = locked();
    return arena().counters();
}

void arena_check() {
    const auto lock = locked();
    arena().check();
}

}  // namespace pydiff
