"""The processes that train together: one alone, or those that mpiexec or srun started, over MPI.

MPI is mpi4py's: it sends, and this file waits. It waits by asking again and again, politely, so that a signal is
heard, so that another process's error is heard, and so that one that does not answer is named after a while.
docs/distributed.md says how to use it.

Environment:

    PYDIFF_MPI_TIMEOUT   seconds after which a process that others wait for is given up (default 1800)
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
SHARDS = 8  # of a new run that several processes may share
ROLL_CALL = 10.0  # seconds in which a process has to say that it is there, or what its error is
BUSY = 100  # how often is asked without a pause, before the processor is left to others
ERROR, ASKED, HERE = 1, 2, 3  # tags of what is said besides
NOTHING = np.empty(0, np.uint8)


class Ended(SystemExit):
    """This process ends because another one did, which says why."""


def launched():
    """How many processes mpiexec or srun started; None without them."""
    for name in SIZES:
        if os.environ.get(name, "").isdigit():
            size = int(os.environ[name])
            return None if name.startswith("SLURM") and size == 1 else size
    return None


def join(mode="auto"):
    """The Group that this process belongs to.

    mode: "auto", "mpi" (an error where there is no MPI) or "off" (alone, whoever started it). ValueError or
    RuntimeError, in one sentence, where several processes were started that cannot find each other.
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
    """Whether this is rank 0, or alone, as far as the environment says."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit() and launched() is not None:
            return int(os.environ[name]) == 0
    return True


def _mpi(size):
    """mpi4py's MPI, once it has found the `size` processes that were started; it ends with the interpreter.

    RuntimeError where mpi4py has loaded the library of another MPI than that of the mpiexec in use.
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
        sys.stderr.write(  # for the library may end the process now, and nothing can be said after it
            f"pydiff: srun --mpi={told} starts {vendor} only where that was built for it; if it stops here, use "
            f"srun --mpi={kind}\n"
        )
    if not foreign and not MPI.Is_initialized():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mpi4py's page on what the sentence below says
            MPI.Init_thread(MPI.THREAD_FUNNELED)  # this thread alone speaks to MPI
    if foreign or size not in (None, MPI.COMM_WORLD.Get_size()):
        use = f"srun --mpi={kind}" if slurm and kind else f"the mpiexec of {vendor}"
        raise RuntimeError(
            f"mpi4py has loaded the library of {vendor}, and they were started by another MPI; use {use}, or set "
            "MPI4PY_LIBMPI to the path of the other's libmpi.so"
        )
    return MPI


def settled(options, out, group):
    """The options with the number of shards that the run in the folder `out` has, or that a new one shall have.

    ValueError, in one sentence, where the processes cannot share that.
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
    """One process alone. rank: its number. size: how many there are. shared: whether others may go on with what it
    trains, so that the batch is cut into shards. seconds, sent: time spent in communication, and bytes, so far.
    """

    rank, size, seconds, sent = 0, 1, 0.0, 0

    def __init__(self, shared=False):
        self.shared = shared

    @property
    def first(self):
        """Whether this is the one that logs, shows, draws and saves."""
        return self.rank == 0

    def described(self):
        """What a line on the training says of it."""
        return ""

    def everyone(self, value):
        """[what every process gave], in order of rank; all of them must ask."""
        return [value]

    def any(self, value):
        """Whether the value is true in one process at least."""
        return any(self.everyone(bool(value)))

    def agree(self, value):
        """Gives every process the value that rank 0 has."""
        return self.everyone(value)[0]

    def spread(self, arrays):
        """Writes rank 0's values into every process's NumPy arrays."""

    def compare(self, what):
        """ValueError, in one sentence, unless every process is about to do the same with the same arithmetic.

        what: {name: JSON}, which all must have alike, besides pydiff's version and the kernels.
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
        """Returns once done() is true, which is asked again and again."""
        while not done():
            raise RuntimeError("waiting for nobody")

    def listen(self):
        """Hears whether another process has ended: then so does this one."""

    @contextlib.contextmanager
    def clock(self):
        """What happens inside is communication: its seconds count."""
        yield

    @contextlib.contextmanager
    def together(self):
        """Inside, an error in one process ends all of them, and one of them says it."""
        yield

    @contextlib.contextmanager
    def own_processors(self, _device="cpu"):
        """Inside, the kernels use as many threads as this process has processors for itself, and the GPU that is its
        own.
        """
        yield


