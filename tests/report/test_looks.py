"""Attention that is listened to: p v is what the operation gave, shares add up to 1, maps stand where pixels are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff import backend
from pydiff.models import UNet2DCondition
from pydiff.report.looks import listen, maps
from pydiff.tensor import no_grad


def unet():
    """Two levels, one of which attends to a context of 5 numbers a token, as the middle does."""
    return UNet2DCondition(
        sample_size=8, in_channels=1, out_channels=1, cross_attention_dim=5, attention_head_dim=2, norm_num_groups=4,
        block_out_channels=(8, 16), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def asked(network, n, size, tokens, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, *size, network.config["in_channels"])).astype(dtype)
    width = network.config["cross_attention_dim"]
    return x, np.full(n, 3), rng.standard_normal((n, tokens, width)).astype(dtype)


def big(network):
    """With weights that tell tokens apart: fresh ones look everywhere alike."""
    for name, p in network.named_parameters():
        if "to_q" in name or "to_k" in name:
            p.data *= 6
    return network


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 3), height=st.sampled_from([5, 8]), width=st.sampled_from([7, 8]),
    tokens=st.sampled_from([1, 5, 24]), dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 9),
)  # fmt: skip
def test_p_v_is_what_the_operation_gave(n, height, width, tokens, dtype, seed):
    network = big(unet().astype(dtype))
    x, t, context = asked(network, n, (height, width), tokens, dtype, seed)
    heard = listen(network, x, t, encoder_hidden_states=context)
    assert len(heard) == sum("attn2.to_q.weight" in name for name, _ in network.named_parameters()) > 0
    # p is as wrong, relatively, as its exponent is absolutely: rounding of scores and of their log-sum-exp.
    largest = max(np.abs(one.lse).max() for one in heard) + 20
    tolerance = 8 * float(np.finfo(dtype).eps) * largest
    for one in heard:
        assert one.k.shape[1] == tokens
        np.testing.assert_allclose(one.shares().sum(-1), 1, rtol=tolerance)
        np.testing.assert_allclose(one.result(), one.out, rtol=0, atol=tolerance * np.abs(one.v).max())
    shares = maps(heard, (height, width))
    assert shares.shape[:2] == (n, tokens)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=tolerance)
    if tokens > 1:
        assert np.ptp(shares) > 0.01


def test_listening_changes_nothing_and_other_devices_say_the_same():
    network = big(unet())
    x, t, context = asked(network, 2, (8, 8), 5, np.float32)
    with no_grad():
        before = network(x, t, encoder_hidden_states=context).data.copy()
    heard = listen(network, x, t, encoder_hidden_states=context)
    with no_grad():
        np.testing.assert_array_equal(network(x, t, encoder_hidden_states=context).data, before)
    plain = listen(big(unet().astype(np.float64)), x.astype(np.float64), t, encoder_hidden_states=context)
    np.testing.assert_allclose(maps(heard, (8, 8)), maps(plain, (8, 8)), atol=1e-4)


def test_a_coarse_layer_shows_as_blocks():
    from pydiff.report.looks import Listened

    def layer(side, bright):
        """Pixel `bright` looks at token 1, all others at token 0."""
        q = np.full((1, side * side, 1), -50.0)
        q[0, bright] = 50
        k = np.array([[[-1.0], [1.0]]])
        s = q @ k.swapaxes(1, 2)
        lse = np.log(np.exp(s - 50).sum(-1))[:, None] + 50
        return Listened(q, k, k, lse, None, 1, 1.0)

    shares = maps([layer(4, 5), layer(2, 3)], (8, 8))
    assert shares.shape == (1, 2, 4, 4)
    expected = np.zeros((4, 4))
    expected[1, 1] += 0.5
    expected[2:, 2:] += 0.5
    np.testing.assert_allclose(shares[0, 1], expected, atol=1e-12)
    with pytest.raises(ValueError, match="5 pixels are no level of an image of 8 x 8"):
        maps([layer(4, 0)._replace(q=np.zeros((1, 5, 1)))], (8, 8))


def test_the_kernel_keeps_what_is_read():
    if backend.cpu is None:
        pytest.skip("compiled kernels are not here")
    from pydiff.ops.attention import Attention

    operation, rng = Attention(), np.random.default_rng(0)
    q, k = (rng.standard_normal((1, n, 4)).astype(np.float32) for n in (3, 5))
    operation.forward(q, k, k, None, heads=2, scale=0.5, causal=False)
    assert operation.saved[-1].shape == (1, 2, 3)
