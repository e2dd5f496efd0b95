"""CLIP's text tower against transformers: states, pooled states, projections and every gradient, in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.models import CLIPTextModel, CLIPTextModelWithProjection, build, name_of
from pydiff.models.clip import ACTIVATIONS
from pydiff.tensor import Tensor
from tests.compare import assert_close
from tests.peers import import_transformers

SMALL = {
    "vocab_size": 40, "hidden_size": 8, "intermediate_size": 12, "projection_dim": 6, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 9, "bos_token_id": 38, "eos_token_id": 39,
}  # fmt: skip
OPTIONS = {
    "plain": {},
    **{activation: {"hidden_act": activation} for activation in ACTIVATIONS},
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1},
    "heads of one channel": {"num_attention_heads": 8},
    "the wrong end": {"eos_token_id": 2},
    "another end": {"eos_token_id": 7},
    "eps": {"layer_norm_eps": 1e-2},
    "dropout in training alone": {"attention_dropout": 0.3},
    "padding that decides nothing": {"pad_token_id": 0, "bos_token_id": 0},
}


@pytest.fixture(scope="module")
def transformers():
    return import_transformers()


def made(cls, options, seed=0):
    model = cls(**{**SMALL, **options}, seed=seed).astype(np.float64)
    rng = np.random.default_rng(seed)
    for p in model.parameters():  # normalisations start at 1 and 0, where mistakes can hide
        p.data += 0.1 * rng.standard_normal(p.shape)
    return model


def twin_of(transformers, ours):
    import torch

    config = transformers.CLIPTextConfig(**ours.config)
    config._attn_implementation = "sdpa"  # the other one takes its softmax in float32
    theirs = getattr(transformers, name_of(ours))(config).double().eval()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    return theirs


def prompts(config, n, tokens, seed):
    """Token numbers with an end in each row, not always at the same place, nor only one."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config["vocab_size"], (n, tokens))
    if config["eos_token_id"] < config["vocab_size"]:
        ids[np.arange(n), rng.integers(0, tokens, n)] = config["eos_token_id"]
    return ids


def compare(transformers, options, projection=False, seed=0, n=3, tokens=7, masked=False):
    import torch

    ours = made(CLIPTextModelWithProjection if projection else CLIPTextModel, options, seed)
    theirs, ids = twin_of(transformers, ours), prompts(ours.config, n, tokens, seed)
    mask = None
    if masked:
        mask = np.ones((n, tokens), np.int64)
        mask[0, tokens // 2 + 1 :] = 0
    got = ours(ids, mask)
    expected = theirs(
        torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask), output_hidden_states=True
    )
    pairs = [("last_hidden_state", expected.last_hidden_state)]
    pairs += [("text_embeds", expected.text_embeds)] if projection else [("pooler_output", expected.pooler_output)]
    assert len(got.hidden_states) == len(expected.hidden_states) == ours.config["num_hidden_layers"] + 1
    for i, (mine, their) in enumerate(zip(got.hidden_states, expected.hidden_states, strict=True)):
        assert_close(mine.data, their.detach().numpy(), rtol=1e-9, what=f"hidden state {i}")
    rng, total, their_total = np.random.default_rng(seed + 1), None, None
    for name, their in pairs:
        mine = getattr(got, name)
        assert_close(mine.data, their.detach().numpy(), rtol=1e-9, what=name)
        weights = rng.standard_normal(mine.shape)
        part = (mine * Tensor(weights)).sum()
        their_part = (their * torch.from_numpy(weights)).sum()
        total, their_total = (part, their_part) if total is None else (total + part, their_total + their_part)
    total.backward()
    their_total.backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    mine = dict(ours.named_parameters())
    assert gradients.keys() == mine.keys()
    # The bias of k shifts all logits of a query alike, so its gradient is 0 and rounding errors are found.
    largest = max(np.abs(g).max() for g in gradients.values())
    for name, p in mine.items():
        assert_close(p.grad.transpose(p.file_axes), gradients[name], rtol=1e-7, atol=1e-14 * largest, what=name)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_transformers(transformers, name, projection):
    compare(transformers, OPTIONS[name], projection)


