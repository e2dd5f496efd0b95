"""Contenders in processes of their own, for whole models: each one's peak memory is then its own, and no library's
threads or allocator can meet another's. They take turns as in timing.py; all but one wait."""

import contextlib
import multiprocessing
import resource
import time
import traceback
from pathlib import Path

from benchmarks.contenders import set_threads
from benchmarks.timing import SHORT, repeat, settle


class ContenderFailed(RuntimeError):
    """Says what and where; `reason` is the error alone, on one line."""

    def __init__(self, message, reason):
        super().__init__(message)
        self.reason = reason


class Worker:
    """A process that holds one contender and does what it is told. ask(method, ..) calls a method of the contender."""

    def __init__(self, factory, threads):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, factory, threads), daemon=True)
        self.process.start()
        other.close()

    def ask(self, method, *arguments):
        """The method's result. ContenderFailed, with the other process's traceback, if it failed or died."""
        self.pipe.send((method, arguments))
        try:
            ok, result = self.pipe.recv()
        except EOFError:
            self.process.join()
            reason = f"its process ended with status {self.process.exitcode}"
            raise ContenderFailed(f"a contender failed in {method}: {reason}", reason) from None
        if not ok:
            raise ContenderFailed(f"a contender failed in {method}:\n{result[0]}", result[1])
        return result

    def repetition(self, _turn):
        """The Repetition of one call of the contender's step()."""
        return self.ask("repetition")

    def close(self):
        """Ends the process."""
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


@contextlib.contextmanager
def workers(factories, threads):
    """{name: Worker} for {name: factory}; factory() makes the contender there. The processes end with the block."""
    running = {}
    try:
        for name, factory in factories.items():
            running[name] = Worker(factory, threads)
        yield running
    finally:
        for worker in running.values():
            worker.close()


def _serve(pipe, factory, threads):
    """The other process: makes the contender, then answers until the pipe is closed."""
    contender = None
    while True:
        try:
            method, values = pipe.recv()
        except EOFError:
            return
        try:
            if contender is None:
                contender = factory()
                set_threads(threads)
            special = {"repetition": repetition, "peak_memory": peak_memory}.get(method)
            pipe.send((True, special(contender) if special else getattr(contender, method)(*values)))
        except Exception as error:
            pipe.send((False, (traceback.format_exc(), in_a_line(error))))


def in_a_line(error):
    """What an error says: its first paragraph, advice that may follow left out."""
    return " ".join([f"{type(error).__name__}:", *str(error).partition("\n\n")[0].split()])


def repetition(contender):
    """Times a step, or as many in a row as take a tenth of a second, after one that is not timed: in training and in
    sampling, too, a step follows a step. Then waits until no thread of this process looks for work, which would disturb
    the next contender."""
    start = time.perf_counter()
    contender.step()
    steps = max(1, round(SHORT / (time.perf_counter() - start)))
    result = repeat(lambda _: contender.step(), steps, warm_up=1 if steps > 1 else 0)
    settle()
    return result


def peak_memory(_contender):
    """MB of memory this process has held at most (resident set). Linux counts it anew after a process is started;
    getrusage, elsewhere, may include what the parent had used."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
