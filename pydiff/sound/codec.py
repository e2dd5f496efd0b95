"""Two ways to diffuse a sound: its samples, a line for a 1-D U-Net, or the image of its spectrum.

    Waveform      (N, 1, L, C) times a gain                 decode: divides by it
    Spectrogram   (N, bands, frames, C) in [-1, 1], loudness in decibels of mel or linear bands over time
                                                            decode: Griffin-Lim, which has to guess the phases

Both encode from and decode to sounds, float32 (N, 1, L, C) in [-1, 1].
"""

import numpy as np

from pydiff.arrays import to_host
from pydiff.codec import NOISE_RANGE, PIXEL_RANGE, Codec, register, to_uint8
from pydiff.sound import plot, spectrum

MOST_WEIGHTS = 1 << 27  # bands times window of a spectrogram: half as many float64, 512 MB


class SoundCodec(Codec):
    """Base class of both. rate: samples per second. length: samples of a sound. channels: 1 or more."""

    noun = "sound"

    def __init__(self, rate: int, length: int, channels: int = 1):
        self.rate, self.length, self.channels = int(rate), int(length), int(channels)
        if min(self.rate, self.length, self.channels) < 1:
            raise ValueError(
                f"a sound needs a rate, a length and channels of at least 1, got {rate}, {length}, {channels}"
            )

    def _checked(self, samples):
        samples = np.asarray(samples)
        wanted = (1, self.length, self.channels)
        if samples.dtype.kind != "f" or samples.ndim != 4 or samples.shape[1:] != wanted:
            raise ValueError(
                f"sounds are {samples.dtype} {samples.shape}, expected floats in [-1, 1] (N, 1, {self.length}, "
                f"{self.channels}) at {self.rate} Hz; pydiff.data.load makes them of files"
            )
        return samples

    def encode_given(self, samples):
        """Encodes a user's sounds, after checking for NaN and range. Raises ValueError for these."""
        samples = self._checked(samples)
        if not len(samples) or not (np.abs(samples) <= 1).all():
            raise ValueError(
                "sounds for editing must be there, and in [-1, 1] without NaN; divide by the largest sample"
            )
        return self.encode(samples)

    def show(self, samples):
        """Images of the waveform above the spectrum: (N, 64, 64, 1) uint8."""
        return plot.images(self._checked(samples))

    def to_config(self):
        """A dict for JSON; `from_config` turns it into an equal codec."""
        return {"kind": self.kind, "rate": self.rate, "length": self.length, "channels": self.channels}


@register
class Waveform(SoundCodec):
    """The samples times `gain`: sounds of -20 dB (see data/sounds.py) then have a standard deviation of 0.5.

    Without it, they would be so quiet beside noise of standard deviation 1 that most steps would see only noise.
    """

    kind, gain = "waveform", 5.0

    @property
    def limits(self):
        """(-gain, gain), which is full scale."""
        return (-self.gain, self.gain)

    @property
    def shape(self):
        """(1, L, C), the shape of one x."""
        return (1, self.length, self.channels)

    def encode(self, samples):
        """(N, 1, L, C) in [-1, 1] -> the same times `gain`, float32."""
        return self._checked(samples).astype(np.float32) * np.float32(self.gain)

    def decode(self, x):
        """Sounds (N, 1, L, C) float32 in [-1, 1]; values outside are clipped. Raises ValueError for NaN."""
        x = to_host(x)
        if np.isnan(x).any():
            raise ValueError("a sound of NaN cannot be played; look for what made it")
        return (x / x.dtype.type(self.gain)).clip(*PIXEL_RANGE).astype(np.float32)

    def show_noise(self, eps):
        """Images of noise as a sound: +-3 standard deviations are full scale."""
        return self.show((to_host(eps) / NOISE_RANGE).clip(*PIXEL_RANGE))

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        return cls(config["rate"], config["length"], config["channels"])


