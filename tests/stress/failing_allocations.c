// Loaded before the C library (LD_PRELOAD): of the allocations of at least `least` bytes, number `fail_at` finds no
// memory. failing_allocations.py sets both; 0 fails none.
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static atomic_long seen, at, refused;
static size_t smallest = (size_t)-1;

void fail_at(long number, size_t least) {
    seen = 0;
    refused = 0;
    at = number;
    smallest = least;
}
long allocations_seen(void) { return seen; }
long allocations_refused(void) { return refused; }

static int fails(size_t size) {
    if (size < smallest || ++seen != at) return 0;
    ++refused;
    errno = ENOMEM;
    return 1;
}

void* malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void* calloc(size_t n, size_t size) { return fails(n * size) ? NULL : __libc_calloc(n, size); }
void* realloc(void* p, size_t size) { return fails(size) ? NULL : __libc_realloc(p, size); }
void* memalign(size_t alignment, size_t size) { return fails(size) ? NULL : __libc_memalign(alignment, size); }
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** p, size_t alignment, size_t size) {
    *p = memalign(alignment, size);
    return *p ? 0 : ENOMEM;
}
void* mmap(void* where, size_t size, int access, int kind, int file, off_t offset) {
    if ((kind & MAP_ANONYMOUS) && !(kind & MAP_STACK) && fails(size)) return MAP_FAILED;
    return (void*)syscall(SYS_mmap, where, size, access, kind, file, offset);
}
