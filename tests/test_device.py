"""device="cuda" without a GPU: training, sampling and editing with the arrays of fake_cupy.py, compared with the same
on the CPU, to the bit where the arithmetic is the same; from device to device; and what is said where there is none.
"""

import ast
import inspect
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import pydiff
from pydiff import arrays, backend, compiled, emulator, nn, ops
from pydiff.cli import main
from pydiff.data import load
from pydiff.diffusion import path, samplers
from pydiff.diffusion.guidance import autoguidance, classifier_guided
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.store import checkpoint
from pydiff.training import training_steps
from tests import emulated, fake_cupy
from tests.compare import assert_close
from tests.ops.test_calls import CALLS
from tests.trainers import diffusion_trainer, train_until

TINY = {"steps": 2, "batch_size": 4, "channels": (8, 8), "groups": 4, "warmup": 1, "timesteps": 20, "sample_every": 0}
EVERYTHING = {"conditional": True, "variance": "learned", "self_conditioning": True, "dropout": 0.1}


def train(data="digits", **options):
    return pydiff.train(data, progress=False, **{**TINY, **options})


@pytest.fixture
def cupy(monkeypatch):
    """CuPy, or so pydiff believes."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module())
    return sys.modules["cupy"]


@pytest.fixture
def array_path(cupy, monkeypatch):
    """No compiled kernels on any device: what the fake computes is then what NumPy computes, bit for bit."""
    for name, value in (("NATIVE", "off"), ("cpu", None), ("cuda", None)):
        monkeypatch.setattr(backend, name, value)
    return cupy


@pytest.fixture
def cuda_kernels(cupy, monkeypatch):
    """The CUDA kernels for the fake's arrays, under the emulator."""
    monkeypatch.setattr(backend, "cuda", fake_cupy.Kernels(emulated.module()))
    return cupy


def assert_same_weights(run, other):
    ours, theirs = run.model.state_dict(), other.model.state_dict()
    assert all(type(a) is np.ndarray for a in ours.values())
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def losses(run):
    return [entry["loss"] for entry in run.log()]


# ---- the array path ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("array_path")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.1, "flip": True},
        {"prediction": "v", "layers": 2},
        {"prediction": "edm", "schedule": "edm"},
        {"prediction": "flow", "schedule": "flow"},
        {"loss_weight": "min_snr", "offset_noise": 0.1},
        {"timestep_sampling": "loss_aware", "timesteps": 2, "steps": 12},
        {"variance": "learned", "loss_weight": "edm"},
        {"self_conditioning": True},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_training_gives_the_same_bits_as_on_the_cpu(options):
    cpu, cuda = (train(device=device, **options) for device in ("cpu", "cuda"))
    assert type(cuda.model.conv_in.weight.data) is fake_cupy.ndarray
    assert_same_weights(cpu, cuda)
    assert losses(cpu) == losses(cuda)
    assert (cpu.sample(3, steps=2) == cuda.sample(3, steps=2)).all()


@pytest.mark.parametrize("name", CALLS)
def test_every_operation_computes_on_the_device_what_it_does_on_the_cpu(array_path, name):
    """Values to the bit; gradients to rounding, for an embedding's is summed in another order."""
    shapes, options = CALLS[name]
    rng = np.random.default_rng(0)
    given = [np.abs(rng.standard_normal(shape)) + 0.1 for shape in shapes]
    results = []
    for xp in (np, array_path):
        on_host = ("p", "q", "weight")  # numbers of a sample
        moved = {k: xp.asarray(v) if isinstance(v, np.ndarray) and k not in on_host else v for k, v in options.items()}
        tensors = [pydiff.Tensor(xp.asarray(a), requires_grad=True) for a in given]
        y = getattr(ops, name)(*tensors, **moved)
        y.backward(xp.asarray(np.random.default_rng(1).standard_normal(y.shape)))
        results.append([y.data, *(t.grad for t in tensors)])
    for got, expected in zip(results[1], results[0], strict=True):
        assert isinstance(got, fake_cupy.ndarray)
        assert_close(got.get(), expected, rtol=1e-14)


