"""Sounds as data: a folder of sound files, all brought to one length, loudness and rate; notes say what was done.

Steps, in this order: read; mix the channels to one (or to the number requested); remove the mean (DC); resample other
rates; trim silence at both ends; set the loudness; cut or pad to the requested length. pydiff itself reads wav; flac,
ogg, opus, mp3, aiff, au and gsm need the extra `audio` (soundfile).
"""

import dataclasses
import io
import math
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pydiff.data.classes import divided
from pydiff.data.dataset import Dataset, plural
from pydiff.data.image import not_a_file
from pydiff.data.limits import USUAL, Limit
from pydiff.printed import printable
from pydiff.sound import Spectrogram, Waveform, resample
from pydiff.sound.wav import Sound, Unreadable, read_wav

WAV = {".wav", ".wave"}
WITH_LIBRARY = {".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".snd", ".gsm"}
TELEPHONE = {"format": "RAW", "subtype": "GSM610", "samplerate": 8000, "channels": 1}  # a .gsm has no header
SUFFIXES = frozenset(WAV | WITH_LIBRARY)
RATE, SECONDS = 8000, 1.0  # by default
LOUDNESS = -20.0  # dB, root mean square; 0 dB is a full-scale square wave
PEAK = 0.99  # largest magnitude of a sample
SILENT = 1e-4  # a sound whose largest sample is below this, -80 dB, is silence
QUIET = 10 ** (-40 / 20)  # ends this far below the loudest 10 ms are trimmed
MARGIN = 0.02  # seconds of silence that are kept
SHORTEST = 0.005  # seconds; anything shorter is a click
LONGEST = 600.0  # seconds read from one file
MOST_PIECES = 600  # taken from one file
GRID = 2.0**15  # samples are multiples of 1 / this, without the last bits, which differ between machines
BYTES = 24  # per sample while a sound is read and prepared: a float32 and some float64s
OFFSET, FLAT = 0.01, 0.001  # thresholds for reporting DC (of full scale) and clipping (of the samples)


@dataclasses.dataclass(frozen=True, eq=False)
class Sounds(Dataset):
    """A Dataset of sounds: `images` is (N, 1, L, C) float32 in [-1, 1], L samples at `rate` per second."""

    rate: int = RATE
    noun = "sound"
    mirrors = False

    @property
    def codec(self):
        """The codec that diffuses sounds as waveforms."""
        _, length, channels = self.shape
        return Waveform(self.rate, length, channels)

    def coded(self, name: str = "auto"):
        """The codec of this name: "waveform", which is also "auto", or "spectrogram"."""
        _, length, channels = self.shape
        if name == "spectrogram":
            return Spectrogram(self.rate, length, channels, **fitting(self.rate, length))
        return self.codec

    def kind(self) -> str:
        """The number of sounds, their length and their rate, as a phrase."""
        _, length, channels = self.shape
        said = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
        return f"{plural(len(self), 'sound')} of {length / self.rate:.4g} s at {self.rate:,} Hz, {said}"

    def facts(self, count: int | None = None) -> dict[str, str]:
        """What a run's page says about the data: {term: description}. count: of sounds, if these are only some."""
        _, length, channels = self.shape
        return {
            "Sounds": f"{count or len(self):,}, {length / self.rate:.4g} s at {self.rate:,} Hz"
            + ", stereo" * (channels == 2)
        }

    def resized(self, size=None, channels=None):
        """Returns the data set itself. Raises ValueError for a size, or for another number of channels."""
        if size is not None or channels not in (None, self.shape[2]):
            raise ValueError("size and channels are for images; give rate and seconds where sounds are loaded")
        return self

    def hints(self) -> list[str]:
        """Sentences of advice on training with this data."""
        found = []
        if self.shape[1] > 2**17:
            found.append(f"{self.shape[1]:,} samples are slow without a GPU; try a lower rate= or fewer seconds=")
        return found + self._hints(compare="listen to samples beside the nearest sounds")


def fitting(rate: int, length: int) -> dict:
    """Bands and window of a spectrogram: windows of 64 ms or so, at most half the sound, a quarter of a window
    apart.
    """
    size = 2 ** round(math.log2(min(0.064 * rate, max(length / 2, 16))))
    return {"size": size, "hop": size // 4, "bands": min(32, size // 2)}


def load_sounds(
    root: Path,
    rate: int | None = None,
    seconds: float | None = None,
    channels: int | None = None,
    limit: Limit = USUAL,
    split: str | None = None,
) -> Sounds:
    """All sounds under a folder, in order of path; classes as for images: the first folder that not all of them share.

    rate: samples per second, 8000 if None. seconds: of every sound, 1 if None. channels: 1 (mixed), the default, or 2.
    split: which of the folders called train, val and test, or "all"; None is train. Sound files that cannot be read or
    hold only silence are skipped and listed, as are those that take more memory than the limit while being read. Raises
    ValueError if no sound is left, if more than half are broken, or if all together take more than the limit.
    """
    from pydiff.data.listing import files_in
    from pydiff.data.unreadable import notes_on

    check_sound(rate, seconds, channels)
    found, name = files_in(root, SUFFIXES), printable(str(root))
    left_out = notes_on([*found.others, *found.texts], found.thumbnails, found.empty, found.again)
    if not found.images:
        told = "".join(f"; {note}" for note in left_out)
        raise ValueError(f"{name} holds no sounds; expected files such as .wav in it or in its subfolders{told}")
    paths, notes = divided(found.images, split, name, "sound")
    files, notes = {path: root / path for path in paths}, [*notes, *left_out]
    return load_files(name, files, rate, seconds, channels, skipped=found.skipped, limit=limit, notes=notes)


def load_files(
    name,
    sources: Mapping[str, Path | bytes],
    rate=None,
    seconds=None,
    channels=None,
    *,
    skipped=(),
    labels=None,
    classes=None,
    limit: Limit = USUAL,
    notes=(),
) -> Sounds:
    """Sounds from files or their contents, by name. labels: {name: number of its class}, with `classes`, the class
    names; None derives the classes from the names, which are paths. skipped: (name, reason) of files already known to
    be unusable. notes: sentences to put first.

    Raises ValueError if more than half are broken.
    """
    from pydiff.data.folder import each, labels_of

    rate, seconds, channels = check_sound(rate, seconds, channels)
    length = max(1, round(rate * seconds))
    limit.check(len(sources) * length * channels * 8, f"{plural(len(sources), 'sound')} of {seconds:g} s")
    room = _Room(limit, name)
    read = partial(read_sound, rate=rate, length=length, channels=channels, room=room)
    results = dict(zip(sources, each(read, sources, "reading", "sound"), strict=True))
    usable = {path: found for path, found in results.items() if isinstance(found, Prepared)}
    skipped = sorted([*skipped, *((printable(path), why) for path, why in results.items() if isinstance(why, str))])
    if len(skipped) > len(usable):
        path, reason = skipped[0]
        raise ValueError(
            f"{len(skipped)} of {len(skipped) + len(usable)} sounds in {name} cannot be used "
            f"(first: {path}: {reason}); remove or repair them"
        )
    found = [path for path, one in usable.items() for _ in one.pieces]
    class_notes = []
    if labels is None:
        numbers, classes, class_notes = labels_of(found, "sound")
    else:
        numbers = np.array([labels[path] for path in found], np.int64)
    samples = np.stack([piece for one in usable.values() for piece in one.pieces])[:, None]
    notes = [*notes, *notes_on(list(usable.values()), rate, seconds), *class_notes]
    return Sounds(name, samples, numbers, classes, skipped, notes, rate=rate)


def holds_sounds(root: Path) -> bool:
    """Whether a folder holds more sounds than images: an album with its cover counts as sounds."""
    from pydiff.data.image import SUFFIXES as IMAGES
    from pydiff.data.listing import find_files

    if not root.is_dir():
        return False
    found, _, _ = find_files(root, SUFFIXES | set(IMAGES))
    sounds = sum(Path(path).suffix.lower() in SUFFIXES for path in found)
    return 2 * sounds > len(found)


def check_sound(rate, seconds, channels) -> tuple[int, float, int]:
    """(rate, seconds, channels) with defaults filled in. Raises ValueError for values that no sound can have."""
    rate, seconds = RATE if rate is None else rate, SECONDS if seconds is None else seconds
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 100 <= rate <= 192_000:
        raise ValueError(
            f"rate is {rate!r}, expected a whole number of samples a second from 100 to 192,000, e.g. 8000"
        )
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | np.number) or not 1 / rate <= seconds <= 60:
        raise ValueError(f"seconds is {seconds!r}, expected a number from one sample to 60, for example 1")
    if channels not in (None, 1, 2):
        raise ValueError(f"channels is {channels!r}, expected 1 (mono), 2 (stereo) or None for sounds; leave it out")
    return int(rate), float(seconds), channels or 1


@dataclasses.dataclass
class Prepared:
    """A sound made ready. pieces: (L, C) float32 each. What the file had and what was done: rate, channels, seconds
    trimmed and padded, whether it was cut, clipped, had a DC offset, or was read only in part.
    """

    pieces: list[np.ndarray]
    rate: int
    channels: int
    trimmed: float
    padded: float
    cut: bool
    clipped: bool
    offset: bool
    shortened: bool


class _Room:
    """Counts the memory for the pieces of all sounds; a long file gives many of them."""

    def __init__(self, limit: Limit, name: str):
        self.limit, self.name, self.taken, self.lock = limit, name, 0, threading.Lock()

    def take(self, size: int):
        """Counts `size` more bytes, twice, as all are copied into one array. Raises TooLarge above the limit."""
        with self.lock:
            self.taken += size
            try:
                self.limit.check(2 * self.taken, f"the sounds of {self.name}, cut to pieces,")
            except ValueError as error:
                raise TooLarge(str(error)) from None


class TooLarge(ValueError):
    """More than the memory limit allows; raised for the whole folder, not skipped like a damaged file."""


def read_sound(source: Path | bytes, rate: int, length: int, channels: int, room: _Room | None = None):
    """A file, or its contents, ready for training, as Prepared; or half a sentence on why it cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit = USUAL if room is None else room.limit
            sound = decoded(source, limit)
        if sound.rate < rate:  # a few samples at 1 Hz are minutes
            grown = -(-len(sound.samples) * rate // sound.rate) * channels
            _fits(limit, grown * BYTES)
            _fits(limit, grown * 4, len(source) if isinstance(source, bytes) else source.stat().st_size)
        found = prepared(sound, rate, length, channels)
        if room is not None:
            room.take(sum(piece.nbytes for piece in found.pieces))
        return found
    except Unreadable as error:
        return str(error)
    except OSError as error:
        return f"cannot be opened ({error.strerror or error})"
    except MemoryError:
        return "too large for the memory"


def decoded(source: Path | bytes, limit: Limit = USUAL) -> Sound:
    """The samples of a sound file. Raises Unreadable, with half a sentence, if damaged or above the memory limit."""
    if not isinstance(source, bytes):
        if not source.is_file():  # reading a pipe would block
            raise Unreadable(not_a_file(source))
        _fits(limit, source.stat().st_size)
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return read_wav(data, LONGEST, lambda count: _fits(limit, count * BYTES))
    except Unreadable as error:
        if data[:4] in (b"RIFF", b"RF64") and "compressed" not in str(error):
            raise
        known = isinstance(source, bytes) or source.suffix.lower() not in WAV
        if not data or not (known or "compressed" in str(error)):
            raise
    try:
        import soundfile
    except ImportError:
        raise Unreadable("needs the library soundfile: pip install 'pydiff[audio]'") from None
    telephone = isinstance(source, Path) and source.suffix.lower() == ".gsm"
    try:
        with soundfile.SoundFile(io.BytesIO(data), **(TELEPHONE if telephone else {})) as file:
            _fits(limit, min(file.frames, int(LONGEST * file.samplerate)) * file.channels * BYTES)
            samples = file.read(int(LONGEST * file.samplerate), dtype="float32", always_2d=True)
            return Sound(samples, file.samplerate)
    except Unreadable:
        raise
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        told = str(error).split(": ")[-1].strip().rstrip(".")[:80]
        told = "" if "does not exist" in told else f" ({told})"  # which libsndfile says of some damaged files
        raise Unreadable(f"cannot be decoded{told}") from None


def _fits(limit: Limit, size: int, packed: int | None = None):
    """Raises Unreadable if `size` bytes, perhaps unpacked from `packed` bytes, exceed the limit."""
    try:
        limit.check(size, "it") if packed is None else limit.check_unfolding(size, packed, "it")
    except ValueError as error:
        raise Unreadable(str(error)) from None


def prepared(sound: Sound, rate: int, length: int, channels: int) -> Prepared:
    """The sound at this rate, loudness and length, in one or more pieces. Raises Unreadable for silence and such."""
    x, own, count = sound.samples.astype(np.float64), sound.rate, sound.samples.shape[1]
    if not x.size:
        raise Unreadable("it holds no samples")
    if not np.isfinite(x).all():
        raise Unreadable("it holds NaN or infinite numbers")
    if len(x) < 2:
        raise Unreadable("it holds a single sample")
    if len(x) < SHORTEST * own:
        raise Unreadable(f"it is {1000 * len(x) / own:.2g} ms long")
    clipped = is_clipped(x)
    x = x.mean(1, keepdims=True) if channels == 1 else np.repeat(x, 2, 1) if count == 1 else x[:, :channels]
    mean = x.mean(0)
    offset = bool(np.abs(mean).max() > OFFSET)
    x = x - mean
    if np.abs(x).max() < SILENT:
        raise Unreadable(why_silent(sound.samples))
    x = resample(x, own, rate)
    first, last = active(x, rate)
    trimmed = (len(x) - (last - first)) / rate
    x = x[first:last]
    loud = math.sqrt((x**2).mean())
    if loud < SILENT / 10:
        raise Unreadable(f"nothing of it is left at {rate:,} Hz")
    x = np.rint(x * min(10 ** (LOUDNESS / 20) / loud, PEAK / np.abs(x).max()) * GRID) / GRID
    pieces, padded, cut = pieces_of(x.astype(np.float32), length)
    shortened = len(sound.samples) >= int(LONGEST * own)
    return Prepared(pieces, own, count, trimmed, padded / rate, cut, clipped, offset, shortened)


def why_silent(samples) -> str:
    """Half a sentence on why nothing is left of a sound (L, C) once channels are mixed and the mean is removed."""
    if np.abs(samples).max() < SILENT:
        return "it holds silence alone"
    if np.ptp(samples, axis=0).max() < 2 * SILENT:
        return "it holds one value alone, which nobody hears"
    return "its channels cancel each other"


def is_clipped(x) -> bool:
    """Whether peaks are flat: more than a fraction FLAT of neighbouring samples are at a maximum near full scale."""
    size = np.abs(x).max(1)
    top = size >= size.max() * (1 - 1e-4)
    return bool(size.max() > 0.5 and np.count_nonzero(top[1:] & top[:-1]) > max(2, FLAT * len(x)))


def active(x, rate: int) -> tuple[int, int]:
    """Where a sound (L, C) begins and ends, for trimming: from the first to the last 10 ms block that is louder than
    QUIET times the loudest, with a margin. In samples.
    """
    block = max(1, rate // 100)
    starts = np.arange(0, len(x), block)
    power = np.add.reduceat((x**2).mean(1), starts) / np.diff([*starts, len(x)])  # pyright: ignore[reportCallIssue, reportArgumentType]
    loud = np.flatnonzero(power >= power.max() * QUIET**2)
    margin = round(MARGIN * rate)
    return max(0, loud[0] * block - margin), min(len(x), (loud[-1] + 1) * block + margin)


def pieces_of(x, length: int) -> tuple[list[np.ndarray], int, bool]:
    """(pieces (length, C), samples of silence added, whether it was cut). A short sound is centred in silence.

    A long one gives the number of pieces that comes nearest to its length, spread evenly, without silent ones.
    """
    if len(x) <= length:
        before = (length - len(x)) // 2
        return [np.pad(x, ((before, length - len(x) - before), (0, 0)))], length - len(x), False
    count = min(max(1, round(len(x) / length)), MOST_PIECES)
    starts = np.linspace(0, len(x) - length, count + 2 if count == 1 else count).round().astype(int)
    starts = starts[1:2] if count == 1 else starts  # the middle
    cut = [x[start : start + length] for start in starts]
    loudest = max(float((piece**2).mean()) for piece in cut)
    return [piece for piece in cut if (piece**2).mean() > QUIET**2 * loudest], 0, True


def notes_on(found: list[Prepared], rate: int, seconds: float) -> list[str]:
    """Sentences on what was done to the sounds."""
    notes, n = [], len(found)
    rates = Counter(one.rate for one in found)
    other = ", ".join(f"{r:,} Hz ({k})" for r, k in sorted(rates.items()) if r != rate)
    if other:
        notes.append(f"resampled to {rate:,} Hz from {other}")
    if low := sum(k for r, k in rates.items() if r < rate):
        notes.append(f"{plural(low, 'sound')} of a lower rate: nothing above half of that rate is in them")
    if mixed := sum(one.channels > 1 for one in found):
        notes.append(f"{plural(mixed, 'sound')} of several channels mixed to one")
    if offset := sum(one.offset for one in found):
        notes.append(f"{plural(offset, 'sound')} had a DC offset, which was taken away")
    if clipped := sum(one.clipped for one in found):
        notes.append(f"{plural(clipped, 'sound')} clipped: the tops of the waves are flat, and stay so")
    if trimmed := [one.trimmed for one in found if one.trimmed > 0.005]:
        notes.append(f"silence trimmed at the ends of {plural(len(trimmed), 'sound')}, {sum(trimmed):.1f} s in all")
    if padded := sum(one.padded > 0 for one in found):
        notes.append(f"{plural(padded, 'sound')} shorter than {seconds:g} s put in the middle of silence")
    if cut := [one for one in found if one.cut]:
        pieces = sum(len(one.pieces) for one in cut)
        notes.append(f"{plural(len(cut), 'sound')} longer than {seconds:g} s cut into {plural(pieces, 'piece')}")
    if shortened := sum(one.shortened for one in found):
        notes.append(f"of {plural(shortened, 'sound')} longer than {LONGEST / 60:g} minutes the beginning was taken")
    every = "it" if n == 1 else "each"
    return [*notes, f"loudness of {every} set to {LOUDNESS:g} dB (RMS), or less where peaks would be cut"]
