"""Speech from installed programs and recordings, never copied: named sets that are read when used.

    spoken-digits      0 to 9 in some thirty voices and twenty languages: recordings of Debian's tuxpaint-stamps-default
                       (GPL-2), of saytime (GPL) and of the asterisk-core-sounds packages (CC-BY-SA-3.0); needs
                       pydiff[audio]
    spoken-captions    sentences that describe drawings, read in French: tuxpaint-stamps-default
    spoken-prompts     what a telephone exchange says, at 8 kHz: asterisk-core-sounds-en-wav
    synthetic-digits   0 to 9 in English by espeak-ng and flite, called as programs: the same bits every time
    synthetic-speech   forty English words, digits among them, by one voice of espeak-ng that is not in
                       synthetic-digits, at many pitches and speeds; unlabelled

pydiff contains none of the recordings, and nothing made from them may be shipped. Voices serve only to separate
training from test data; no option asks for a person.
"""

import dataclasses
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pydiff.data.sounds import Sounds, check_sound, load_files, printable
from pydiff.sound.wav import Unreadable, read_wav

STAMPS = Path("/usr/share/tuxpaint/stamps")  # where Debian's packages put them
PROMPTS = Path("/usr/share/asterisk/sounds")
CLOCK = Path("/usr/share/saytime")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SECONDS = 0.75
SLOWLY = 1.0  # seconds, for people: at 0.75 the slowest of them would be cut in two
# Accents and variants of espeak-ng, and voices of flite, in English.
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
FLITE = ("kal16", "awb", "rms", "slt")
FOREIGN = ("es", "es-419", "fr-fr", "it", "ru")  # languages that also have recordings of more than two people
# What synthetic-speech says, and its voice: accent and variant of espeak-ng, pitches and words per minute.
WORDS = (
    *DIGITS, "yes", "no", "stop", "go", "left", "right", "up", "down", "on", "off", "red", "green", "blue", "yellow",
    "dog", "cat", "bird", "tree", "house", "water", "day", "night", "sun", "moon", "good", "bad", "old", "new", "hand",
    "foot",
)  # fmt: skip
SPEAKER, PITCHES, SPEEDS = "en-us+Annie", (42, 50, 58), (135, 150, 165, 180)


class Recording(NamedTuple):
    """A recording: its file, the digit spoken, and the voice: language and number of the reader, such as "fr 2"."""

    path: Path
    digit: int
    voice: str


def digit_recordings(stamps: Path = STAMPS, prompts: Path = PROMPTS, clock: Path = CLOCK) -> list[Recording]:
    """The installed recordings of digits, in order of voice and digit."""
    found = []
    for path in (stamps / "symbols/math").glob("[0-9]*.ogg"):
        parts = re.fullmatch(r"(\d)(_desc)?(?:_(\w+))?", path.stem)
        if parts:
            found.append(Recording(path, int(parts[1]), f"{parts[3] or 'en_US'} {2 if parts[2] else 1}"))
    heard = Counter()
    for folder in sorted(prompts.glob("*/digits")):
        files = sorted(folder.glob("[0-9].wav")) or sorted(folder.glob("[0-9].gsm"))
        language = folder.parent.name[:5]  # the rest is the voice's name, which is not used
        heard[language] += bool(files)
        voice = f"{language} prompts{f' {heard[language]}' if heard[language] > 1 else ''}"
        found += [Recording(path, int(path.stem), voice) for path in files]
    found += [Recording(path, int(path.stem), "en_US clock") for path in clock.glob("[0-9].au")]
    return sorted(found, key=lambda one: (one.voice, one.digit))


def load_spoken_digits(rate: int | None = None, seconds: float = SLOWLY, recordings=None) -> Sounds:
    """The recorded digits as Sounds with the classes zero to nine. Raises FileNotFoundError if none are installed."""
    recordings = digit_recordings() if recordings is None else recordings
    if not recordings:
        raise FileNotFoundError(
            f"there are no recordings of digits in {STAMPS} or {PROMPTS}; install Debian's packages "
            "tuxpaint-stamps-default or asterisk-core-sounds-en-wav"
        )
    sources = {f"{one.voice}/{one.digit}": with_header(one.path) for one in recordings}
    labels = {name: one.digit for name, one in zip(sources, recordings, strict=True)}
    return load_files("spoken-digits", sources, rate, seconds, labels=labels, classes=DIGITS)


def with_header(path: Path) -> Path | bytes:
    """The path of a sound file; or, of an .au file without its header, the contents as a .wav file. Such files hold
    8,000 bytes a second, logarithmic (mu-law, ITU-T G.711), as /dev/audio took them.
    """
    data = path.read_bytes() if path.suffix == ".au" else b".snd"
    if data[:4] == b".snd":
        return path
    head = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVEfmt ", 16, 7, 1, 8000, 8000, 1, 8, b"data", len(data)
    )
    return head + data + bytes(len(data) % 2)


def load_captions(rate: int | None = None, seconds: float = 1.0) -> Sounds:
    """Sentences read in French, cut into pieces."""
    paths = sorted(STAMPS.rglob("*_desc_fr.ogg"))
    return _installed("spoken-captions", paths, STAMPS, "tuxpaint-stamps-default", rate, seconds)