class Processes(Group):
    """Those of MPI.COMM_WORLD. mpi: the module mpi4py.MPI."""

    def __init__(self, mpi):
        super().__init__(shared=True)
        self.mpi = mpi
        self.data, self.control = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.data.Get_rank(), self.data.Get_size()
        self.timeout = _timeout()
        self.heard = {}  # rank -> the error it told of, "" for one that only ends
        self.asked_by, self.said = set(), []  # who called the roll; requests of what this one said besides
        self.looked, self.timing = 0.0, False

    def described(self):
        """What a line on the training says of it."""
        return f", {self.size} processes, {backend.threads()} threads in process 0"

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, done):
        """Returns once done() is true, which is asked again and again. Ends this process if another had an error."""
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
        """What happens inside is communication: its seconds count, once."""
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
        """Begins to send a NumPy array, which must stay as it is until `finished` returns the request."""
        self.sent += array.nbytes
        return self.data.Isend(array, rank, tag)

    def receive(self, array, rank, tag):
        """Begins to receive a NumPy array into this one."""
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
        """All processes' arrays added, in each of them, in the order that MPI chooses."""
        self.sent += 2 * array.nbytes * (self.size - 1) // self.size  # of a ring, at least
        self._finish(self.data.Iallreduce(self.mpi.IN_PLACE, array))

    def listen(self):
        """Hears, now and then, whether another process has ended: then so does this one."""
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
        """Begins to send a short message; MPI looks at the requests when it is asked for anything."""
        self.said += [self.control.Isend(data, rank, tag) for rank in ranks]

    def roll_call(self, waited):
        """Asks who is there. Those who do not answer are named, and all end."""
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
        if self.rank <= min(self.asked_by - missing, default=self.rank):  # one of those who ask says it
            names = ", ".join(map(str, sorted(missing)))
            print(
                f"\npydiff: process {names} of {self.size} has not answered for {waited:.0f} seconds; all are ended, "
                "and the same command goes on from the last checkpoint (PYDIFF_MPI_TIMEOUT sets the seconds)",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.5)  # for the one who says it
        self.mpi.COMM_WORLD.Abort(1)

    # ---- what everybody knows ----------------------------------------------------------------------------------------

    def everyone(self, value):
        """[what every process gave], in order of rank; all of them must ask. value: JSON, NaN included."""
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        self._finish(self.data.Iallgather(np.array([mine.size]), sizes))
        ends = np.cumsum(sizes)
        gathered = np.empty(ends[-1], np.uint8)
        starts = [0, *ends[:-1].tolist()]
        self._finish(self.data.Iallgatherv(mine, [gathered, sizes.tolist(), starts, self.mpi.BYTE]))
        return [json.loads(gathered[a:b].tobytes()) for a, b in zip(starts, ends, strict=True)]

    def spread(self, arrays):
        """Writes rank 0's values into every process's NumPy arrays."""
        for array in arrays:
            self._finish(self.data.Ibcast(array, 0))

    def _finish(self, request):
        self.wait(request.Test)

    # ---- ending together ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self):
        """Inside, an error in one process ends all of them, and one of them says it: the lowest rank that had one."""
        try:
            yield
            self.everyone(None)  # nobody leaves while another one may still fail
        except KeyboardInterrupt as stopped:
            agreed = hasattr(stopped, "step")  # Interrupted: all of them, after the same step
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
        """Tells the others that this process ends, and waits until they do, too. Nobody is waited for long."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._say(np.frombuffer(error.encode(), np.uint8), others, ERROR)
        until = time.monotonic() + ROLL_CALL
        while time.monotonic() < until and len(self.heard) < len(others):
            self._hear()
            time.sleep(0.005)
        if len(self.heard) < len(others):  # one computes, and does not listen: it cannot end by itself
            if error:
                print(f"\npydiff: {error}", file=sys.stderr, flush=True)
            self.mpi.COMM_WORLD.Abort(1)

    # ---- processors --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def own_processors(self, device="cpu"):
        """Inside, the kernels use as many threads as this process has processors for itself; PYDIFF_THREADS decides,
        where it is set. The processes of a host take its GPUs in turns.
        """
        hosts = self.everyone(_host())
        if device == "cuda":
            with backend.use_device(device) as cupy:
                beside = hosts[: self.rank].count(hosts[self.rank])
                cupy.cuda.Device(beside % cupy.cuda.runtime.getDeviceCount()).use()  # pyright: ignore[reportAttributeAccessIssue]
        if "PYDIFF_THREADS" in os.environ:
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
    """Threads for one process of several. places: (host, processors that it may run on) of every process."""
    host, mine = places[rank]
    users = [sum(h == host and cpu in theirs for h, theirs in places) for cpu in mine]
    return max(1, int(sum(1 / n for n in users) + 1e-9))


def place_of(cupy):
    """Which GPU of which host is in use."""
    device = cupy.cuda.Device()
    return f"{_host()} {device.pci_bus_id}"


def _differing(ours, theirs):
    """The two values, or what differs within them."""
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
