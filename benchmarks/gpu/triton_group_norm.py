"""Group norm with SiLU for channels-last images in Triton: what somebody who knows Triton would write, as a peer for
the CUDA kernel. Three launches each way:

    forward    moments of every channel in chunks of pixels -> mean and rstd of every group -> normalise and activate
    backward   sums of dz and dz x_hat, likewise in chunks -> their means over a group -> dx

dgamma and dbeta are those sums, added up. A tile is `rows` pixels times `columns` channels, whatever the groups are:
they come together in the small middle kernel, so that reads are coalesced for any number of channels in a group.
Moments are merged as in Chan et al. 1979.
"""

import os

import torch

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

ROWS, COLUMNS = 64, 64


def interpreted():
    """Whether Triton runs its kernels in Python, without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def forward(x, gamma, beta, groups, eps):
    """x (n, s, c); gamma, beta (c,) float32. Returns y, mean (n, groups) and rstd (n, groups)."""
    n, s, c = x.shape
    chunks = triton.cdiv(s, ROWS)
    grid = (n, chunks, triton.cdiv(c, COLUMNS))
    partial = torch.empty((2, n, chunks, c), device=x.device)
    mean, rstd = (torch.empty((n, groups), device=x.device) for _ in range(2))
    y = torch.empty_like(x)
    tile = {"rows": ROWS, "columns": COLUMNS}
    inside = {"chunks": triton.next_power_of_2(chunks), "width": triton.next_power_of_2(c // groups)}
    moments_kernel[grid](x, partial[0], partial[1], s, c, **tile)
    groups_kernel[(n, groups)](partial[0], partial[1], mean, rstd, s, c, groups, eps, rows=ROWS, **inside)
    apply_kernel[grid](x, gamma, beta, mean, rstd, y, s, c, groups, **tile)
    return y, mean, rstd


def backward(dy, x, gamma, beta, mean, rstd, groups):
    """dx, dgamma and dbeta, from what `forward` was given and gave."""
    n, s, c = x.shape
    chunks = triton.cdiv(s, ROWS)
    grid = (n, chunks, triton.cdiv(c, COLUMNS))
    partial = torch.empty((2, n, chunks, c), device=x.device)
    m1, m2 = (torch.empty((n, groups), device=x.device) for _ in range(2))
    dx = torch.empty_like(x)
    tile = {"rows": ROWS, "columns": COLUMNS}
    inside = {"chunks": triton.next_power_of_2(chunks), "width": triton.next_power_of_2(c // groups)}
    sums_kernel[grid](dy, x, gamma, beta, mean, rstd, partial[0], partial[1], s, c, groups, **tile)
    means_kernel[(n, groups)](partial[0], partial[1], gamma, m1, m2, s, c, groups, rows=ROWS, **inside)
    dx_kernel[grid](dy, x, gamma, beta, mean, rstd, m1, m2, dx, s, c, groups, **tile)
    dbeta, dgamma = partial.sum((1, 2))
    return dx, dgamma, dbeta


if triton is not None:

    @triton.jit
    def tile_of(s, c, rows: tl.constexpr, columns: tl.constexpr):
        """Offsets of this program's tile, its mask, and the rows and columns alone."""
        row = tl.program_id(1) * rows + tl.arange(0, rows)
        column = tl.program_id(2) * columns + tl.arange(0, columns)
        start = tl.program_id(0).to(tl.int64) * s * c
        mask = (row < s)[:, None] & (column < c)[None, :]
        return start + row[:, None] * c + column[None, :], mask, column

    @triton.jit
    def partial_at(c, column):
        """Where the tile's numbers for every channel go: (n, chunks, c)."""
        return (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * c + column

    @triton.jit
    def moments_kernel(x, mean, m2, s, c, rows: tl.constexpr, columns: tl.constexpr):
        """Mean and sum of squared differences from it, of every channel in this chunk."""
        at, mask, column = tile_of(s, c, rows, columns)
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(rows, s - tl.program_id(1) * rows)
        mu = tl.sum(v, axis=0) / count
        d = tl.where(mask, v - mu[None, :], 0.0)
        to = partial_at(c, column)
        tl.store(mean + to, mu, mask=column < c)
        tl.store(m2 + to, tl.sum(d * d, axis=0), mask=column < c)

    @triton.jit
    def group_tile(s, c, groups, rows: tl.constexpr, chunks: tl.constexpr, width: tl.constexpr):
        """Offsets into (n, chunks, c) of one sample's group, their mask, the chunks' pixels; channels, which exist."""
        share = c // groups
        chunk, k = tl.arange(0, chunks), tl.arange(0, width)
        count = tl.maximum(tl.minimum(rows, s - chunk * rows), 0)
        channel = tl.program_id(1) * share + k
        real = (s + rows - 1) // rows
        at = (tl.program_id(0) * real + chunk)[:, None] * c + channel[None, :]
        return at, (chunk < real)[:, None] & (k < share)[None, :], count, channel, k < share

    @triton.jit
    def groups_kernel(
        mean_in, m2_in, mean, rstd, s, c, groups, eps, rows: tl.constexpr, chunks: tl.constexpr, width: tl.constexpr
    ):
        """Moments of channels in chunks, put together to those of a group."""
        at, mask, count, _, _ = group_tile(s, c, groups, rows, chunks, width)
        part = tl.load(mean_in + at, mask=mask, other=0.0)
        m2 = tl.load(m2_in + at, mask=mask, other=0.0)
        weight = tl.where(mask, count[:, None], 0).to(tl.float32)
        total = s * (c // groups)
        mu = tl.sum(tl.sum(weight * part, axis=1), axis=0) / total
        d = part - mu
        variance = tl.sum(tl.sum(m2 + weight * d * d, axis=1), axis=0) / total
        to = tl.program_id(0) * groups + tl.program_id(1)
        tl.store(mean + to, mu)
        tl.store(rstd + to, 1 / tl.sqrt(variance + eps))

    @triton.jit
    def of_group(pointer, column, c, groups):
        """A number of this sample for every column's group."""
        return tl.load(pointer + tl.program_id(0) * groups + column // (c // groups), mask=column < c, other=0.0)

    @triton.jit
    def x_hat_and_z(x, at, mask, gamma, beta, mean, rstd, column, c, groups):
        """The normalised tile, and with gamma and beta."""
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        mu, r = of_group(mean, column, c, groups), of_group(rstd, column, c, groups)
        x_hat = (v - mu[None, :]) * r[None, :]
        g = tl.load(gamma + column, mask=column < c, other=0.0)
        b = tl.load(beta + column, mask=column < c, other=0.0)
        return x_hat, x_hat * g[None, :] + b[None, :], g, r

    @triton.jit
    def apply_kernel(x, gamma, beta, mean, rstd, y, s, c, groups, rows: tl.constexpr, columns: tl.constexpr):
        """y = silu(z)"""
        at, mask, column = tile_of(s, c, rows, columns)
        _, z, _, _ = x_hat_and_z(x, at, mask, gamma, beta, mean, rstd, column, c, groups)
        tl.store(y + at, (z * tl.sigmoid(z)).to(y.dtype.element_ty), mask=mask)

    @triton.jit
    def dz_of(dy, z, at, mask):
        """dy silu'(z)"""
        sig = tl.sigmoid(z)
        return tl.load(dy + at, mask=mask, other=0.0).to(tl.float32) * sig * (1 + z * (1 - sig))

    @triton.jit
    def sums_kernel(
        dy, x, gamma, beta, mean, rstd, dz_sum, dzx_sum, s, c, groups, rows: tl.constexpr, columns: tl.constexpr
    ):
        """Sums of dz and of dz x_hat for every channel in this chunk."""
        at, mask, column = tile_of(s, c, rows, columns)
        x_hat, z, _, _ = x_hat_and_z(x, at, mask, gamma, beta, mean, rstd, column, c, groups)
        dz = dz_of(dy, z, at, mask)
        to = partial_at(c, column)
        tl.store(dz_sum + to, tl.sum(dz, axis=0), mask=column < c)
        tl.store(dzx_sum + to, tl.sum(dz * x_hat, axis=0), mask=column < c)

    @triton.jit
    def means_kernel(
        dz_sum, dzx_sum, gamma, m1, m2, s, c, groups, rows: tl.constexpr, chunks: tl.constexpr, width: tl.constexpr
    ):
        """Means over a group of dz gamma and of dz gamma x_hat."""
        at, mask, _, channel, present = group_tile(s, c, groups, rows, chunks, width)
        g = tl.load(gamma + channel, mask=present, other=0.0)[None, :]
        first = tl.load(dz_sum + at, mask=mask, other=0.0) * g
        second = tl.load(dzx_sum + at, mask=mask, other=0.0) * g
        total = s * (c // groups)
        to = tl.program_id(0) * groups + tl.program_id(1)
        tl.store(m1 + to, tl.sum(tl.sum(first, axis=1), axis=0) / total)
        tl.store(m2 + to, tl.sum(tl.sum(second, axis=1), axis=0) / total)

    @triton.jit
    def dx_kernel(dy, x, gamma, beta, mean, rstd, m1, m2, dx, s, c, groups, rows: tl.constexpr, columns: tl.constexpr):
        """dx = rstd (dz gamma - m1 - x_hat m2)"""
        at, mask, column = tile_of(s, c, rows, columns)
        x_hat, z, g, r = x_hat_and_z(x, at, mask, gamma, beta, mean, rstd, column, c, groups)
        dz = dz_of(dy, z, at, mask)
        a, b = of_group(m1, column, c, groups), of_group(m2, column, c, groups)
        value = r[None, :] * (dz * g[None, :] - a[None, :] - x_hat * b[None, :])
        tl.store(dx + at, value.to(dx.dtype.element_ty), mask=mask)
