"""Chooses the text encoder for a data set's captions, and which of the captions it gets."""

from pydiff import text
from pydiff.data.dataset import some

UNKNOWN = 8  # words that a note names


def captions_for(dataset, name: str, seed: int, given: bool = False):
    """(text encoder or None, its captions or None, sentences on the choice) for a data set.

    name: of the encoder, "none", or "auto": one that understands at least half of the captions, if there are any and
    the network was not given, as that may take none. seed: of an encoder that is trained with the U-Net. Raises
    ValueError if there are no captions for a named encoder.
    """
    if name == "none" or (name == "auto" and (dataset.captions is None or given)):
        return None, None, []
    encoder = text.named("glove" if name == "auto" else name)
    if dataset.captions is None:
        raise ValueError(f"text={name!r} needs captions, but {dataset.name} has none; leave out text")
    try:
        captions = (dataset if encoder.languages is None else dataset.in_languages(encoder.languages)).captions
    except ValueError as error:
        if name != "auto":
            raise
        return None, None, [f"its captions are not used: {error}"]
    texts = [caption for row in captions for caption in row]
    if name == "auto" and sum(map(encoder.understands, texts)) < len(texts) / 2:
        unused = f"its captions are not used: the text encoder {encoder.kind!r} understands too few of them"
        return None, None, [unused]
    note = f"told its captions by the text encoder {encoder.kind!r}; text='none' leaves them out"
    unknown = encoder.unknown(texts)
    known = f"; unknown to it: {some(unknown, ', ', UNKNOWN)}" if unknown else ""
    return encoder.prepared(texts, seed), captions, [note + known]
