"""Why are they called diffusion models? A drop of ink in water, and an image whose pixel values do what the ink does.

Ink: particles do a random walk (Einstein 1905), and their density p obeys the diffusion equation, Fick's second law,

    dp/dt = D laplace p,        p_0 a normal of variance v:   p_t is the normal of variance v + 2 D t, exactly.

An image: every pixel's value does the same walk, and the histogram of the values is the density. That is the forward
process of a diffusion model, and its exact solution is the histogram convolved with a normal. `write_ink_page` computes
both numerically, by time steps of the equation and by particles, beside the exact solutions.
"""

from pathlib import Path

import numpy as np

from pydiff import random
from pydiff.codec import Pixels
from pydiff.report.film import save_film
from pydiff.report.particles import cloud, rainbow
from pydiff.report.story import player, table, write_story

HALF, CELLS = 4.0, 97  # the water extends from -HALF to HALF; cells per side
D, START, END = 0.5, 0.09, 1.2  # diffusion constant, variance of the drop, last moment
MOMENTS, PARTICLES = 31, 3000
DARK = np.array([30, 40, 110])  # of the ink


def exact_drop(x, y, t):
    """The density of the drop at (x, y) and time t."""
    variance = START + 2 * D * t
    return np.exp(-(x**2 + y**2) / (2 * variance)) / (2 * np.pi * variance)


def drop_by_steps(moments):
    """The densities (len(moments), CELLS, CELLS) at increasing times, by time steps of the equation from t = 0.

    Five-point Laplacian, explicit steps of at most 0.2 h^2 / D; nothing flows through the walls.
    """
    side = np.linspace(-HALF, HALF, CELLS)
    h = side[1] - side[0]
    p, found, now = exact_drop(side[None], side[:, None], 0.0), [], 0.0
    for moment in moments:
        steps = int(np.ceil((moment - now) / (0.2 * h**2 / D)))
        for _ in range(steps):
            q = np.pad(p, 1, mode="edge")
            p = p + D * (moment - now) / steps / h**2 * (
                q[:-2, 1:-1] + q[2:, 1:-1] + q[1:-1, :-2] + q[1:-1, 2:] - 4 * p
            )
        now = moment
        found.append(p)
    return np.stack(found)


def walks(moments, seed=0, count=PARTICLES):
    """Particles (len(moments), count, 2) that start in the drop and do a random walk."""
    numbers, before = np.arange(count), 0.0
    x = np.sqrt(START) * random.normal(random.key(seed, random.SAMPLE, numbers), (2,), np.float64)
    found = []
    for k, moment in enumerate(moments):
        z = random.normal(random.key(seed, random.SAMPLE, numbers, k + 1), (2,), np.float64)
        x, before = x + np.sqrt(2 * D * (moment - before)) * z, moment
        found.append(x)
    return np.stack(found)


def compared(moments, densities, particles):
    """Rows (t, exact variance, that of the steps, that of the particles, largest density error in % of its peak)."""
    side = np.linspace(-HALF, HALF, CELLS)
    rows = []
    for t, p, x in zip(moments, densities, particles, strict=True):
        exact = exact_drop(side[None], side[:, None], t)
        variance = float((p * side[None] ** 2).sum() / p.sum())
        rows.append(
            (float(t), START + 2 * D * t, variance, float((x**2).mean()), float(np.abs(p - exact).max() / exact.max()))
        )
    return rows


def pixels_that_diffuse(image, moments, seed=0):
    """(images, histograms): an image (H, W, C) uint8 whose values do a random walk, as in a diffusion model.

    At moment t the values are x_t = exp(-t) x_0 + sqrt(1 - exp(-2 t)) eps, a walk with a drift to the middle (Ornstein
    and Uhlenbeck 1930), so that they stay in range. histograms: per moment (counted, exact) densities; exact is None at
    t = 0.
    """
    codec = Pixels(image.shape)
    x0 = codec.encode(image[None])[0].astype(np.float64)
    levels, counts = np.unique(x0, return_counts=True)
    edges = np.linspace(-4, 4, 81)
    middles = (edges[1:] + edges[:-1]) / 2
    z = random.normal(random.key(seed, random.NOISE, [0]), x0.shape, np.float64)[0]
    images, histograms = [], []
    for t in moments:
        alpha, sigma = np.exp(-t), np.sqrt(1 - np.exp(-2 * t))
        x = alpha * x0 + sigma * z
        images.append(codec.show_x(x[None].astype(np.float32))[0])
        counted = np.histogram(x, edges, density=True)[0]
        exact = None
        if sigma > 0:
            far = (middles[:, None] - alpha * levels) / sigma
            exact = (np.exp(-(far**2) / 2) @ (counts / counts.sum())) / (sigma * np.sqrt(2 * np.pi))
        histograms.append((counted, exact))
    return np.stack(images), histograms


