"""Fixed runs whose every bit is recorded in bits.json: `python -m tests.recorded.runs` prints their sums.

A sum is the SHA-256 over the names and bytes of arrays, not over files, so that a new file format changes nothing.
The bits depend on the instruction set, so bits.json has an entry for each; NumPy's own choice of instructions is
switched off in the process that computes them (`environment`), because its log and cos differ in the last bit.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RECORDED = HERE / "bits.json"
OLD_RUNS = HERE / "old-runs"
COMMON = {"steps": 8, "batch_size": 12, "warmup": 2, "lr": 2e-3, "timesteps": 40, "progress": False, "seed": 3}
SMALL = {**COMMON, "channels": (8, 16), "groups": 4, "head_dim": 4}


def digest(arrays):
    """The sum of {name: array}, names in order."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        h.update(f"{name} {a.dtype} {a.shape}\n".encode())
        h.update(a.tobytes())
    return h.hexdigest()


def model_of(run):
    """The averaged weights and the losses."""
    return digest({**run.model.state_dict(), "losses": np.array([entry["loss"] for entry in run.log()])})


def drawn(run, **options):
    """The sum of some samples."""
    return digest({"images": run.sample(5, seed=2, batch_size=3, **{"steps": 4} | options)})


def plain():
    """Digits as `pydiff demo` trains them, every sampler once, and all editing."""
    import pydiff

    run = pydiff.train("digits", **COMMON)
    yield "model", model_of(run)
    for sampler in ("ddim", "ddpm", "dpm_solver", "heun", "unipc", "pndm", "euler_ancestral", "adaptive"):
        yield sampler, drawn(run, sampler=sampler)
    yield "ddim, eta, karras", drawn(run, eta=0.7, spacing="karras", clip=None)
    images, mask = run.sample(3, steps=4), np.arange(64).reshape(8, 8) % 3 == 0
    yield "inpaint", digest({"images": run.inpaint(images, mask, steps=4, resample=2, seed=1, batch_size=2)})
    yield "image_to_image", digest({"images": run.image_to_image(images, 0.6, steps=5, seed=1, sampler="ddpm")})
    yield "variations", digest({"images": run.variations(images, 0.4, steps=5, seed=1)})
    yield "interpolate", digest({"images": run.interpolate(1, 2, [0.0, 0.3, 1.0], steps=4)})


def classes():
    """Class labels, guidance of every kind, mirrored images, dropout, a constant rate."""
    import pydiff

    more = {"conditional": True, "flip": True, "dropout": 0.2, "label_drop": 0.3, "lr_schedule": "constant"}
    run = pydiff.train("digits", **SMALL, **more)
    yield "model", model_of(run)
    yield "turns", drawn(run)
    yield "guidance", drawn(run, guidance=3.0, labels=[1, 7, 7, 0, 9])
    yield "interval", drawn(run, guidance=3.0, interval=(0.3, 4.0), rescale=0.7)
    images = run.sample(3, steps=4, guidance=2.0)
    edited = run.image_to_image(images, 0.6, steps=5, labels=[3, 4, 5], guidance=2.5)
    yield "image_to_image", digest({"images": edited})
    yield "unlabelled", digest({"images": run.image_to_image(images, 0.6, steps=5)})


def learned_variance():
    """The variational bound beside the squared error; t drawn by the losses seen."""
    import pydiff

    more = {"variance": "learned", "timestep_sampling": "loss_aware", "offset_noise": 0.1, "loss_weight": "min_snr"}
    run = pydiff.train("digits", **SMALL, **more)
    yield "model", model_of(run)
    yield "ddpm", drawn(run, sampler="ddpm")
    yield "ddim", drawn(run)


def self_conditioning():
    """x0-hat beside x_t; v-prediction on a schedule that ends in noise alone; blocks computed again."""
    import pydiff

    more = {"self_conditioning": True, "prediction": "v", "zero_snr": True, "schedule": "linear", "recompute": True}
    run = pydiff.train("digits", **SMALL, conditional=True, timestep_sampling="stratified", **more)
    yield "model", model_of(run)
    yield "ddim", drawn(run)
    yield "guidance", drawn(run, guidance=2.0)


def edm():
    """Karras et al.'s preconditioning."""
    import pydiff

    more = {"prediction": "edm", "schedule": "edm", "loss_weight": "edm", "timestep_sampling": "lognormal"}
    run = pydiff.train("digits", **SMALL, **more)
    yield "model", model_of(run)
    yield "heun", drawn(run, sampler="heun")


def simt():
    """The CUDA kernels under the emulator."""
    import pydiff

    small = SMALL | {"steps": 2, "batch_size": 2, "channels": (8,), "layers": 1}
    run = pydiff.train("digits", device="simt", conditional=True, **small)
    yield "model", model_of(run)
    yield "guidance", digest({"images": run.sample(2, steps=2, guidance=2.0, device="simt")})


def old_runs():
    """Folders that pydiff 0.1.0 left behind: a finished one and one that was stopped, which goes on."""
    import pydiff

    run = pydiff.load(OLD_RUNS / "finished")
    yield "finished", model_of(run)
    yield "finished, drawn", drawn(run, guidance=2.0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stopped"
        shutil.copytree(OLD_RUNS / "stopped", out)
        yield "stopped, resumed", model_of(pydiff.train("digits", out=out, **old_options()))


def old_options():
    """What the folders of old_runs were trained with."""
    return SMALL | {"channels": (4, 8), "conditional": True, "sample_every": 0, "checkpoint_every": 5}


RUNS = {f.__name__: f for f in (plain, classes, learned_variance, self_conditioning, edm, simt, old_runs)}


def environment(level):
    """The process environment in which a run's bits are defined."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    disabled = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    already = os.environ.get("NPY_DISABLE_CPU_FEATURES", "")  # what is disabled here would be in use there
    disabled = " ".join([already, *disabled]).strip()
    return {**os.environ, "PYDIFF_SIMD": level, "PYDIFF_NATIVE": "require", "NPY_DISABLE_CPU_FEATURES": disabled}


def circumstances():
    """What else the last bit depends on: whose logarithm, whose compiler. bits.json holds for these alone."""
    from pydiff import backend

    compiler = re.search(rb"GCC: \([^)]*\) ([\d.]+)|clang version ([\d.]+)", Path(backend.cpu.__file__).read_bytes())
    return {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "libc": " ".join(platform.libc_ver()),
        "compiler": compiler[0].decode() if compiler else "unknown",
    }


def computed(name, level):
    """{what: sum} of one run, computed in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.recorded.runs", "--run", name]
    done = subprocess.run(
        command, env=environment(level), cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=RUNS, help="one run in this process, as JSON")
    parser.add_argument("--update", action="store_true", help="write bits.json for the levels of this machine")
    arguments = parser.parse_args()
    if arguments.run:
        return print(json.dumps(dict(RUNS[arguments.run]())))
    from pydiff import compiled

    sums = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    sums["circumstances"] = circumstances()
    for level in compiled.levels():
        sums[level] = {name: computed(name, level) for name in RUNS}
    if arguments.update:
        RECORDED.write_text(json.dumps(sums, indent=1) + "\n")
    return print(json.dumps(sums, indent=1))


if __name__ == "__main__":
    main()
