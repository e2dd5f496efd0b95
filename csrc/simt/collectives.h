// What the lanes of a warp do together: barriers, votes, and the exchange of registers.
//
// Sources: CUDA C++ Programming Guide, "Warp Vote Functions", "Warp Shuffle Functions"; PTX ISA, "shfl.sync",
// "vote.sync". A value read from a lane that does not take part is undefined there; here it is poison (NaN).
#pragma once
#include "block.h"

namespace pydiff::simt {

enum class Shuffle { index, up, down, exclusive_or };
// `bits` of the lane chosen by `argument` (lane, distance or mask) in the caller's segment of `width` lanes.
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t bits, int argument, int width, Site site);
uint32_t ballot(const char* name, uint32_t mask, bool predicate, Site site);  // bit i: lane i takes part and says yes
void sync_warp(uint32_t mask, Site site);

template <class T>
T shuffle_as(Shuffle kind, uint32_t mask, T value, int argument, int width, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "a shuffle moves 2, 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shuffle(kind, mask, bits, argument, width, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace pydiff::simt

// ---- the names of CUDA -------------------------------------------------------------------------------------------

inline void __syncthreads(pydiff::simt::Site site = pydiff::simt::Site::here()) { pydiff::simt::barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, pydiff::simt::Site site = pydiff::simt::Site::here()) {
    pydiff::simt::sync_warp(mask, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::shuffle_as(pydiff::simt::Shuffle::index, mask, value, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::shuffle_as(pydiff::simt::Shuffle::up, mask, value, int(distance), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::shuffle_as(pydiff::simt::Shuffle::down, mask, value, int(distance), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::shuffle_as(pydiff::simt::Shuffle::exclusive_or, mask, value, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, pydiff::simt::Site site = pydiff::simt::Site::here()) {
    return pydiff::simt::ballot("__all_sync", mask, predicate == 0, site) == 0;  // no thread says no
}
