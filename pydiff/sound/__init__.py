"""Sound: WAV files, other rates, spectra and the way back from them, and the two codecs that diffuse sounds.

Sounds are float arrays (.., L, C) in [-1, 1], L samples in C channels; a set of them is (N, 1, L, C), an image one
pixel high, which is why the rest of pydiff takes them as they are. docs/sound.md.
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
