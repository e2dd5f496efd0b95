"""The U-Net of DDPM for CIFAR-10 (Ho et al. 2020; diffusers' google/ddpm-cifar10-32), 35.7 million parameters, and what
it asks of its kernels. The lists are compared with the model itself in tests/test_gpu_benchmark.py.
"""

CONFIG = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}

# The same in small, for machines without a GPU.
TINY_CONFIG = CONFIG | {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}

# (side, filter, stride, channels in, channels out): how often in one forward. Stride 2 pads below and on the right; the
# linear layers of attention are 1 x 1 filters; those of the time embedding have one pixel and are not here.
CONVS = {
    (32, 3, 1, 128, 128): 7,
    (16, 3, 1, 256, 256): 7,
    (32, 3, 1, 256, 128): 2,
    (32, 3, 1, 256, 256): 1,
    (32, 3, 1, 384, 128): 1,
    (16, 3, 1, 512, 256): 2,
    (8, 3, 1, 256, 256): 8,
    (8, 3, 1, 512, 256): 3,
    (16, 3, 1, 384, 256): 1,
    (16, 3, 1, 128, 256): 1,
    (4, 3, 1, 256, 256): 11,
    (4, 3, 1, 512, 256): 3,
    (16, 1, 1, 256, 256): 20,
    (32, 3, 2, 128, 128): 1,
    (32, 1, 1, 256, 128): 2,
    (32, 1, 1, 384, 128): 1,
    (16, 3, 2, 256, 256): 1,
    (16, 1, 1, 512, 256): 2,
    (16, 1, 1, 384, 256): 1,
    (8, 3, 2, 256, 256): 1,
    (32, 3, 1, 3, 128): 1,
    (32, 3, 1, 128, 3): 1,
    (8, 1, 1, 512, 256): 3,
    (16, 1, 1, 128, 256): 1,
    (4, 1, 1, 256, 256): 4,
    (4, 1, 1, 512, 256): 3,
}

# Elements of a parameter: how many such parameters.
PARAMETERS = {
    1179648: 8, 884736: 1, 589824: 29, 442368: 1, 294912: 3, 262144: 1, 147456: 8, 131072: 25, 98304: 1, 65536: 30,
    49152: 1, 32768: 3, 3456: 2, 512: 18, 384: 4, 256: 154, 128: 38, 3: 1,
}  # fmt: skip


def parameter_sizes():
    """Elements of every parameter."""
    return [size for size, count in PARAMETERS.items() for _ in range(count)]


def macs():
    """Multiplications and additions of the convolutions, in one forward of one image."""
    return sum((size // stride) ** 2 * k * k * cin * cout * n for (size, k, stride, cin, cout), n in CONVS.items())
