"""Sound: WAV files, resampling, spectra and their inversion, and the two codecs that diffuse sounds.

Sounds are float arrays (.., L, C) in [-1, 1], L samples in C channels; a set of them is (N, 1, L, C), like images one
pixel high, so the rest of pydiff works with them unchanged. docs/sound.md.
"""

from pydiff.sound.codec import Spectrogram, Waveform
from pydiff.sound.resample import resample
from pydiff.sound.spectrum import griffin_lim, istft, mel_filters, stft
from pydiff.sound.wav import read_wav, wav_bytes

__all__ = [
    "Spectrogram",
    "Waveform",
    "griffin_lim",
    "istft",
    "mel_filters",
    "read_wav",
    "resample",
    "stft",
    "wav_bytes",
]
