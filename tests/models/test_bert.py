"""BERT against transformers: states and every gradient, in float64, over drawn configurations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff.models.bert import ACTIVATIONS, BertModel, options_of
from pydiff.tensor import Tensor
from tests.compare import assert_close
from tests.peers import import_transformers

SMALL = {
    "vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers():
    return import_transformers()


def made(options, seed=0):
    model = BertModel(**{**SMALL, **options}, seed=seed).astype(np.float64)
    rng = np.random.default_rng(seed)
    for p in model.parameters():  # normalisations start at 1 and 0, where mistakes can hide
        p.data += 0.1 * rng.standard_normal(p.shape)
    return model


@settings(max_examples=12, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "hidden_act": st.sampled_from(list(ACTIVATIONS)),
            "num_attention_heads": st.sampled_from([1, 4, 8]),
            "num_hidden_layers": st.sampled_from([1, 3]),
            "layer_norm_eps": st.just(1e-2),
            "type_vocab_size": st.just(1),
        },
    ),
    n=st.integers(1, 3),
    tokens=st.integers(1, 9),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_states_and_gradients_are_those_of_transformers(transformers, options, n, tokens, masked, seed):
    import torch

    ours, rng = made(options, seed), np.random.default_rng(seed)
    config = transformers.BertConfig(**ours.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config._attn_implementation = "sdpa"  # the other one takes its softmax in float32
    theirs = transformers.BertModel(config, add_pooling_layer=False).double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in ours.state_dict().items()})
    ids, weight = rng.integers(0, 30, (n, tokens)), rng.standard_normal((n, tokens, 8))
    mask = np.ones((n, tokens), np.int64)
    if masked:
        mask[0, tokens // 2 + 1 :] = 0
    got = ours(ids, mask if masked else None)
    expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    assert_close(got.data * mask[..., None], (expected * torch.from_numpy(mask)[..., None]).detach().numpy(), 1e-9)
    seen = weight * mask[..., None]
    (got * Tensor(seen)).sum().backward()
    (expected * torch.from_numpy(seen)).sum().backward()
    gradients = dict(theirs.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in gradients.values())  # that of a key's bias is nothing but rounding
    for name, p in ours.named_parameters():
        assert_close(p.grad.transpose(p.file_axes), gradients[name].grad.numpy(), 1e-7, 1e-14 * largest, name)


def test_old_files_and_other_models():
    model = made({})
    state = model.state_dict() | {"embeddings.position_ids": np.arange(9)[None], "pooler.dense.bias": np.zeros(8)}
    again = made({}, seed=1).load_state_dict(state)
    np.testing.assert_array_equal(again(np.array([[1, 2]])).data, model(np.array([[1, 2]])).data)
    assert options_of({"model_type": "bert", "hidden_size": 8, "use_cache": True}) == {"hidden_size": 8}
    for config, message in (
        ({"model_type": "roberta"}, "this is a 'roberta', expected a BERT"),
        ({"position_embedding_type": "relative_key"}, "with absolute places"),
    ):
        with pytest.raises(ValueError, match=message):
            options_of(config)
    for options, message in (
        ({"hidden_act": "tanh"}, "hidden_act must be one of"),
        ({"num_attention_heads": 3}, "8 channels do not divide into 3 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            BertModel(**{**SMALL, **options})
    for ids, mask, message in (
        (np.zeros((1, 10), int), None, r"token numbers must be integers \(N, 1 .. 9\)"),
        (np.zeros((1, 2), int), np.ones((1, 3)), r"attention_mask must be \(1, 2\)"),
        (np.array([[30]]), None, "ids must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, mask)