def chart(counted, exact, width=240, height=160):
    """A histogram in grey with the exact density as a line: (height, width, 3) uint8."""
    made, top = np.full((height, width, 3), 255, np.uint8), 1.05
    floor = height - 2
    level = (np.clip(counted / top, 0, 1) * (floor - 4)).astype(int)
    columns = np.linspace(0, width, len(counted) + 1).astype(int)
    for left, right, up in zip(columns[:-1], columns[1:], level, strict=True):
        made[floor - up : floor, left:right] = (190, 190, 190)
    made[floor] = 120
    if exact is not None:
        middles = (columns[1:] + columns[:-1]) / 2
        heights = np.interp(np.arange(width), middles, exact)
        rows = floor - (np.clip(heights / top, 0, 1) * (floor - 4)).astype(int)
        for j in range(width):
            low, high = sorted((rows[j], rows[max(j - 1, 0)]))
            made[max(low - 1, 0) : high + 1, j] = (200, 60, 40)
    return made


def tinted(p, peak):
    """A density (H, W) as ink in water, an image (2 H, 2 W, 3) uint8: white for none, the darkest colour for `peak`."""
    share = np.clip(p / peak, 0, 1)[..., None] ** 0.7
    made = np.rint(255 * (1 - share) + DARK * share).astype(np.uint8)
    return made.repeat(2, axis=0).repeat(2, axis=1)


def write_ink_page(directory, image, seed=0):
    """Writes ink.html and its film into a folder. image: (H, W, C) uint8. Returns (page, rows of `compared`)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    moments = np.linspace(0, 1, MOMENTS) ** 2 * END
    side = np.linspace(-HALF, HALF, CELLS)
    densities, particles = drop_by_steps(moments), walks(moments, seed)
    rows = compared(moments, densities, particles)
    exact = np.stack([exact_drop(side[None], side[:, None], t) for t in moments])
    colours = rainbow(np.arctan2(particles[0][:, 1], particles[0][:, 0]))
    clouds = np.stack([cloud(x, colours, HALF, 2 * CELLS) for x in particles])
    inks = [np.stack([tinted(p, p.max()) for p in found]) for found in (densities, exact)]
    times = np.linspace(0, 1, MOMENTS) ** 2 * 3
    emoji, histograms = pixels_that_diffuse(image, times, seed)
    shown = np.stack([chart(*h) for h in histograms])
    large = emoji.repeat(-(-192 // emoji.shape[1]), axis=1).repeat(-(-192 // emoji.shape[2]), axis=2)
    said = [
        f"t = {t:.2f}: variance {e:.3f} exact, {n:.3f} by steps, {m:.3f} of the particles" for t, e, n, m, _ in rows
    ]
    picked = rows[:: (MOMENTS - 1) // 6]
    numbers = table(
        ("t", "variance, exact", "by steps of the equation", f"of {PARTICLES:,} particles", "largest deviation"),
        [(f"{t:.2f}", f"{e:.4f}", f"{n:.4f}", f"{m:.4f}", f"{100 * d:.2f} % of the peak") for t, e, n, m, d in picked],
    )
    panels = [("particles that walk at random", clouds), ("density by steps of dp/dt = D Δp", inks[0])]
    ink_panels = [*panels, ("the exact solution, a normal of variance v + 2 D t", inks[1])]
    told = [f"t = {t:.2f}: {np.exp(-t):.3f} of the image, {np.sqrt(1 - np.exp(-2 * t)):.3f} of noise" for t in times]
    parts = [
        (
            "Ink in water",
            "<p>A drop of ink falls into still water. No current moves it: every particle is pushed at random, and so "
            "the ink spreads until it is everywhere. That is diffusion. How dense the ink is obeys an equation, and "
            "for a drop that begins as a normal distribution it is solved by a normal distribution, ever wider.</p>"
            f"{player(ink_panels, said)}{numbers}",
        ),
        (
            "An image whose pixels diffuse",
            "<p>Now a pixel's value takes the place of a particle's position. It is pushed at random, too, and drawn a "
            "little to the middle grey so that it stays in sight. The histogram of all values (grey) spreads like the "
            "ink; the red line is its exact solution. In the end it is the normal distribution, whatever the image "
            "was: noise.</p>"
            + player([("the image", large), ("its values: counted, and the exact density", shown)], told),
        ),
        (
            "And back",
            "<p>Ink never gathers into a drop again by itself. But where the particles came from can be told, on "
            "average, from the density: a step back is a push towards where the ink is denser. A diffusion model "
            "learns exactly this direction for images, from many images to which noise was added, and then walks back "
            "from noise to an image that nobody has seen. Hence the name (Sohl-Dickstein et al. 2015).</p>",
        ),
    ]
    lead = "Why are they called diffusion models? Because of what happens to a drop of ink in a glass of water."
    page = write_story(directory / "ink.html", "The ink drop", lead, parts)
    both = [
        np.concatenate([a, np.full((192, 4, 3), 255, np.uint8), _rgb(b)[:192, :192]], axis=1)
        for a, b in zip(inks[0][:, 1:193, 1:193], large, strict=True)
    ]
    save_film(directory / "ink", both, fps=10)
    return page, rows


def _rgb(image):
    """An image with 1, 3 or 4 channels as RGB on white."""
    if image.shape[-1] == 4:
        cover = image[..., 3:] / 255
        return np.rint(image[..., :3] * cover + 255 * (1 - cover)).astype(np.uint8)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
