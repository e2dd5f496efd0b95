// The kernels of csrc/kernels.h, as the CPU has them: for float, with threads and scratch memory from parallel.h.
#pragma once
#include <cstddef>
#include <cstdint>

#define ON_STREAM
#define IN_WORKSPACE
#define WORKSPACE(name, ...) inline size_t name(__VA_ARGS__) { return 0; }

namespace pydiff {
struct bfloat16;  // what only GPUs have
}

#include "../kernels.h"

#undef ON_STREAM
#undef IN_WORKSPACE
#undef WORKSPACE