@pytest.mark.usefixtures("array_path")
def test_training_with_classes():
    """To rounding only: the gradient of an embedding is summed in another order."""
    cpu, cuda = (train(device=device, **EVERYTHING) for device in ("cpu", "cuda"))
    assert_close(losses(cuda), losses(cpu), rtol=1e-5)
    assert losses(cpu)[0] == losses(cuda)[0]


SAMPLES = [
    *({"sampler": name} for name in SAMPLERS),
    {"sampler": "ddpm", "variance": "large"},
    {"sampler": "dpm2", "eta": 0.5},
    {"sampler": "heun", "churn": 2.0},
    {"sampler": "adaptive", "guidance": 2.0},
    {"spacing": "karras", "guidance": 2.0},
    {"guidance": 3.0, "interval": (0.1, 5.0), "rescale": 0.7},
    {"threshold": 0.9, "eta": 1.0, "clip": None},
    {"guidance": 2.0, "threshold": 0.9, "raw_eps": True},
]


@pytest.fixture(scope="module")
def plain():
    return train(conditional=True)


@pytest.fixture(scope="module")
def everything():
    return train(**EVERYTHING)


def both(run, draw):
    """draw() with the run on the CPU and on the fake GPU."""
    results = []
    for device in ("cpu", "cuda"):
        run.to(device)
        assert type(run.model.conv_in.weight.data) is (np.ndarray if device == "cpu" else fake_cupy.ndarray)
        results.append(draw())
    run.to("cpu")
    return results


@pytest.mark.usefixtures("array_path")
@pytest.mark.parametrize("options", SAMPLES, ids=str)
def test_sampling_gives_the_same_bits_as_on_the_cpu(plain, options):
    cpu, cuda = both(plain, lambda: plain.sample(3, steps=4, **options))
    assert (cpu == cuda).all()


@pytest.mark.usefixtures("array_path")
@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"guidance": 2.0}, {"sampler": "unipc"}], ids=str)
def test_sampling_with_all_a_network_can_learn(everything, options):
    cpu, cuda = both(everything, lambda: everything.sample(3, steps=4, **options))
    assert (cpu == cuda).all()


@pytest.mark.usefixtures("array_path")
@pytest.mark.parametrize(
    "edit",
    [
        lambda run, real, mask: run.inpaint(real, mask, steps=3, resample=2, labels=[1, 2, 3], guidance=2.0),
        lambda run, real, _: run.image_to_image(real, 0.6, steps=4, sampler="ddpm"),
        lambda run, real, _: run.variations(real, steps=4),
        lambda run, *_: run.interpolate(1, 2, [0.0, 0.5, 1.0], steps=4),
    ],
    ids=["inpaint", "image_to_image", "variations", "interpolate"],
)
def test_editing_gives_the_same_bits_as_on_the_cpu(plain, edit):
    real, mask = plain.dataset().images[:3], np.eye(8)
    cpu, cuda = both(plain, lambda: edit(plain, real, mask))
    assert (cpu == cuda).all()


@pytest.mark.usefixtures("array_path")
def test_guidance_by_other_networks(plain):
    labels, weight = np.array([1, 2]), np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)

    def draw():
        xp = arrays.array_module(plain.model.conv_in.weight.data)
        device_weight = pydiff.Tensor(xp.asarray(weight))

        def log_probability(x, _t):
            return ops.log(ops.softmax(x.reshape(2, 64) @ device_weight))[np.arange(2), labels]

        network = pydiff.no_grad()(lambda x, t: plain.model(x, t, labels).data)
        worse = pydiff.no_grad()(lambda x, t: 0.5 * network(x, t))
        drawn = []
        for model in (
            classifier_guided(network, log_probability, plain.process, 2.0, norm_based=True),
            autoguidance(network, worse, plain.process, 2.0),
        ):
            x = xp.asarray(samplers.initial_noise(plain.shape, 0, [0, 1]))
            *_, last = samplers.ddim(model, x, plain.process, path(plain.process.schedule, 4))
            drawn.append(arrays.to_host(last.x))
        return drawn

    cpu, cuda = both(plain, draw)
    assert np.array_equal(cpu, cuda)


@pytest.mark.usefixtures("array_path")
def test_a_step_that_is_not_finite_is_named():
    trainer = diffusion_trainer(load("digits"), pydiff.Options(**TINY), "cuda")
    trainer.model.mid_block.resnets[1].conv1.weight.data[0, 0, 0, 0] = np.inf
    assert "mid_block.resnets.1.conv1" in next(training_steps(trainer)).bad


