"""The processes that train together: one alone, or those that mpiexec or srun started, over MPI.

MPI comes from mpi4py: it sends, and this file waits. It waits by polling with pauses, so that signals and errors of
other processes are noticed, and so that a process that does not answer is named after a while.
docs/distributed.md says how to use it.

Environment:

    PYDIFF_MPI_TIMEOUT   seconds after which the others stop waiting for a process (default 1800)
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import warnings

import numpy as np

from pydiff import backend
from pydiff.store.folder import RunDirectory

MODES = ("auto", "mpi", "off")
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")  # Open MPI, MPICH, .., srun
SPEAKS = {"MPICH": ("PMI_SIZE", "pmi2"), "Open MPI": ("PMIX_RANK", "pmix")}  # what it reads, and the --mpi that sets it
TIMEOUT = 1800.0
SHARDS = 8  # of a new run, when several processes may share it
ROLL_CALL = 10.0  # seconds in which a process must answer that it is there, or report its error
BUSY = 100  # polls without a pause, before the processor is left to others
ERROR, ASKED, HERE = 1, 2, 3  # tags of control messages
NOTHING = np.empty(0, np.uint8)


class Ended(SystemExit):
    """This process ends because another one did, which reports the reason."""


def launched():
    """The number of processes that mpiexec or srun started; None without them."""
    for name in SIZES:
        if os.environ.get(name, "").isdigit():
            size = int(os.environ[name])
            return None if name.startswith("SLURM") and size == 1 else size
    return None


def join(mode="auto"):
    """The Group that this process belongs to.

    mode: "auto", "mpi" (an error without MPI) or "off" (alone, however it was started). Raises ValueError or
    RuntimeError if several processes were started that cannot find each other.
    """
    if mode not in MODES:
        raise ValueError(f"distributed must be one of {', '.join(MODES)}; got {mode!r}")
    size = launched()
    if mode == "off" or (mode == "auto" and size is None):
        return Group()
    try:
        return Processes(_mpi(size))
    except (ImportError, RuntimeError) as error:  # no mpi4py, no library that it could load, or not mpiexec's
        if mode == "auto" and size == 1:
            return Group(shared=True)
        if not is_first():
            raise Ended(1) from None
        install = "pip install 'pydiff[mpi]', or " if isinstance(error, ImportError) else ""
        raise RuntimeError(
            f"{size or 'these'} processes cannot train together: {str(error).splitlines()[0]}; {install}start one "
            "process, or pass distributed='off'"
        ) from None


def is_first():
    """Whether this process is rank 0 or alone, according to the environment."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit() and launched() is not None:
            return int(os.environ[name]) == 0
    return True


def _mpi(size):
    """mpi4py's MPI, once it has found the `size` processes that were started; it is finalised with the interpreter.

    Raises RuntimeError if mpi4py has loaded the library of another MPI than that of the mpiexec in use.
    """
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")  # MPICH's: ours says more
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:  # MPICH would end the process at once under Open MPI's mpiexec
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    vendor = MPI.get_vendor()[0]
    variable, kind = SPEAKS.get(vendor, ("", ""))
    foreign = "OMPI_COMM_WORLD_SIZE" in os.environ and vendor != "Open MPI"
    slurm = "SLURM_STEP_NUM_TASKS" in os.environ
    told = os.environ.get("SLURM_MPI_TYPE", "none")
    if slurm and told != "none" and kind and variable not in os.environ and is_first():
        sys.stderr.write(  # now, as the library may end the process
            f"pydiff: srun --mpi={told} starts {vendor} only where that was built for it; if it stops here, use "
            f"srun --mpi={kind}\n"
        )
    if not foreign and not MPI.Is_initialized():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mpi4py's long text on what the message below says
            MPI.Init_thread(MPI.THREAD_FUNNELED)  # only this thread calls MPI
    if foreign or size not in (None, MPI.COMM_WORLD.Get_size()):
        use = f"srun --mpi={kind}" if slurm and kind else f"the mpiexec of {vendor}"
        raise RuntimeError(
            f"mpi4py has loaded the library of {vendor}, and they were started by another MPI; use {use}, or set "
            "MPI4PY_LIBMPI to the path of the other's libmpi.so"
        )
    return MPI


