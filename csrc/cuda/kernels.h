// The kernels of csrc/kernels.h, as launchers for CUDA: for float and bfloat16, on a stream.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../simt/device.h"

#define ON_STREAM , cudaStream_t stream
#define IN_WORKSPACE , void *workspace, cudaStream_t stream
#define WORKSPACE(name, ...) size_t name(__VA_ARGS__)

namespace pydiff {

using bfloat16 = __nv_bfloat16;

// While true, launchers use the naive kernel of their file: the equation itself, to compare the fast one with.
inline bool use_naive = false;

}  // namespace pydiff

#include "../kernels.h"

#undef ON_STREAM
#undef IN_WORKSPACE
#undef WORKSPACE