@given(st.data())
def test_drawn_configurations_equal_transformers(transformers, data):
    heads, width = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([4, 5, 8]))
    vocabulary = data.draw(st.sampled_from([3, 40, 131]))
    options = {
        "num_attention_heads": heads, "hidden_size": heads * width, "vocab_size": vocabulary,
        "intermediate_size": data.draw(st.sampled_from([1, 7, 16])),
        "projection_dim": data.draw(st.sampled_from([1, 5, 8])),
        "num_hidden_layers": data.draw(st.integers(1, 3)),
        "max_position_embeddings": data.draw(st.sampled_from([7, 9, 77])),
        "hidden_act": data.draw(st.sampled_from(list(ACTIVATIONS))),
        "layer_norm_eps": data.draw(st.sampled_from([1e-5, 1e-6, 1e-1])),
        "eos_token_id": data.draw(st.sampled_from([2, 1, vocabulary - 1, vocabulary + 5])),
    }  # fmt: skip
    more = {"n": data.draw(st.integers(1, 3)), "tokens": data.draw(st.integers(1, 7))}
    more |= {"masked": data.draw(st.booleans()), "seed": data.draw(st.integers(0, 99))}
    compare(transformers, options, data.draw(st.booleans()), **more)


def test_layers_are_skipped_before_the_last_normalisation(transformers):
    import torch

    ours = made(CLIPTextModel, {"num_hidden_layers": 3})
    theirs, ids = twin_of(transformers, ours), prompts(ours.config, 2, 9, 0)
    states = theirs(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    for skip in range(3):
        expected = theirs.final_layer_norm(states[-(skip + 1)]).detach().numpy()
        assert_close(ours(ids, skip=skip).last_hidden_state.data, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="3 layers cannot be skipped of 3"):
        ours(ids, skip=3)


def test_no_token_sees_what_comes_after_it():
    model = made(CLIPTextModel, {})
    ids = prompts(model.config, 1, 9, 3)
    changed = ids.copy()
    changed[0, 5:] = (changed[0, 5:] + 1) % 40
    a, b = (model(given).last_hidden_state.data for given in (ids, changed))
    np.testing.assert_array_equal(a[0, :5], b[0, :5])
    assert np.abs(a[0, 5:] - b[0, 5:]).min() > 0


def test_the_pooled_state_is_that_of_the_first_end():
    model = made(CLIPTextModel, {})
    ids = np.array([[38, 5, 39, 39, 39], [38, 5, 6, 7, 39], [38, 1, 1, 1, 1]])
    np.testing.assert_array_equal(model.ends(ids), [2, 4, 0])
    states = model(ids)
    np.testing.assert_array_equal(states.pooler_output.data, states.last_hidden_state.data[[0, 1, 2], [2, 4, 0]])
    old = made(CLIPTextModel, {"eos_token_id": 2})
    np.testing.assert_array_equal(old.ends(np.array([[38, 2, 5, 39, 2]])), [3])


def test_old_names_are_read():
    model = made(CLIPTextModel, {})
    old = {f"text_model.{name}": array for name, array in model.state_dict().items()}
    old["text_model.embeddings.position_ids"] = np.arange(9)[None]
    old["text_projection.weight"] = np.zeros((6, 8))
    again = build("CLIPTextModel", model.config).astype(np.float64).load_state_dict(old)
    for (name, p), (_, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_act": "tanh"}, "hidden_act must be one of"),
        ({"num_attention_heads": 3}, "8 channels do not divide into 3 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        ({"eos_token_id": [1, 2]}, "eos_token_id must be one token's number"),
    ],
)
def test_what_cannot_be_built_is_said(options, words):
    with pytest.raises(ValueError, match=words):
        CLIPTextModel(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((1, 10), int), "integers .N, 1 .. 9., got int64 .1, 10."),
        (np.zeros((1, 0), int), "integers"),
        (np.zeros(3, int), "integers"),
        (np.zeros((1, 3)), "integers"),
        (np.array([[40]]), "must lie in 0..39, got 40..40"),
        (np.array([[-1]]), "must lie in 0..39"),
    ],
)
def test_token_numbers_that_do_not_fit_are_said(ids, words):
    with pytest.raises(ValueError, match=words):
        CLIPTextModel(**SMALL)(ids)
