#include "collectives.h"

namespace pydiff::simt {
namespace {

struct ShuffleOperand {
    Shuffle kind;
    int argument, width;
    uint64_t value, result;
};

// The lane that `lane` reads from; PTX ISA, shfl.sync, with a clamp of the segment's end (its start for up).
int source_lane(Shuffle kind, int lane, int argument, int width) {
    const int start = lane & ~(width - 1), end = start + width;
    int source = lane;
    switch (kind) {
        case Shuffle::index: return start | (argument & (width - 1));
        case Shuffle::up: source = lane - argument; break;
        case Shuffle::down: source = lane + argument; break;
        case Shuffle::exclusive_or: source = lane ^ argument; break;
    }
    const bool inside = kind == Shuffle::up ? source >= start : source < end;  // xor may reach an earlier segment
    return inside ? source : lane;
}

void exchange(void* const* operands, uint32_t lanes) {
    for (int lane = 0; lane < warp_size; ++lane) {
        if (!(lanes >> lane & 1)) continue;
        auto& mine = *static_cast<ShuffleOperand*>(operands[lane]);
        const int source = source_lane(mine.kind, lane, mine.argument, mine.width);
        const bool there = source >= 0 && source < warp_size && (lanes >> source & 1);
        mine.result = there ? static_cast<ShuffleOperand*>(operands[source])->value : ~uint64_t(0);
    }
}

struct Vote {
    bool predicate;
    uint32_t result;
};

void count_votes(void* const* operands, uint32_t lanes) {
    uint32_t yes = 0;
    for (int lane = 0; lane < warp_size; ++lane)
        if ((lanes >> lane & 1) && static_cast<Vote*>(operands[lane])->predicate) yes |= 1u << lane;
    for (int lane = 0; lane < warp_size; ++lane)
        if (lanes >> lane & 1) static_cast<Vote*>(operands[lane])->result = yes;
}

}  // namespace

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t bits, int argument, int width, Site site) {
    if (width < 1 || width > warp_size || (width & (width - 1)))
        fault(site, "a shuffle of width " + std::to_string(width) + "; it is a power of two up to 32");
    if (kind != Shuffle::index && (argument < 0 || argument >= warp_size))
        fault(site, "a shuffle by " + std::to_string(argument) + " lanes; 0 to 31 are possible");
    static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    ShuffleOperand operand{kind, argument, width, bits, 0};
    meet(names[int(kind)], mask, &operand, exchange, false, site);
    return operand.result;
}

uint32_t ballot(const char* name, uint32_t mask, bool predicate, Site site) {
    Vote vote{predicate, 0};
    meet(name, mask, &vote, count_votes, false, site);
    return vote.result;
}

void sync_warp(uint32_t mask, Site site) { meet("__syncwarp", mask, nullptr, nullptr, true, site); }

}  // namespace pydiff::simt
