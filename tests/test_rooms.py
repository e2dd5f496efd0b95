"""The rooms hold what they were not built for: a network with a text-like context, and a codec whose latents are large.

Nothing in pydiff knows either of them; both are trained, stopped, resumed, saved, opened, drawn from and edited.
"""

import re

import numpy as np
import pytest

import pydiff
from pydiff import backend
from pydiff.condition import Condition
from pydiff.data import Dataset, load
from pydiff.diffusion.samplers import SAMPLERS
from pydiff.graph import Played
from pydiff.store import checkpoint
from pydiff.tensor import no_grad
from tests.bits import assert_same_bits
from tests.networks import Folded, context_unet, fold, unfold
from tests.trainers import train_until

needs_kernels = pytest.mark.skipif(
    backend.cpu is None, reason="without compiled kernels the BLAS decides the last bits"
)
TINY = {"steps": 6, "batch_size": 6, "warmup": 2, "lr": 3e-3, "timesteps": 50, "sample_every": 3}
TINY |= {"channels": (8,), "groups": 2, "head_dim": 4}
TOKENS, WIDTH = 3, 5


# ---- a context -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described():
    """Digits, each with the states of a pretended text encoder that say which digit it is."""
    digits = load("digits").subset(np.arange(60))
    words = np.random.default_rng(1).standard_normal((10, TOKENS, WIDTH)).astype(np.float32)
    nothing = np.zeros((TOKENS, WIDTH), np.float32)
    columns = {"encoder_hidden_states": words[digits.labels]}
    return Dataset("described", digits.images, columns=columns, nothing={"encoder_hidden_states": nothing})


def train(data, out=None, **options):
    return pydiff.train(
        data, out=out, progress=False, conditional=True, model=context_unet(WIDTH), **{**TINY, **options}
    )


@pytest.fixture(scope="module")
def run(described, tmp_path_factory):
    return train(described, tmp_path_factory.mktemp("context") / "run")


def test_the_context_is_learned_from_the_data(run, described):
    """The network's answer depends on it, and training moves the weights that look at it."""
    context = described.columns["encoder_hidden_states"][:2]
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    with no_grad():
        answers = [run.model(x, 10, encoder_hidden_states=c).data for c in (context, context[::-1], 0 * context)]
    assert not np.array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
    before, after = context_unet(WIDTH).state_dict(), run.model.state_dict()
    assert np.abs(after["context.to_k.weight"] - before["context.to_k.weight"]).max() > 1e-4


def test_a_stopped_run_with_a_context_goes_on_to_the_same_bits(run, described, tmp_path):
    options = pydiff.Options(**TINY, conditional=True)
    train_until(tmp_path / "run", 4, described, options, model=context_unet(WIDTH))
    resumed = train(described, tmp_path / "run")
    for name, array in run.model.state_dict().items():
        assert np.array_equal(resumed.model.state_dict()[name], array), name
    assert [e["loss"] for e in resumed.log()] == [e["loss"] for e in run.log()]


def test_it_is_opened_and_draws_with_guidance(run, described):
    context = described.columns["encoder_hidden_states"][:3]
    opened, condition = pydiff.load(run.directory), {"encoder_hidden_states": context}
    drawn = run.sample(3, steps=4, condition=condition, guidance=4.0)
    assert drawn.shape == (3, 8, 8, 1)
    assert np.array_equal(opened.sample(3, steps=4, condition=condition, guidance=4.0), drawn)
    plain, nothing = run.sample(3, steps=4, condition=condition), run.sample(3, steps=4)
    assert len({drawn.tobytes(), plain.tobytes(), nothing.tobytes()}) == 3
    null = {"encoder_hidden_states": np.zeros_like(context)}
    assert np.array_equal(nothing, run.sample(3, steps=4, condition=null))  # nothing asked is the null row
    edited = run.image_to_image(drawn, 0.7, steps=4, condition=condition, guidance=2.0)
    assert not np.array_equal(edited, run.image_to_image(drawn, 0.7, steps=4))


@needs_kernels
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_it(run, described, sampler):
    context = described.columns["encoder_hidden_states"][:3]
    options = {"sampler": sampler, "steps": 3, "guidance": 2.0}
    together = run.sample(3, condition={"encoder_hidden_states": context}, **options)
    *_, last = run.sample_states(np.array([2]), condition={"encoder_hidden_states": context[2:]}, **options)
    assert np.array_equal(run.codec.decode(last.x), together[2:])


def test_guidance_is_refused_where_nothing_says_nothing(run, described):
    model, process = run.model, run.process
    bare = pydiff.Run(model, process, {}).pipeline
    asked = Condition({"encoder_hidden_states": described.columns["encoder_hidden_states"][:2]})
    assert bare.sample(2, steps=2, asked=asked).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="never shown samples without encoder_hidden_states, so guidance") as error:
        bare.sample(2, steps=2, asked=asked, guidance=3.0)
    assert "\n" not in str(error.value)