def test_sum_of_picked_elements(cupy):
    """Rows picked by a vector, and every other index; negative and repeated ones, too."""
    rng = np.random.default_rng(0)
    x, i, j = rng.standard_normal((5, 3, 2)), np.array([1, -1, 1, 0]), np.array([2, 0, 2, 1])
    for index in (i, (i, j), (slice(None), j), (i, 1), ([3, 3], slice(1)), x[:, 0, 0] > 0, slice(1, 4), (..., 1)):
        grads = []
        for xp in (np, cupy):
            t = pydiff.Tensor(xp.asarray(x), requires_grad=True)
            y = t[index]
            y.backward(xp.asarray(np.arange(1.0, y.size + 1).reshape(y.shape)))
            grads.append(arrays.to_host(t.grad))
        np.testing.assert_allclose(grads[1], grads[0], rtol=1e-15, atol=0)


# ---- the kernels ---------------------------------------------------------------------------------------------------

SMALL = {"batch_size": 2, "attention": (1,), "conditional": True, "dropout": 0.1}


@pytest.mark.usefixtures("cuda_kernels")
def test_kernels_for_cupy_are_those_of_the_emulator():
    """Training and sampling with device cuda and with device simt run the same kernels on the same numbers."""
    cuda, simt = (train(device=device, **SMALL, seed=1) for device in ("cuda", "simt"))
    assert losses(cuda)[0] == losses(simt)[0]
    assert_close(losses(cuda), losses(simt), rtol=1e-5)  # the embedding's gradient is summed in another order
    simt.model.load_state_dict(cuda.model.state_dict())
    drawn = cuda.sample(2, steps=2, guidance=2.0)
    assert (drawn == simt.sample(2, steps=2, guidance=2.0)).all()
    assert (drawn == cuda.sample(2, steps=2, guidance=2.0, batch_size=1)).all()


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(
    ("options", "uploads"),
    [
        ({}, 7),  # images, step numbers, two of the noise's key, coefficients of noise and of loss, the schedule
        (SMALL, 11),  # labels, what their gradient is sorted by, two of the key of all dropout masks
        ({"shards": 2}, 13),  # all but the schedule twice
        ({"offset_noise": 0.1, "self_conditioning": True}, 15),
    ],
)
def test_a_step_waits_once_for_the_device_when_all_of_it_is_under_way(options, uploads):
    steps = training_steps(diffusion_trainer(load("digits"), pydiff.Options(**{**TINY, **options}), "cuda"))
    next(steps)
    fake_cupy.happened.clear()
    next(steps)
    assert fake_cupy.happened.count("wait") == 1
    assert fake_cupy.happened[-2:] == ["adamw", "wait"]
    assert fake_cupy.happened.count("upload") == uploads


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("options", [{}, SMALL, {"shards": 2}, {"self_conditioning": True, "ema": 0.9}])
def test_from_the_third_step_on_the_device_is_asked_for_no_memory(options):
    """Every step wants arrays of the same sizes in the same order, and the pool has them from the step before."""
    options = {**TINY, "steps": 6, **options}
    with fake_cupy.Pool() as pool:
        steps, sizes, new = training_steps(diffusion_trainer(load("digits"), pydiff.Options(**options), "cuda")), [], []
        for _ in steps:
            sizes.append(tuple(pool.asked))
            new.append(pool.new)
            pool.asked.clear()
    assert new[1:] == [new[1]] * 5
    assert sizes[2:] == [sizes[2]] * 4
    assert len(sizes[2]) > 100


