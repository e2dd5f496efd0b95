// cp.async: copies from global to shared memory that land some time between their issue and the wait that covers them.
//
// Here they land as late as allowed, at the wait (even seeds), or at a synchronisation point before it, drawn at random
// (odd seeds). From the issue on the destination is poison: a thread that reads it too early reads NaN.
//
// Source: PTX ISA, "Data Movement and Conversion Instructions: cp.async, cp.async.commit_group, cp.async.wait_group".
#pragma once
#include "block.h"

namespace pydiff::simt {

// `bytes` is 4, 8 or 16, both addresses aligned to it; the last bytes - source_bytes become zero and are not read.
void copy_async(void* shared, const void* global, unsigned bytes, unsigned source_bytes, Site site);
void commit_copies();
void wait_copies(int newest);  // all but the `newest` last committed groups of this thread have landed

}  // namespace pydiff::simt