def load_prompts(rate: int | None = None, seconds: float = 1.0) -> Sounds:
    """What a telephone exchange says in English, cut into pieces."""
    paths = sorted(PROMPTS.glob("en_US*/**/*.wav"))
    return _installed("spoken-prompts", paths, PROMPTS, "asterisk-core-sounds-en-wav", rate, seconds)


def _installed(name, paths, root, package, rate, seconds):
    if not paths:
        raise FileNotFoundError(f"there are no recordings for {name} in {root}; install Debian's package {package}")
    return load_files(name, {str(path.relative_to(root)): path for path in paths}, rate, seconds)


# ---- synthetic voices ------------------------------------------------------------------------------------------------


def synthetic_voices() -> list[str]:
    """Names of the available voices: "espeak-ng en-us+m3 pitch 40 speed 150", "flite slt stretch 1.1"."""
    voices = _espeak_voices(ACCENTS, 11, (29, 23))
    if shutil.which("flite"):
        voices += [f"flite {voice} {stretch}" for voice in FLITE for stretch in ("0.9", "1.0", "1.15")]
    return voices


def foreign_voices() -> list[str]:
    """Voices of espeak-ng in FOREIGN languages, named as `synthetic_voices` names those in English."""
    return _espeak_voices(FOREIGN, 13, (23, 29))


def _espeak_voices(kinds, lift, hurry) -> list[str]:
    """Every kind with every variant, at pitches of 30 to 69 and 130 to 189 words per minute, spread evenly."""
    if not shutil.which("espeak-ng"):
        return []
    return [
        f"espeak-ng {kind}+{variant} {30 + (17 * i + lift * j) % 40} {130 + (hurry[0] * i + hurry[1] * j) % 60}"
        for i, kind in enumerate(kinds)
        for j, variant in enumerate(VARIANTS)
    ]


def digit_for(voice: str, digit: int) -> str:
    """The text that a voice reads for a digit: the English word, or the figure, which it reads in its own language."""
    return str(digit) if voice.split()[1].split("+")[0] in FOREIGN else DIGITS[digit]


def say(voice: str, words: str):
    """A text spoken by one of `synthetic_voices`, as a Sound. The same voice and words give the same bits.

    Raises RuntimeError if the program fails.
    """
    program, name, *how = voice.split()
    if program == "espeak-ng":
        command = ["espeak-ng", "-v", name, "-p", how[0], "-s", how[1], "--stdout", words]
    else:
        command = ["flite", "-voice", name, "--setf", f"duration_stretch={how[0]}", "-t", words, "-o", "/dev/stdout"]
    made = subprocess.run(command, capture_output=True, check=False)
    said = printable(made.stderr.decode(errors="replace").strip())[:100]
    try:
        if made.returncode:
            raise Unreadable(f"it ended with status {made.returncode}")
        sound = read_wav(made.stdout)
        if not sound.samples.size:
            raise Unreadable("it is empty")
        return sound
    except Unreadable as error:
        raise RuntimeError(f"{program} made no sound of {words!r} ({said or error}); is it installed?") from None


def load_synthetic_digits(rate: int | None = None, seconds: float = SECONDS, voices=None) -> Sounds:
    """Digits by all available synthetic voices of English, or by these voices, each in its language; classes zero to
    nine.

    Raises FileNotFoundError if neither program is installed.
    """
    voices = synthetic_voices() if voices is None else list(voices)
    check_sound(rate, seconds, None)
    sources = said([(voice, digit_for(voice, digit)) for voice in voices for digit in range(10)])
    labels = {name: i % len(DIGITS) for i, name in enumerate(sources)}
    return load_files("synthetic-digits", sources, rate, seconds, labels=labels, classes=DIGITS)


def speaker_voices() -> list[str]:
    """The single voice of synthetic-speech, at each pitch and speed."""
    return [f"espeak-ng {SPEAKER} {pitch} {speed}" for pitch in PITCHES for speed in SPEEDS]


def load_synthetic_speech(rate: int | None = None, seconds: float = SECONDS, voices=None, words=WORDS) -> Sounds:
    """Words by one synthetic voice, or by these voices, without classes: unlabelled speech.

    Raises FileNotFoundError if espeak-ng is not installed.
    """
    check_sound(rate, seconds, None)
    voices = (speaker_voices() if shutil.which("espeak-ng") else []) if voices is None else list(voices)
    sources = said([(voice, word) for voice in voices for word in words])
    one = dict.fromkeys(sources, 0)
    made = load_files("synthetic-speech", sources, rate, seconds, labels=one, classes=["speech"])
    return dataclasses.replace(made, labels=None, classes=None)


def said(jobs) -> dict[str, bytes]:
    """{"voice/words": contents of a .wav file} of these (voice, words). Raises FileNotFoundError if there are none."""
    from concurrent.futures import ThreadPoolExecutor

    from pydiff.sound.wav import wav_bytes

    if not jobs:
        raise FileNotFoundError(
            "synthetic voices need the program espeak-ng or flite; install Debian's packages of these names"
        )
    with ThreadPoolExecutor(4) as pool:
        spoken = pool.map(lambda job: wav_bytes(*say(*job)), jobs)
        return {f"{voice}/{words}": data for (voice, words), data in zip(jobs, spoken, strict=True)}