@pytest.mark.usefixtures("cuda_kernels")
def test_drawing_again_asks_the_device_for_no_memory():
    run, new = train(device="cuda", **SMALL), []
    with fake_cupy.Pool() as pool:
        for seed in range(4):
            run.sample(2, steps=5, guidance=2.0, seed=seed)
            new.append(pool.new)
    assert new[0] > 10
    assert new[2:] == new[1:2] * 2


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_a_step_that_is_not_finite_is_taken_back_on_the_device(monkeypatch, what):
    """It is under way before anybody knows: the optimiser's kernel has to leave everything as it is."""
    trainer = diffusion_trainer(load("digits"), pydiff.Options(**TINY), "cuda")
    real, bias = trainer.task.losses, trainer.model.conv_out.bias
    if what == "weight":
        trainer.model.mid_block.resnets[1].conv1.weight.data[0, 0, 0, 0] = np.inf
    else:
        monkeypatch.setattr(trainer.task, "losses", lambda batch: real(batch) + ops.sqrt(bias * 0).sum())
    before = trainer.arrays()
    fake_cupy.happened.clear()
    state = next(training_steps(trainer))
    assert "adamw" in fake_cupy.happened
    assert ("mid_block.resnets.1.conv1" if what == "weight" else "the gradient of conv_out.bias") in state.bad
    for name, array in trainer.arrays()["optimizer"].items():
        assert np.array_equal(array, before["optimizer"][name]), name


@pytest.mark.usefixtures("cuda_kernels")
def test_the_coefficients_of_a_sampler_are_sent_once():
    sys.modules[ops.denoise.__module__]._kept.cache_clear()  # of tests that drew with the same ones
    run, sent = train(device="cuda"), []
    for seed in (1, 2):
        fake_cupy.happened.clear()
        run.sample(2, steps=7, sampler="ddpm", seed=seed)
        sent.append(fake_cupy.happened.count("upload"))
    assert sent[0] - sent[1] == 7


@pytest.mark.usefixtures("cuda_kernels")
def test_drawing_waits_once_for_the_images():
    run = train(device="cuda")
    for steps in (2, 6):
        fake_cupy.happened.clear()
        run.sample(2, steps=steps, sampler="ddpm")
        assert fake_cupy.happened.count("wait") == 1


def test_kernels_agree_with_those_of_the_cpu():
    _simt = emulated.module()
    trainers = [
        diffusion_trainer(load("digits"), pydiff.Options(**{**TINY, **SMALL}), device) for device in ("cpu", "simt")
    ]
    _simt.counters()
    cpu, simt = ([next(training_steps(trainer)).loss for _ in range(2)] for trainer in trainers)
    assert _simt.counters()["switches"] > 0
    assert_close(simt, cpu, rtol=1e-4)
    assert_close(trainers[1].optimizer.m, trainers[0].optimizer.m, rtol=1e-3)
    model = trainers[0].model
    runs = [pydiff.Run(model, trainers[0].task.process, {}, classes=[*"0123456789"], device=d) for d in ("cpu", "simt")]
    finals = [[*run.sample_states(2, steps=2, guidance=2.0)][-1].x for run in runs]
    assert _simt.counters()["switches"] > 0
    assert backend.emulator is None
    assert_close(finals[1], finals[0], rtol=1e-4)


def test_on_a_gpu():
    """The same for a machine that has one."""
    try:
        with backend.use_device("cuda"):
            pass
    except RuntimeError as error:
        pytest.skip(str(error))
    cpu, cuda = (train(device=device, **SMALL) for device in ("cpu", "cuda"))
    assert_close(losses(cuda), losses(cpu), rtol=1e-3)
    cpu.model.load_state_dict(cuda.model.state_dict())
    ours, theirs = ([*run.sample_states(2, steps=4)][-1].x for run in (cuda, cpu))
    assert_close(ours.get(), theirs, rtol=1e-3)


# ---- from device to device -----------------------------------------------------------------------------------------


def stopped(out, step, device, **options):
    """A run that is stopped after this step."""
    train_until(out, step, load("digits"), pydiff.Options(**{**TINY, "steps": 6, **options}), device)


@pytest.mark.usefixtures("array_path")
@pytest.mark.parametrize("devices", [("cpu", "cuda", "cpu"), ("cuda", "cpu", "cuda")], ids=", then ".join)
def test_a_run_goes_on_on_another_device(tmp_path, devices):
    """With the same arithmetic everywhere, it ends with the bits of a run that stayed where it was."""
    options = {"timestep_sampling": "loss_aware", "sample_every": 6}
    stopped(tmp_path / "run", 2, devices[0], **options)
    stopped(tmp_path / "run", 4, devices[1], **options)
    arrays, _ = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    assert all(type(a) is np.ndarray for group in arrays.values() for a in group.values())
    moved = train(out=tmp_path / "run", steps=6, device=devices[2], **options)
    stayed = train(out=tmp_path / "stayed", steps=6, **options)
    assert_same_weights(moved, stayed)
    assert (tmp_path / "run/samples.png").read_bytes() == (tmp_path / "stayed/samples.png").read_bytes()
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["device"] for entry in entries] == [d for d in devices for _ in range(2)]
    assert "device" not in (tmp_path / "run/config.json").read_text()
    loaded = pydiff.load(tmp_path / "run")
    assert loaded.device == "cpu"
    assert (loaded.sample(2, steps=3, device="cuda") == stayed.sample(2, steps=3)).all()
    assert loaded.device == "cuda"  # stays there
    assert loaded.report(tmp_path / "page", n=2, steps=3).is_file()


