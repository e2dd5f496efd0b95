// Without Python's lock for as long as this object lives, so that other Python threads run meanwhile.
//
// Why not pybind11's gil_scoped_release: while the interpreter is being torn down, up to Python 3.13, whoever asks for
// the lock is ended by pthread_exit. That unwinds the thread's stack, which must not pass through a destructor, and so
// a daemon thread that was in a kernel would abort the process. Here such a thread sleeps until the process is gone, as
// it does from Python 3.14 on.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace pydiff {

// Taking the lock may unwind this frame, and only then is `returned` still false when it is left.
struct StayHere {
    bool returned = false;
    ~StayHere() {
        while (!returned) std::this_thread::sleep_for(std::chrono::hours(1));
    }
};

// A separate function: what unwinds reaches it before the destructor below, which it may not pass.
[[gnu::noinline]] inline void take_lock(PyThreadState* state) {
    StayHere stay;
    PyEval_RestoreThread(state);
    stay.returned = true;
}

class Unlocked {
public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() { take_lock(state_); }
    Unlocked(const Unlocked&) = delete;

private:
    PyThreadState* state_;
};

}  // namespace pydiff
