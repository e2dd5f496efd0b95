"""nn/deferred.py: parameters that are read when they are used, and are the same ones."""

import gc
import os

import numpy as np
import pytest

from pydiff import backend
from pydiff.formats import safetensors
from pydiff.formats.diffusers import parameters
from pydiff.formats.diffusers.parameters import fill
from pydiff.formats.files import RegularFile
from pydiff.formats.safetensors import CheckpointError
from pydiff.graph import Played
from pydiff.models import AutoencoderKL, CLIPTextModel, UNet2DCondition
from pydiff.nn import deferred
from pydiff.tensor import no_grad
from tests.bits import assert_same_bits, check_any_thread_count
from tests.models.test_unet_condition import BOTH, SMALL
from tests.strategies import simd  # noqa: F401

FDS = "/proc/self/fd"
VAE = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 3, "norm_num_groups": 4,
}  # fmt: skip


def reopened(model, path, dtype=None):
    """(the same network with its parameters in a file, how often each was read)."""
    with path.open("wb") as file:
        file.writelines(safetensors.pieces(model.state_dict(), dtype))
    with RegularFile(path, lasting=True) as file:
        weights, reads = safetensors.contents(file, path), dict.fromkeys(model.state_dict(), 0)

        def counted(name):
            def part(first, last):
                reads[name] += first == 0
                return weights[name].part(first, last)

            return weights[name]._replace(read=None, part=part)

        other = type(model)(**model.config, seed=9)
        fill(other, {name: counted(name) for name in weights}, deferred=True)
    return other, reads


@pytest.fixture
def unet():
    return UNet2DCondition(**{**SMALL, **BOTH}, seed=1)


def answers(model, calls=2):
    rng = np.random.default_rng(0)
    x, context = (rng.standard_normal(s).astype(np.float32) for s in ((2, 8, 8, 3), (2, 5, 6)))
    played = Played(model)
    with no_grad():
        plain = model(x, 7, encoder_hidden_states=context).data
    return [plain, *(played(x, 7, encoder_hidden_states=context) for _ in range(calls))]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("dtype", [None, "F16"])
def test_the_same_bits_and_nothing_is_read_before(unet, tmp_path, kept, dtype):
    if dtype:
        for p in unet.parameters():
            p.data = p.data.astype(np.float16).astype(np.float32)
    other, reads = reopened(unet, tmp_path / "weights.safetensors", dtype)
    size = 4 * sum(p.size for p in unet.parameters())
    assert set(reads.values()) == {0}
    assert (deferred.waiting(other), deferred.releasable(other)) == (size, 0)
    assert [(n, p.shape, len(p), p.ndim, p.size, p.dtype) for n, p in other.named_parameters()] == [
        (n, p.shape, len(p), p.ndim, p.size, p.dtype) for n, p in unet.named_parameters()
    ]
    deferred.keep(other, kept)
    assert_same_bits(answers(other), answers(unet))
    if kept:
        assert set(reads.values()) == {1}
        assert (deferred.waiting(other), deferred.releasable(other)) == (0, size)
        deferred.release(other)
        assert (deferred.waiting(other), deferred.releasable(other)) == (size, 0)
        assert_same_bits(answers(other, 0), answers(unet, 0))
        assert set(reads.values()) == {2}
    else:
        assert min(reads.values()) >= 2
        assert (deferred.waiting(other), deferred.releasable(other)) == (0, 0)


def test_nothing_is_read_to_be_where_it_is_already(unet, tmp_path):
    other, reads = reopened(unet, tmp_path / "weights.safetensors")
    other.to(np)
    assert set(reads.values()) == {0}


@pytest.mark.parametrize("dtype", [None, "F16", "BF16"])
@pytest.mark.parametrize("axes", [(0,), (1, 0), (0, 1), (2, 1, 0), (3, 2, 0, 1), (2, 3, 0, 1)])
@pytest.mark.parametrize("path", ["kernels", "arrays"])
def test_large_arrays_are_read_in_parts(tmp_path, monkeypatch, dtype, axes, path, simd):  # noqa: ARG001, F811
    if path == "arrays":
        monkeypatch.setattr(backend, "cpu", None)
    monkeypatch.setattr(parameters, "LARGE", 300)
    array = np.random.default_rng(0).standard_normal((301, 3, 3, 2)[: len(axes)]).astype(np.float32)
    (tmp_path / "x.safetensors").write_bytes(b"".join(safetensors.pieces({"x": array}, dtype)))
    with RegularFile(tmp_path / "x.safetensors") as file:
        weight = safetensors.contents(file, "x")["x"]
        made, expected = parameters.Reader(weight, axes)(), weight.read().transpose(np.argsort(axes))
        whole = parameters.Reader(weight._replace(part=None), axes)()
        numbers = np.array([0, 1]) if axes[0] else np.array([0, 7, 128, 300])
        some = parameters.Reader(weight, axes).rows(numbers)
    assert_same_bits([made, whole, some], [*[np.ascontiguousarray(expected)] * 2, expected[numbers]])
    assert made.flags.c_contiguous


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 1), (65, 7, 9), (3, 200, 9), (130, 1, 4), (0, 3, 1), (5, 0, 9)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_are_turned_on_any_number_of_threads(shape, dtype):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 16, shape[0] * shape[1] * shape[2], np.uint16)
    w = bits.view(np.float16).astype(dtype).reshape(shape)

    def turned():
        out = np.full((shape[2], shape[1], shape[0] + 5), 7, np.float32)
        backend.cpu.turn_weights(w, 3, out)
        return [out]

    expected = np.full((shape[2], shape[1], shape[0] + 5), 7, np.float32)
    expected[..., 3 : 3 + shape[0]] = w.transpose(2, 1, 0)
    check_any_thread_count(turned)
    assert_same_bits(turned(), [expected])