def test_a_module_moves(cupy):
    layer = nn.Linear(2, 3).initialize()
    before = layer.state_dict()
    weight = layer.weight
    weight.grad = np.zeros((2, 3), np.float32)
    assert layer.to(cupy) is layer
    assert (type(weight.data), weight.grad) == (fake_cupy.ndarray, None)
    data = weight.data
    assert layer.to(cupy).weight.data is data
    assert layer.to(np).state_dict().keys() == before.keys()
    assert all(np.array_equal(before[k], v) for k, v in layer.state_dict().items())


def test_the_emulator_serves_the_steps_of_a_generator_and_nothing_between_them():
    emulated.module()
    inside = []

    def steps():
        for i in range(3):
            inside.append(backend.emulator is not None)
            yield i

    generator = backend.on_device("simt", steps())
    assert [(i, backend.emulator) for i in generator] == [(0, None), (1, None), (2, None)]
    assert inside == [True] * 3
    with backend.use_device("simt"):
        with backend.use_device("cpu"):
            assert backend.emulator is None
        assert backend.emulator is not None


@pytest.mark.usefixtures("array_path")
def test_on_the_command_line(tmp_path, capsys):
    out, drawn = str(tmp_path / "run"), tmp_path / "x.npz"
    options = "--steps 2 --batch-size 4 --channels 8 8 --groups 4 --warmup 1 --timesteps 20 --sample-every 0"
    options = shlex.split(options)
    assert main(["train", "digits", "--out", out, "--device", "cuda", *options]) == 0
    said = capsys.readouterr()
    assert "training on cuda\n" in said.out
    assert "on cuda: 100%" in said.err  # the bar
    assert main(["sample", out, "-n", "2", "--steps", "3", "--device", "cuda", "--out", str(drawn)]) == 0
    with np.load(drawn) as file:
        assert (file["images"] == train().sample(2, steps=3)).all()
    assert main(["report", out, "-n", "2", "--steps", "3", "--device", "cuda"]) == 0


def test_on_the_command_line_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["train", "nowhere", "--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("pydiff: device cuda needs CuPy, which could not be imported")


# ---- where there is none -------------------------------------------------------------------------------------------


def refusals(device):
    """The same sentence from everything that takes a device: training, its parts, sampling."""
    run = train()
    for attempt in (
        lambda: train("nowhere", device=device),  # before the data is looked for
        lambda: diffusion_trainer(load("digits"), pydiff.Options(**TINY), device),
        lambda: run.sample(1, steps=1, device=device),
        lambda: run.to(device),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            attempt()
        assert run.device == "cpu"
        assert "\n" not in str(caught.value)
        yield f"{caught.type.__name__}: {caught.value}"


def test_an_unknown_device():
    assert {*refusals("gpu")} == {"ValueError: device must be one of cpu, cuda, simt, got 'gpu'"}


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    (message,) = {*refusals("cuda")}
    assert message.startswith("RuntimeError: device cuda needs CuPy, which could not be imported (")
    assert "pip install 'pydiff[cuda13]'" in message


def test_with_a_cupy_that_cannot_find_its_libraries(monkeypatch, tmp_path):
    """It says so on a page with rules and advice; the cause is in one line of it."""
    page = "=====\\nFailed to import CuPy.\\n\\nOriginal error:\\n  ImportError: libnvrtc.so.13\\n====="
    (tmp_path / "cupy.py").write_text(f"raise ImportError('{page}') from ImportError('libnvrtc.so.13: not there')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    (message,) = {*refusals("cuda")}
    assert "CuPy, which could not be imported (libnvrtc.so.13: not there); pip install" in message


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (RuntimeError("cudaErrorInsufficientDriver: too old"), "a GPU with a driver, and CuPy finds none: cudaError"),
        ((), "device cuda needs a GPU, and CuPy finds none"),
    ],
)
def test_without_a_driver_or_a_gpu(monkeypatch, devices, message):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module(devices))
    (got,) = {*refusals("cuda")}
    assert message in got


