#include "copies.h"

#include <cstring>

#include "memory.h"

namespace pydiff::simt {
namespace {

void land(Copy& copy) {
    if (copy.landed) return;
    note_read(copy.source, copy.source_bytes);
    note_write(copy.destination, copy.bytes);
    if (copy.source_bytes) std::memcpy(copy.destination, copy.source, copy.source_bytes);
    std::memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    copy.landed = true;
}

}  // namespace

void copy_async(void* shared, const void* global, unsigned bytes, unsigned source_bytes, Site site) {
    Thread& me = running();
    if (bytes != 4 && bytes != 8 && bytes != 16)
        fault(site, "cp.async of " + std::to_string(bytes) + " bytes; it copies 4, 8 or 16");
    if (source_bytes > bytes) fault(site, "cp.async reads more bytes than it writes");
    check_aligned(shared, bytes, "cp.async to shared memory", site);
    if (source_bytes) check_aligned(global, bytes, "cp.async from global memory", site);
    if (!me.block->shared.contains(shared, bytes)) fault(site, "cp.async writes outside the block's shared arrays");
    std::memset(shared, poison, bytes);
    me.copies.push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes,
                         source_bytes, -1, site, false});
    ++counters.copies;
}

void commit_copies() {
    Thread& me = running();
    for (Copy& copy : me.copies)
        if (copy.group < 0) copy.group = me.groups;
    ++me.groups;
}

void wait_copies(int newest) {
    Thread& me = running();
    size_t kept = 0;
    for (Copy& copy : me.copies) {
        if (copy.group >= 0 && copy.group < me.groups - newest)
            land(copy);
        else
            me.copies[kept++] = copy;
    }
    me.copies.resize(kept);
}

void land_some_copies(Thread& thread) {
    if (thread.block->late_copies) return;
    for (Copy& copy : thread.copies)
        if (thread.block->order.below(2) == 1) land(copy);
}

void check_copies_done(Thread& thread) {
    if (!thread.copies.empty())
        fault(thread.copies.front().site, "missing wait: the thread ended, and this cp.async was " +
                                              std::string(thread.copies.front().group < 0
                                                              ? "never committed to a group"
                                                              : "covered by no cp.async.wait_group"));
}

}  // namespace pydiff::simt
