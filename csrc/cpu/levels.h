// Which instruction sets this processor has. The baseline module says so to pydiff/compiled.py, and at installation
// levels.cpp says it to CMake.
#pragma once
#include <string>
#include <vector>

namespace pydiff {

// Best first; the names are those of the modules that pydiff/compiled.py may load.
inline std::vector<std::string> supported_levels() {
    std::vector<std::string> levels;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        levels.push_back("avx512");
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) levels.push_back("avx2");
#endif
    levels.push_back("baseline");
    return levels;
}

}  // namespace pydiff