def test_guidance_with_a_longer_context_than_the_null_one(run):
    longer = np.random.default_rng(2).standard_normal((2, TOKENS + 4, WIDTH)).astype(np.float32)
    drawn = [run.sample(2, steps=3, condition={"encoder_hidden_states": longer}, guidance=w) for w in (1.0, 3.0)]
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"encoder_hidden_states": np.zeros((3, TOKENS, WIDTH))}, r"must have shape \(2, 3, 5\), got \(3, 3, 5\)"),
        ({"encoder_hidden_states": np.zeros((2, TOKENS, WIDTH + 1))}, "must have shape"),
        ({"prompt": np.zeros(2)}, "takes no condition 'prompt'; it takes encoder_hidden_states"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(run, condition, message):
    with pytest.raises(ValueError, match=message):
        run.sample(2, steps=2, condition=condition)


def test_classes_and_a_context_together(described):
    digits = load("digits").subset(np.arange(60))
    both = Dataset("both", digits.images, digits.labels, digits.classes, [], [], described.columns, described.nothing)
    model = context_unet(WIDTH, classes=both.conditioning.embeddings)
    run = pydiff.train(both, progress=False, conditional=True, model=model, **TINY)
    turns = run.sample(2, steps=3, guidance=3.0)
    assert not np.array_equal(turns, run.sample(2, steps=3, guidance=3.0, labels=[5, 6]))


def test_one_recorded_network_serves_two_lengths_of_context():
    model = context_unet(WIDTH)
    played, rng = Played(model), np.random.default_rng(0)
    x, t = rng.standard_normal((2, 8, 8, 1)).astype(np.float32), np.array([3, 7])
    for tokens in (2, 6, 2, 6):
        context = rng.standard_normal((2, tokens, WIDTH)).astype(np.float32)
        with no_grad():
            expected = model(x, t, encoder_hidden_states=context).data
        assert_same_bits([played(x, t, encoder_hidden_states=context)], [expected])
    assert len(played.plans) == 2


def test_a_network_without_a_body_is_called_as_it_is(run):
    class Plain:
        def __call__(self, x, t, **condition):
            return run.model(x, t, **condition)

    context = np.ones((1, TOKENS, WIDTH), np.float32)
    x = np.zeros((1, 8, 8, 1), np.float32)
    assert_same_bits(
        [Played(Plain())(x, np.array([1]), encoder_hidden_states=context)],
        [Played(run.model)(x, np.array([1]), encoder_hidden_states=context)],
    )


# ---- latents -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    out = tmp_path_factory.mktemp("latent") / "run"
    return pydiff.train("digits", out=out, progress=False, codec=Folded((8, 8, 1)), **TINY)


def test_the_toy_codec_is_what_it_should_be():
    images = load("digits").images[:20]
    codec = Folded((8, 8, 1))
    x = codec.encode(images)
    assert x.shape == (20, *codec.shape) == (20, 4, 4, 4)
    assert np.abs(x).max() > 5
    assert np.array_equal(codec.decode(x), images)
    assert np.array_equal(unfold(fold(images)), images)


def test_latents_are_trained_drawn_and_opened(latent):
    assert latent.shape == (4, 4, 4)
    assert latent.model.config["in_channels"] == 4
    drawn = latent.sample(4, seed=1, steps=5)
    assert (drawn.shape, drawn.dtype) == ((4, 8, 8, 1), np.uint8)
    *_, last = latent.sample_states(4, 1, steps=5)
    assert np.array_equal(latent.codec.decode(last.x), drawn)
    assert np.abs(last.x0).max() > 1.5  # nobody cut it to what a pixel can be
    opened = pydiff.load(latent.directory)
    assert isinstance(opened.codec, Folded)
    assert np.array_equal(opened.sample(4, seed=1, steps=5), drawn)


def test_a_learned_map_is_followed_to_the_end(latent):
    """DDIM with a network that knows the answer returns the image: encoding, sampler and decoding fit together."""
    image = load("digits").images[7:8]
    x0, process = latent.codec.encode(image), latent.process

    class Knows:
        def __call__(self, x, t, **_condition):
            alpha, sigma = process.schedule.at(np.asarray(t))
            eps = (x - alpha.reshape(-1, 1, 1, 1) * x0) / sigma.reshape(-1, 1, 1, 1)
            return pydiff.Tensor(eps.astype(np.float32))

    pipeline = type(latent.pipeline)(Knows(), process, latent.codec)
    assert np.array_equal(pipeline.sample(1, steps=10), image)


def test_a_stopped_latent_run_goes_on_and_other_codecs_are_refused(latent, tmp_path):
    options = pydiff.Options(**TINY)
    train_until(tmp_path / "run", 3, load("digits"), options, codec=Folded((8, 8, 1)))
    with pytest.raises(ValueError, match=r"holds a run with codec = .*folded.*, not .*pixels"):
        pydiff.train("digits", out=tmp_path / "run", progress=False, **TINY)
    resumed = pydiff.train("digits", out=tmp_path / "run", progress=False, codec=Folded((8, 8, 1)), **TINY)
    arrays = [checkpoint.load(checkpoint.latest(r.directory / "checkpoints"))[0] for r in (resumed, latent)]
    assert np.array_equal(arrays[0]["optimizer"]["p"], arrays[1]["optimizer"]["p"])


def test_latents_are_edited(latent):
    images = load("digits").images[:3]
    left = np.zeros((8, 8), bool)
    left[:, :4] = True
    drawn = latent.inpaint(images, left, steps=4, resample=2)
    assert np.array_equal(drawn[:, :, 4:], images[:, :, 4:])
    assert (drawn[:, :, :4] != images[:, :, :4]).any()
    for edited in (latent.image_to_image(images, 0.5, steps=4), latent.variations(images, 0.2, steps=4)):
        assert edited.shape == images.shape
    assert latent.interpolate(0, 1, [0.0, 0.5], steps=3).shape == (2, 8, 8, 1)
    weak, strong = (latent.image_to_image(images, s, steps=20).astype(int) for s in (0.05, 1.0))
    assert np.abs(weak - images).mean() < np.abs(strong - images).mean()


def test_latents_are_reported(latent, tmp_path):
    page = latent.report(tmp_path, n=4, steps=5).read_text("utf-8")
    sizes = {tuple(map(int, pair)) for pair in re.findall(r'<canvas width="(\d+)" height="(\d+)"', page)}
    assert sizes == {(8, 8)}  # images, not latents
    assert "data:image/png;base64," in latent._repr_html_()
    assert (latent.directory / "samples.png").stat().st_size > 100
