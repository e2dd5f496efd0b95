// Compiled and run by CMake before anything else. That it compiles shows that Python's headers are there and that the
// compiler knows C++17 and the vector extensions; what it writes is what should be built.
#include <Python.h>

#include <cstdio>

#include "levels.h"
#include "simd.h"

int main() {
    for (const std::string& level : pydiff::supported_levels()) std::printf("%s;", level.c_str());
}