def settled(options, out, group):
    """The options with the number of shards of the run in the folder `out`, or with that of a new run.

    Raises ValueError if the processes cannot share that many shards.
    """
    saved = group.agree(RunDirectory(out).saved_options() if out is not None and group.first else None)
    shards = options.shards
    if shards == 0:
        shards = saved.get("shards", 0) if saved else SHARDS * group.shared
    options = dataclasses.replace(options, shards=shards)
    parts = min(max(shards, 1), options.batch_size)
    if options.reduce == "exact" and parts < group.size:
        if options.batch_size < group.size:
            reason = f"a batch of {options.batch_size} cannot be shared by {group.size} processes; use a larger one"
        elif saved and parts == 1:
            reason = f"{out} holds a run in one piece, which {group.size} processes cannot share; start one process"
        else:
            reason = f"{group.size} processes cannot share {parts} shards; " + (
                f"start at most {parts}" if saved else f"pass shards={group.size} or more"
            )
        raise ValueError(reason)
    return options


class Group:
    """One process alone. rank: its number. size: the number of processes. shared: whether other processes may resume
    what it trains, so that the batch is cut into shards. seconds, sent: time spent and bytes sent in communication so
    far.
    """

    rank, size, seconds, sent = 0, 1, 0.0, 0

    def __init__(self, shared=False):
        self.shared = shared

    @property
    def first(self):
        """Whether this is the process that logs, shows, draws and saves."""
        return self.rank == 0

    def described(self):
        """A phrase on the processes for the line that announces the training."""
        return ""

    def everyone(self, value):
        """[the value of every process], in order of rank; all processes must call this."""
        return [value]

    def any(self, value):
        """Whether the value is true in at least one process."""
        return any(self.everyone(bool(value)))

    def agree(self, value):
        """Rank 0's value, in every process."""
        return self.everyone(value)[0]

    def spread(self, arrays):
        """Copies rank 0's values into every process's NumPy arrays."""

    def compare(self, what):
        """Raises ValueError unless all processes are about to do the same with the same arithmetic.

        what: {name: JSON}, which must be equal in all, like the version of pydiff and the kernels.
        """
        kernels = {name: value for name, value in backend.arithmetic().items() if self.size > 1}
        versions = {"pydiff": _version(), "NumPy": np.__version__}
        told = self.everyone(what | versions | kernels | {"host": _host()})
        for rank, other in enumerate(told):
            for name, value in told[0].items():
                if name != "host" and other.get(name) != value:
                    there = "" if other["host"] == told[0]["host"] else f" on {other['host']}"
                    how = _differing(value, other.get(name))
                    raise ValueError(f"process {rank}{there} has another {name} than process 0: {how}")

    def wait(self, done):
        """Polls done() until it returns true."""
        while not done():
            raise RuntimeError("waiting for nobody")

    def listen(self):
        """Checks whether another process has ended, and if so ends this one."""

    @contextlib.contextmanager
    def clock(self):
        """Inside, time counts as communication."""
        yield

    @contextlib.contextmanager
    def together(self):
        """Inside, an error in one process ends all of them, and one of them reports it."""
        yield

    @contextlib.contextmanager
    def own_processors(self, _device="cpu"):
        """Inside, the kernels use as many threads as this process has processors to itself, and its own GPU."""
        yield


