"""Sounds on the page: players with embedded sound, beside an image of it, also along the way from noise to sound.

Nothing is loaded: every sound is a data: URL, a 16-bit WAV file. All of them together stay below BYTES.
"""

import base64
from dataclasses import dataclass

import numpy as np

from pydiff.arrays import to_host
from pydiff.report.markup import data_uri, number, text
from pydiff.sound import plot
from pydiff.sound.wav import wav_bytes

BYTES = 4_000_000  # of all sounds of a page, as encoded in the file
STEPS, TRACED = 9, 2  # moments of the reverse process that can be heard, for this many samples
SHOWN = 8  # samples and training sounds
SIZE = (96, 192)  # pixels of a sound's image


@dataclass
class Heard:
    """Sounds recorded during sampling. steps: done at each moment. x, x0: one (n, 1, L, C) float32 per moment: the
    sounds reached so far, and the clean sounds that the network predicted. total: steps of the sampler.
    """

    steps: list[int]
    x: list[np.ndarray]
    x0: list[np.ndarray]
    total: int = 0


def overhear(states, codec, heard: Heard, samples=TRACED, moments=STEPS):
    """Passes the states through; at `moments` evenly spread steps, records the first samples' sounds in `heard`."""
    for state in states:
        wanted = np.linspace(1, state.steps, min(moments, state.steps)).round().astype(int)
        if state.step in wanted:
            heard.total = state.steps
            heard.steps.append(int(state.step))
            heard.x.append(codec.decode(to_host(state.x)[:samples]))
            heard.x0.append(codec.decode(to_host(state.x0)[:samples]))
        yield state


def section(codec, samples, wanted, training, titles, heard: Heard) -> str:
    """The page's section with sounds, as HTML.

    samples: (N, 1, L, C). wanted: what each was asked to be, N strings or None. training: (M, 1, L, C). titles: M
    strings or None.
    """
    samples, training = samples[:SHOWN], training[:SHOWN]
    seconds = limited(codec, len(samples) + len(training) + sum(2 * len(x) for x in heard.x))
    whole = codec.length / codec.rate
    cut = "" if seconds >= whole else f" Of each, the first {seconds:.3g} of {whole:.3g} seconds can be heard here."
    made = [_figure(codec, x, _name("new", i, wanted), seconds) for i, x in enumerate(samples)]
    real = [_figure(codec, x, _name("training", i, titles), seconds) for i, x in enumerate(training)]
    return f"""<section id="listen">
<h2>Listen</h2>
<p>Above, a sound was shown by its image; here it can be heard. In an image, time runs from left to right; at the top is
the waveform, below it how loud which frequencies are, up to {number(codec.rate // 2)} Hz.{cut}</p>
<h3>New sounds</h3>
<div class="sounds">{"".join(made)}</div>
<h3>Training sounds</h3>
<div class="sounds">{"".join(real)}</div>
{_way(codec, heard, seconds)}
</section>"""


def _name(kind, i, titles):
    return f"{kind} sound {i + 1}" + (f", {titles[i]}" if titles else "")


def limited(codec, count) -> float:
    """Seconds of each of `count` sounds such that all of them fit into BYTES."""
    each = BYTES / max(count, 1) * 3 / 4 - 44  # base64 makes 4 characters of 3 bytes; 44 is the header
    return min(codec.length, int(each / (2 * codec.channels))) / codec.rate


def player(codec, sound, name, seconds) -> str:
    """A sound (1, L, C) as an <audio> with controls. name is not yet escaped."""
    data = wav_bytes(sound[0, : max(1, round(seconds * codec.rate))], codec.rate)
    source = "data:audio/wav;base64," + base64.b64encode(data).decode("ascii")
    return f'<audio controls preload="metadata" aria-label="{text(name)}" src="{source}"></audio>'


def _figure(codec, sound, name, seconds):
    image = plot.images(sound[None], *SIZE, wave=32)[0]
    shown = (
        f'<img src="{data_uri(image)}" width="{SIZE[1]}" height="{SIZE[0]}" alt="{text(name)}: waveform and spectrum">'
    )
    return f"<figure>{shown}{player(codec, sound, name, seconds)}<figcaption>{text(name)}</figcaption></figure>"


def _way(codec, heard, seconds):
    parts = ""
    for i in range(len(heard.x[0]) if heard.x else 0):
        for label, name, made in (("x̂<sub>0</sub>", "believed clean", heard.x0), ("x<sub>t</sub>", "reached", heard.x)):
            cells = "".join(
                f"<figure>{_small(one[i])}{player(codec, one[i], f'sample {i + 1}, {name}, after {step}', seconds)}"
                f"<figcaption>after {step} of {heard.total}</figcaption></figure>"
                for step, one in zip(heard.steps, made, strict=True)
            )
            parts += (
                f'<div class="way"><p><button class="inturn" type="button">Play in turn</button> '
                f'Sample {i + 1}: <var>{label}</var>, {name}</p><div class="sounds small">{cells}</div></div>'
            )
    return f"<h3>From noise to sound, step by step</h3>{parts}" if parts else ""


def _small(sound):
    image = plot.images(sound[None], 48, 64, wave=16)[0]
    return f'<img src="{data_uri(image)}" width="64" height="48" alt="">'
