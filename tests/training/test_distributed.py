"""Several processes over MPI: the same bits on any number of them, one sentence where something is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pydiff
from pydiff.store import checkpoint
from pydiff.store.log import Log
from pydiff.training import distributed, join
from tests.training import mpi_worker

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def usable():
    """Whether mpiexec and mpi4py are here and belong together."""
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        return False
    if MPIEXEC is None:
        return False
    ask = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())"
    said = subprocess.run([MPIEXEC, "-n", "2", sys.executable, "-c", ask], capture_output=True, text=True)
    return said.stdout.count("2") == 2


needs_mpi = pytest.mark.skipif(not usable(), reason="needs mpi4py and the mpiexec that belongs to it")


def mpiexec(n, *arguments, starter=(MPIEXEC,), **environment):
    """(exit status, stdout, stderr) of n processes of mpi_worker."""
    command = [*starter, "-n", str(n), sys.executable, "-W", "ignore", "-m", "tests.training.mpi_worker", *arguments]
    settings = os.environ | {"PYDIFF_THREADS": "1", "PYDIFF_MPI_TIMEOUT": "100"} | environment
    done = subprocess.run(map(str, command), cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@needs_mpi
@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(n, alone):
    status, said, error = mpiexec(n, "bits")
    assert status == 0, error
    assert json.loads(said) == alone


DEBIANS = {  # starter -> its library, as Debian has them
    "mpiexec.openmpi": "libmpi.so.40",
    "mpiexec.mpich": "libmpich.so.12",
}


@needs_mpi
@pytest.mark.parametrize("name", DEBIANS)
def test_the_mpi_of_the_system_gives_the_same_bits(name, alone, tmp_path):
    library = next(Path("/usr/lib").glob(f"*/{DEBIANS[name]}"), None)
    starter = shutil.which(name)
    if starter is None or library is None:
        pytest.skip(f"{name} of Debian is not installed")
    (tmp_path / "libmpi.so.12").symlink_to(library)  # mpi4py knows MPICH's by this name alone
    found = tmp_path / "libmpi.so.12" if "mpich" in name else library
    more = ["--allow-run-as-root", "--oversubscribe"] if "openmpi" in name else []
    where = {"MPI4PY_LIBMPI": str(found), "LD_LIBRARY_PATH": str(tmp_path)}
    status, said, error = mpiexec(2, "bits", starter=(starter, *more), **where)
    assert status == 0, error
    assert json.loads(said) == alone


def slurm_answers():
    """Whether jobs can be given to Slurm from here."""
    if shutil.which("srun") is None:
        return False
    asked = subprocess.run(["srun", "--immediate=5", "-n", "2", "true"], capture_output=True, timeout=60)
    return asked.returncode == 0


@needs_mpi
def test_slurm_gives_the_same_bits(alone):
    """Where there is a cluster; docs/distributed.md says how this machine becomes one of a single node."""
    if not slurm_answers():
        pytest.skip("no Slurm answers")
    for n in (2, 3):
        status, said, error = mpiexec(n, "bits", starter=("srun", "--mpi=pmi2"))
        assert status == 0, error
        assert json.loads(said) == alone
    status, said, error = mpiexec(3, "bits", starter=("srun", "--mpi=none"))
    assert status != 0
    assert said == ""
    assert "3 processes cannot train together" in error
    assert "use srun --mpi=pmi2" in error
    status, _, error = mpiexec(2, "bits", starter=("srun", "--mpi=pmix"))
    assert status != 0
    assert error.startswith("pydiff: srun --mpi=pmix starts MPICH only where that was built for it;")


@pytest.fixture(scope="module")
def alone():
    """What one process computes with as many shards."""
    result = json.loads(json.dumps(mpi_worker.bits(distributed.Group(shared=True))))
    assert [bool(bad) for *_, bad in result["faulty"]["states"]] == [False, True, False, True, False]
    assert "the loss is nan" in result["faulty"]["states"][1][3]
    assert "is not finite" in result["faulty"]["states"][3][3]
    assert len({json.dumps(r["states"]) for r in result.values()}) == 3
    return result


@needs_mpi
def test_every_task_gives_the_same_bits_on_any_number_of_processes(tmp_path):
    """Captions, autoencoders and what diffuses in their latents, classifiers, sounds, points, clips, masks."""
    images = mpi_worker.told_of((8, 8, 3))
    options = {"steps": 3, "batch_size": 6, "channels": (8, 8), "groups": 4, "progress": False}
    pydiff.train(images, model="autoencoder", out=tmp_path / "latent", **options)
    trainings = mpi_worker.tasks(tmp_path / "latent")
    alone = {name: json.loads(json.dumps(mpi_worker.of_task(train))) for name, train in trainings.items()}
    for n in (2, 3):
        status, said, error = mpiexec(n, "tasks", tmp_path / "latent")
        assert status == 0, error
        assert json.loads(said) == alone
    assert all(len(states) == 3 for states, _ in alone.values())
    assert len({digest for _, digest in alone.values()}) == len(alone)


@needs_mpi
def test_a_stopped_run_goes_on_on_another_number_of_processes(tmp_path):
    """Any process may hear the signal; all stop after the same step."""
    out = tmp_path / "run"
    status, _, error = mpiexec(3, "folder", out, 2, 4, "SIGTERM")
    assert status != 0
    assert "stopped after step" in error
    assert sorted(p.name for p in (out / "checkpoints").glob("step-*")) == ["step-00000003", "step-00000004"]
    status, _, error = mpiexec(2, "folder", out, 0, 7, "SIGINT")
    assert status != 0
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 7
    mpi_worker.main("folder", out, -1, -1, "SIGINT")  # alone, to the end
    mpiexec(1, "folder", tmp_path / "whole", -1, -1, "SIGINT")
    ended, whole = (
        checkpoint.load(path / "checkpoints" / "step-00000012")[0]["optimizer"] for path in (out, tmp_path / "whole")
    )
    assert all(ended[name].tobytes() == whole[name].tobytes() for name in whole)
    logs = [Log(path / "log.jsonl").entries for path in (out, tmp_path / "whole")]
    for mine, expected in zip(*logs, strict=True):
        assert {n: mine[n] for n in ("step", "loss", "lr", "grad_norm")} == {
            n: expected[n] for n in ("step", "loss", "lr", "grad_norm")
        }
    assert [entry.get("processes") for entry in logs[0]] == [3] * 4 + [2] * 3 + [None] * 5
    assert logs[0][0]["sent_bytes"] > 0
    assert 0 <= logs[0][0]["communication"] <= 1


@needs_mpi
def test_an_error_in_one_process_is_one_sentence_of_all(tmp_path):
    status, said, error = mpiexec(3, "error", tmp_path / "run")
    assert status != 0
    assert said == ""
    assert [line for line in error.splitlines() if "pydiff" in line] == ["pydiff: this process has had enough"]
    assert "Traceback" not in error


@needs_mpi
def test_processes_with_other_data_refuse_to_begin():
    status, _, error = mpiexec(3, "other")
    assert status != 0
    (line,) = (line for line in error.splitlines() if "pydiff" in line)
    assert line.startswith("pydiff: process 1 has another fingerprint than process 0: ")


@needs_mpi
def test_processes_that_are_not_alike_refuse_to_begin():
    """Other options, another version, kernels of another generation, other data: named, with both values."""
    status, said, error = mpiexec(3, "strangers")
    assert status == 0, error
    options, version, kernels, data = json.loads(said)
    assert options == "process 1 has another options than process 0: seed 7, not 0"
    assert version == f"process 1 has another pydiff than process 0: 0.0.1, not {pydiff.__version__}"
    assert kernels.startswith("process 1 has another generation than process 0: 1, not ")
    assert data.startswith("process 1 has another fingerprint than process 0: ")


@needs_mpi
def test_a_full_disk_of_the_first_process_stops_nothing(tmp_path):
    """As of a plain run: what cannot be written is said once, and tried again; the bits are those of an empty disk."""
    ends = []
    for until, steps in ((8, [8, 9]), (99, [2])):
        plain = [sys.executable, "-W", "ignore", "-m", "tests.training.mpi_worker", "full", tmp_path / "one", until]
        alone = subprocess.run(map(str, plain), cwd=ROOT, capture_output=True, text=True, timeout=60)
        status, said, error = mpiexec(2, "full", tmp_path / "two", until)
        assert (status, said, error.replace("two", "one")) == (alone.returncode, alone.stdout, alone.stderr)
        assert "a checkpoint could not be written" in error
        assert "from step 4 on" in error
        for name in ("one", "two"):
            found = sorted(p.name for p in (tmp_path / name / "checkpoints").glob("step-*"))
            assert found == [f"step-{step:08d}" for step in steps]
        if until == 99:
            assert mpiexec(2, "full", tmp_path / "two", 0)[0] == 0  # again, with room: to the end
        assert [entry["step"] for entry in Log(tmp_path / "two" / "log.jsonl").entries] == list(range(1, 10))
        ends.append(checkpoint.load(tmp_path / "two" / "checkpoints" / "step-00000009")[0]["optimizer"])
        for name in ("one", "two"):
            shutil.rmtree(tmp_path / name)
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])


@needs_mpi
def test_a_process_that_hangs_is_named():
    status, _, error = mpiexec(3, "hang", PYDIFF_MPI_TIMEOUT="2")
    assert status != 0
    (line,) = (line for line in error.splitlines() if "pydiff" in line)
    assert line.startswith("pydiff: process 1 of 3 has not answered for 2 seconds; all are ended")


@needs_mpi
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch-size", 1], "a batch of 1 cannot be shared by 2 processes; use a larger one"),
        (["--shards", 1], "2 processes cannot share 1 shards; pass shards=2 or more"),
        (["--lr", -1], "lr must be a number from 0 up to, but not, inf; got -1.0"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_sentence(options, sentence, tmp_path):
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "pydiff", "train", "digits", "--out", tmp_path / "x", *options]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.strip() == f"pydiff: {sentence}"


# ---- without MPI -----------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """As if mpiexec had started 4 processes and this were number 0."""
    for name in (*distributed.SIZES, "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    return monkeypatch


def test_without_mpi4py_several_processes_do_not_begin(started):
    with pytest.raises(RuntimeError, match=r"^4 processes cannot train together: .*; pip install 'pydiff\[mpi\]'"):
        join()
    started.setenv("PMI_RANK", "3")
    with pytest.raises(SystemExit):
        join()  # which is silent: number 0 says it
    assert join("off").size == 1


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    "told",
    [
        {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "{}"},
        {"PMI_SIZE": "3", "PMI_RANK": "{}"},
        {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "{}"},  # srun, whatever its --mpi
        {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "{}", "PMI_SIZE": "3", "PMI_RANK": "{}"},  # srun --mpi=pmi2
        # mpiexec in a job of Slurm's: the script of the job is task 0, on every process
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "{}"},
    ],
)
def test_who_started_the_processes_is_known(told, monkeypatch):
    """By the environment alone, before MPI is asked."""
    for name in ("PMI_SIZE", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    for rank in range(3):
        for name, value in told.items():
            monkeypatch.setenv(name, value.format(rank))
        assert distributed.launched() == 3
        assert distributed.is_first() == (rank == 0)


def test_one_process_of_mpiexec_needs_no_mpi4py(started):
    started.setenv("PMI_SIZE", "1")
    group = join()
    assert (group.size, group.shared) == (1, True)
    started.delenv("PMI_SIZE")
    assert not join().shared
    with pytest.raises(RuntimeError, match="pip install"):
        join("mpi")


def test_a_job_of_one_process_under_slurm_is_alone(started):
    started.delenv("PMI_SIZE")
    started.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert distributed.launched() is None
    started.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert distributed.launched() == 3


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="distributed must be one of auto, mpi, off; got 'on'"):
        join("on")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_the_seconds_of_patience_are_checked(text, monkeypatch):
    monkeypatch.setenv("PYDIFF_MPI_TIMEOUT", text)
    with pytest.raises(ValueError, match="PYDIFF_MPI_TIMEOUT must be a number of seconds"):
        distributed._timeout()