class Processes(Group):
    """The processes of MPI.COMM_WORLD. mpi: the module mpi4py.MPI."""

    def __init__(self, mpi):
        super().__init__(shared=True)
        self.mpi = mpi
        self.data, self.control = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.data.Get_rank(), self.data.Get_size()
        self.timeout = _timeout()
        self.heard = {}  # rank -> the error it reported, "" if it just ends
        self.asked_by, self.said = set(), []  # who called the roll; requests of control messages
        self.looked, self.timing = 0.0, False

    def described(self):
        """A phrase on the processes for the line that announces the training."""
        return f", {self.size} processes, {backend.threads()} threads in process 0"

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, done):
        """Polls done() until it returns true. Ends this process if another one reports an error."""
        began = called = time.monotonic()
        asked = 0
        with self.clock():
            while not done():
                asked += 1
                self.listen()
                if time.monotonic() - called > self.timeout:
                    self.roll_call(time.monotonic() - began)
                    called = time.monotonic()
                time.sleep(0 if asked < BUSY else min(1e-3, 1e-5 * (asked - BUSY)))

    @contextlib.contextmanager
    def clock(self):
        """Inside, time counts as communication, once if nested."""
        if self.timing:
            yield
            return
        self.timing, began = True, time.monotonic()
        try:
            yield
        finally:
            self.timing = False
            self.seconds += time.monotonic() - began

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def send(self, array, rank, tag):
        """Starts to send a NumPy array, which must not change until `finished` returns the request."""
        self.sent += array.nbytes
        return self.data.Isend(array, rank, tag)

    def receive(self, array, rank, tag):
        """Starts to receive into a NumPy array."""
        return self.data.Irecv(array, rank, tag)

    def finished(self, entries):
        """(done, not yet done) of tuples that begin with a request."""
        if not entries:
            return [], entries
        done = self.mpi.Request.Testsome([entry[0] for entry in entries]) or ()
        if not done:
            return [], entries
        done = set(done)
        return [entries[i] for i in sorted(done)], [e for i, e in enumerate(entries) if i not in done]

    def add_up(self, array):
        """Sums the arrays of all processes in place, in the order that MPI chooses."""
        self.sent += 2 * array.nbytes * (self.size - 1) // self.size  # for a ring, the minimum
        self._finish(self.data.Iallreduce(self.mpi.IN_PLACE, array))

    def listen(self):
        """Checks, now and then, whether another process has ended, and if so ends this one."""
        if time.monotonic() - self.looked > 0.05:
            self._hear()
            self.looked = time.monotonic()
        if self.heard:
            raise Ended(1)

    def _hear(self):
        status = self.mpi.Status()
        while self.control.Iprobe(tag=ERROR, status=status):
            text = np.empty(status.Get_count(self.mpi.BYTE), np.uint8)
            self.control.Recv(text, status.source, ERROR)
            self.heard[status.source] = text.tobytes().decode()
        while self.control.Iprobe(tag=ASKED, status=status):
            self.control.Recv(NOTHING, status.source, ASKED)
            self.asked_by.add(status.source)
            self._say(NOTHING, [status.source], HERE)

    def _say(self, data, ranks, tag):
        """Starts to send a short message; MPI progresses the requests in later calls."""
        self.said += [self.control.Isend(data, rank, tag) for rank in ranks]

    def roll_call(self, waited):
        """Asks all processes to answer. Those that do not are named, and all end."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._say(NOTHING, others, ASKED)
        missing, until = set(others), time.monotonic() + ROLL_CALL
        while time.monotonic() < until and missing:
            self.listen()
            for rank in sorted(missing):
                if self.control.Iprobe(source=rank, tag=HERE):
                    self.control.Recv(NOTHING, rank, HERE)
                    missing.discard(rank)
            time.sleep(0.01)
        if not missing:
            return
        if self.rank <= min(self.asked_by - missing, default=self.rank):  # only one of those that ask reports it
            names = ", ".join(map(str, sorted(missing)))
            print(
                f"\npydiff: process {names} of {self.size} has not answered for {waited:.0f} seconds; all are ended, "
                "and the same command goes on from the last checkpoint (PYDIFF_MPI_TIMEOUT sets the seconds)",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.5)  # lets that one finish
        self.mpi.COMM_WORLD.Abort(1)

    # ---- shared values -----------------------------------------------------------------------------------------------

    def everyone(self, value):
        """[the value of every process], in order of rank; all processes must call this. value: JSON, or NaN."""
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        self._finish(self.data.Iallgather(np.array([mine.size]), sizes))
        ends = np.cumsum(sizes)
        gathered = np.empty(ends[-1], np.uint8)
        starts = [0, *ends[:-1].tolist()]
        self._finish(self.data.Iallgatherv(mine, [gathered, sizes.tolist(), starts, self.mpi.BYTE]))
        return [json.loads(gathered[a:b].tobytes()) for a, b in zip(starts, ends, strict=True)]

    def spread(self, arrays):
        """Copies rank 0's values into every process's NumPy arrays."""
        for array in arrays:
            self._finish(self.data.Ibcast(array, 0))

    def _finish(self, request):
        self.wait(request.Test)

    # ---- ending together ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self):
        """Inside, an error in one process ends all of them, and the lowest rank that had one reports it."""
        try:
            yield
            self.everyone(None)  # no process leaves while another may still fail
        except KeyboardInterrupt as stopped:
            agreed = hasattr(stopped, "step")  # Interrupted: all stop after the same step
            if not agreed:
                self._tell("it was interrupted")
            raise
        except Ended:
            self._tell("")
            raise
        except Exception as error:
            self._tell(str(error) or type(error).__name__)
            if any(text and rank < self.rank for rank, text in self.heard.items()):
                raise Ended(1) from None
            raise

    def _tell(self, error):
        """Tells the others that this process ends, and waits, for a limited time, until they do too."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._say(np.frombuffer(error.encode(), np.uint8), others, ERROR)
        until = time.monotonic() + ROLL_CALL
        while time.monotonic() < until and len(self.heard) < len(others):
            self._hear()
            time.sleep(0.005)
        if len(self.heard) < len(others):  # one is computing and does not listen, so it must be ended
            if error:
                print(f"\npydiff: {error}", file=sys.stderr, flush=True)
            self.mpi.COMM_WORLD.Abort(1)

    # ---- processors --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def own_processors(self, device="cpu"):
        """Inside, the kernels use as many threads as this process has processors to itself, or PYDIFF_THREADS if that
        is set. The processes of a host take its GPUs in turn.
        """
        hosts = self.everyone(_host())
        if device == "cuda":
            with backend.use_device(device) as cupy:
                beside = hosts[: self.rank].count(hosts[self.rank])
                cupy.cuda.Device(beside % cupy.cuda.runtime.getDeviceCount()).use()  # pyright: ignore[reportAttributeAccessIssue]
        if os.environ.get("PYDIFF_THREADS"):
            yield
            return
        before = backend.threads()
        allowed = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        )
        backend.set_threads(share_of(self.rank, self.everyone((_host(), allowed))))
        try:
            yield
        finally:
            backend.set_threads(before)


def share_of(rank, places):
    """The number of threads for one process of several. places: (host, processors it may run on) of every process."""
    host, mine = places[rank]
    users = [sum(h == host and cpu in theirs for h, theirs in places) for cpu in mine]
    return max(1, int(sum(1 / n for n in users) + 1e-9))


def place_of(cupy):
    """A string that identifies the GPU in use and its host."""
    device = cupy.cuda.Device()
    return f"{_host()} {device.pci_bus_id}"


def _differing(ours, theirs):
    """A phrase on the two values, or on what differs within them."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        return "; ".join(f"{name} {theirs.get(name)!s:.80}, not {ours.get(name)!s:.80}" for name in names)
    return f"{theirs!s:.80}, not {ours!s:.80}"


def _version():
    import pydiff

    return pydiff.__version__


def _host():
    import socket

    return socket.gethostname()


def _timeout():
    text = os.environ.get("PYDIFF_MPI_TIMEOUT") or str(TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"PYDIFF_MPI_TIMEOUT must be a number of seconds, got {text!r}")
    return seconds
