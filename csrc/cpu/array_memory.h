// Lets NumPy take the memory of its arrays from the arena. NumPy has such a hook: Picus 2021, NEP 49, "Data allocation
// strategies", https://numpy.org/neps/nep-0049.html. What allocates is a property of the context (contextvars): of this
// thread and, in asyncio, of this task. An array remembers who allocated it, and frees its memory there, whenever that is.
#pragma once
#include <pybind11/pybind11.h>

namespace pydiff {

// Adds to the module:
//     Arena            a context manager: inside, arrays come from the arena
//     arena_counters   -> dict, see arena.h
//     arena_trim, arena_check
void bind_array_memory(pybind11::module_& m);

}  // namespace pydiff