@pytest.mark.usefixtures("cupy")
def test_without_the_module_of_cuda_kernels(monkeypatch):
    monkeypatch.setattr(backend, "cuda", None)
    monkeypatch.setitem(sys.modules, "pydiff._cuda", None)
    monkeypatch.setattr(compiled, "record", lambda: {"no_cuda": "this machine has no NVIDIA GPU"})
    expected = "RuntimeError: the module of CUDA kernels, pydiff._cuda, was not built: this machine has no NVIDIA GPU"
    assert {*refusals("cuda")} == {expected}


def test_without_what_the_emulator_is_built_from(monkeypatch):
    reason = "the emulator of CUDA kernels cannot be built: there is no C++ compiler"
    monkeypatch.setattr(emulator, "_refused", reason)
    monkeypatch.delitem(sys.modules, "pydiff._simt", raising=False)
    assert {*refusals("simt")} == {f"RuntimeError: {reason}"}


@pytest.mark.usefixtures("cupy")
def test_info_names_the_gpus_or_what_is_missing(monkeypatch):
    from pydiff.info import describe

    monkeypatch.setattr(backend, "cuda", fake_cupy.Kernels(None))
    assert "\nGPU            can be used: Pretended GPU\n" in describe()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module(RuntimeError("no driver")))
    assert (
        "\nGPU            cannot be used: device cuda needs a GPU with a driver, and CuPy finds none: no driver\n"
        in (describe())
    )


# ---- the fake and the real CuPy ------------------------------------------------------------------------------------

PACKAGE = Path(pydiff.__file__).parent


def is_library(node):
    """Whether an expression is what this code calls the array library: xp, self.xp, cupy or array_module(..)."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "array_module"
    return getattr(node, "id", getattr(node, "attr", None)) in ("xp", "cupy")


NODES = [node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
USED = {node.attr for node in NODES if isinstance(node, ast.Attribute) and is_library(node.value)}


def test_the_fake_has_what_pydiff_uses():
    """Also where no test happens to come by."""
    assert {"asarray", "concatenate", "isfinite", "cuda"} < USED
    assert [name for name in sorted(USED) if name not in vars(fake_cupy.module())] == []


@pytest.fixture
def real_cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed: its names were not compared with the fake's")


def test_cupy_has_what_the_fake_has(real_cupy):
    assert [name for name in fake_cupy.FUNCTIONS if not hasattr(real_cupy, name)] == []
    own = {name for name in vars(fake_cupy.ndarray) if name not in vars(object)} - {"__module__", "__slots__", "_host"}
    assert [name for name in own if not hasattr(real_cupy.ndarray, name)] == []
    assert callable(real_cupy.cuda.runtime.getDeviceCount)
    assert callable(real_cupy.cuda.runtime.getDeviceProperties)


def test_cupy_takes_the_arguments_that_pydiff_gives(real_cupy):
    for node in NODES:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_library(node.func.value)):
            continue
        function, options = getattr(real_cupy, node.func.attr), {keyword.arg: None for keyword in node.keywords}
        if isinstance(function, real_cupy.ufunc):
            assert (len(node.args), options) == (function.nin, {}), function
        else:
            inspect.signature(function).bind(*node.args, **options)


# ---- what is moved -------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_to_is_sent_once_and_forgotten_with_it(cupy):
    like, a = cupy.asarray(np.zeros(2)), np.arange(3)
    fake_cupy.happened.clear()
    assert arrays.sent(a, like) is not arrays.sent(a, like)  # it may have changed meanwhile
    a.flags.writeable = False
    assert arrays.sent(a, like) is arrays.sent(a, like)
    assert fake_cupy.happened.count("upload") == 3
    assert arrays.sent(a, np.zeros(2)) is a
    before = len(arrays._sent.copies)
    del a
    assert len(arrays._sent.copies) == before - 1