@pytest.mark.usefixtures("simd")
def test_every_half_is_widened_as_numpy_does():
    w, out = (
        np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256, 1),
        np.empty((1, 256, 256), np.float32),
    )
    backend.cpu.turn_weights(w, 0, out)
    assert np.array_equal(out[0].T.copy().view(np.uint32), w[..., 0].astype(np.float32).view(np.uint32))


@pytest.mark.usefixtures("simd")
def test_what_cannot_be_turned_is_refused():
    w, out = np.ones((4, 3, 2), np.float16), np.zeros((2, 3, 6), np.float32)
    for bad in [(w, -1, out), (w, 3, out), (w, 0, out[:, :, :3].copy()), (w[:, ::2], 0, out), (w[0], 0, out),
                (w.astype(np.float64), 0, out), (w.view(np.int16), 0, out), (w, 0, out.astype(np.float16)),
                (w, 0, np.empty((3, 2, 6), np.float32))]:  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            backend.cpu.turn_weights(*bad)


def test_of_a_table_only_the_rows_that_are_asked_for(tmp_path):
    model = CLIPTextModel(
        vocab_size=300, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    other, _ = reopened(model, tmp_path / "weights.safetensors", "F16")
    model.load_state_dict({n: a.astype(np.float16).astype(np.float32) for n, a in model.state_dict().items()})
    ids = np.array([[5, 299, 5], [0, 7, 7]])
    with no_grad():
        assert_same_bits([other(ids).last_hidden_state.data], [model(ids).last_hidden_state.data])
    table = other.embeddings.token_embedding.weight
    assert table.waiting == 4 * 300 * 16
    other(ids)  # with gradients
    assert not table.waiting
    with no_grad():
        assert_same_bits([other(ids).last_hidden_state.data], [model(ids).last_hidden_state.data])
    for wrong in (np.array([[300]]), np.array([[-1]])):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.299"), no_grad():
            other.embeddings.token_embedding(wrong)


def test_an_autoencoder_too_and_only_the_half_that_is_used(tmp_path):
    model = AutoencoderKL(**VAE, seed=2)
    other, reads = reopened(model, tmp_path / "weights.safetensors")
    z = np.random.default_rng(0).standard_normal((1, 4, 4, 3)).astype(np.float32)
    with no_grad():
        assert_same_bits([other.decode(z).data], [model.decode(z).data])
    assert {name.split(".")[0] for name, count in reads.items() if count} == {"decoder", "post_quant_conv"}


def test_values_that_are_set_stay(unet, tmp_path):
    other, _ = reopened(unet, tmp_path / "weights.safetensors")
    p = other.conv_in.weight
    p.data = np.zeros_like(p.data)
    deferred.keep(other, False)
    assert not p.data.any()
    assert other.astype(np.float64).conv_out.weight.dtype == np.float64
    np.testing.assert_array_equal(other.state_dict()["conv_out.bias"], unet.state_dict()["conv_out.bias"])


@pytest.mark.parametrize("change", ["gone", "replaced", "written into", "shorter"])
def test_a_file_that_is_gone_serves_and_one_that_changes_is_refused(unet, tmp_path, change):
    path = tmp_path / "weights.safetensors"
    other, _ = reopened(unet, path)
    if change in ("gone", "replaced"):
        path.unlink()
        if change == "replaced":
            path.write_bytes(b"something else")
        assert_same_bits(answers(other), answers(unet))
        return
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    if change == "written into":
        with path.open("ab") as file:
            file.write(bytes(8))
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        answers(other)


@pytest.mark.skipif(not os.path.isdir(FDS), reason="this system does not list open files there")
def test_files_are_closed_with_the_last_that_needs_them(unet, tmp_path):
    gc.collect()  # what other tests left open
    before = len(os.listdir(FDS))
    other, _ = reopened(unet, tmp_path / "weights.safetensors")
    assert len(os.listdir(FDS)) == before + 1
    del other, _
    gc.collect()
    assert len(os.listdir(FDS)) == before