@register
class Spectrogram(SoundCodec):
    """The level of each frequency band over time, in decibels: -1 is `floor` dB, 1 is `top` dB, 0 dB a full-scale sine.

    bands: mel bands; None keeps the transform's own bins, without the highest. size, hop: of the window, in samples.
    Frequency increases along the first axis; frames are padded with silence to a multiple of 8, which can be halved
    three times.
    """

    kind, limits = "spectrogram", PIXEL_RANGE
    floor, top = -80.0, 0.0

    def __init__(self, rate, length, channels=1, bands: int | None = 32, size=512, hop=128, iterations=60):
        super().__init__(rate, length, channels)
        self.bands, self.size, self.hop, self.iterations = bands, size, hop, iterations
        if size % 2 or not 1 <= hop <= size // 4 or (bands is not None and not 1 <= bands <= size // 2):
            raise ValueError(
                f"a spectrogram needs an even window, hop <= size / 4, bands <= size / 2; got {size}, {hop}, {bands}"
            )
        if bands is not None and bands * size > MOST_WEIGHTS:
            raise ValueError(f"{bands} mel bands over a window of {size} have too many weights; take a shorter window")
        self.frames = spectrum.frames_of(self.length, hop)

    @property
    def shape(self):
        """(bands, frames, C), the shape of one x."""
        return (self.size // 2 if self.bands is None else self.bands, -(-self.frames // 8) * 8, self.channels)

    def encode(self, samples):
        """(N, 1, L, C) -> (N, bands, frames, C) in [-1, 1]."""
        x = np.moveaxis(self._checked(samples)[:, 0], -1, 1)  # (N, C, L)
        found = np.concatenate([self._values(np.abs(spectrum.stft(sound[None], self.size, self.hop))) for sound in x])
        level = 20.0 * np.log10(found.clip(1e-12))
        made = (2.0 * (level - self.floor) / (self.top - self.floor) - 1.0).clip(*PIXEL_RANGE)
        made = np.pad(made, ((0, 0), (0, 0), (0, self.shape[1] - self.frames), (0, 0)), constant_values=PIXEL_RANGE[0])
        return made.transpose(0, 3, 2, 1).astype(np.float32)

    def _values(self, magnitudes):
        """(N, C, frames, size / 2 + 1) -> (N, C, frames, bands), 1 for a full-scale sine."""
        magnitudes = magnitudes / (self.size / 4)
        if self.bands is None:
            return magnitudes[..., :-1]
        return magnitudes @ spectrum.mel_filters(self.bands, self.size, self.rate)

    def magnitudes(self, x):
        """The magnitudes of the transform (N, C, frames, size / 2 + 1) that x represents."""
        x = to_host(x).astype(np.float64).clip(*PIXEL_RANGE).transpose(0, 3, 2, 1)[:, :, : self.frames]
        values = 10.0 ** (((x + 1.0) / 2.0 * (self.top - self.floor) + self.floor) / 20.0)
        values = np.where(x <= PIXEL_RANGE[0] + 1e-6, 0.0, values)  # the floor means silence
        if self.bands is None:
            return np.pad(values, ((0, 0), (0, 0), (0, 0), (0, 1))) * (self.size / 4)
        return spectrum.from_mel(values, self.size, self.rate) * (self.size / 4)

    def decode(self, x):
        """Sounds (N, 1, L, C) float32 in [-1, 1], with phases by Griffin-Lim. Raises ValueError for NaN."""
        x = to_host(x)
        if np.isnan(x).any():
            raise ValueError("a sound of NaN cannot be played; look for what made it")
        sounds = [
            spectrum.griffin_lim(self.magnitudes(one[None])[0], self.length, self.size, self.hop, self.iterations)
            for one in x
        ]
        return np.stack(sounds).transpose(0, 2, 1)[:, None].clip(*PIXEL_RANGE).astype(np.float32)

    def show_x(self, x):
        """x as an image, channels averaged, low frequencies at the bottom: this needs no phases."""
        return to_uint8(to_host(x).astype(np.float32).clip(*PIXEL_RANGE).mean(-1, keepdims=True)[:, ::-1])

    def show_noise(self, eps):
        """Noise as such images: +-3 standard deviations are white and black."""
        return self.show_x(to_host(eps) / NOISE_RANGE)

    def encode_mask(self, mask):
        """(N, 1, L, 1 or C) over samples -> (N, 1, frames, 1): a frame is drawn if its window has samples to
        be drawn.
        """
        over = np.asarray(mask, np.float64).max((1, 3))  # (N, L)
        reach = self.size // 2
        padded = np.pad(over, ((0, 0), (reach, self.frames * self.hop + reach)))
        cut = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=1)[:, :: self.hop][:, : self.frames]
        made = np.pad(cut.max(-1), ((0, 0), (0, self.shape[1] - self.frames)), mode="edge")
        return made[:, None, :, None].astype(np.float32)

    def kept(self, drawn, given, mask):
        """`drawn` where the mask is 1, else the given sounds, which keep their phases."""
        return (mask * drawn + (1.0 - mask) * np.asarray(given)).astype(np.float32)

    def to_config(self):
        """A dict for JSON; `from_config` turns it into an equal codec."""
        own = {name: getattr(self, name) for name in ("bands", "hop", "iterations")}
        return super().to_config() | own | {"window": self.size}

    @classmethod
    def from_config(cls, config):
        """The codec that `to_config` described."""
        names = ("rate", "length", "channels", "bands", "hop", "iterations")
        return cls(**{name: config[name] for name in names}, size=config["window"])
