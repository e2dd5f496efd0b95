"""Captions of a folder: metadata.jsonl, metadata.csv, .txt files; what is found, and what is broken and listed."""

import contextlib
import json
import os
import unicodedata

import numpy as np
import odd_images as made
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.data import Dataset, describe, load, pick_captions
from pydiff.data.captions import Captions, clean, decode, language_of


def shade(value):
    return made.encode(np.full((4, 4), value, np.uint8))


def folder(root, files, shades=("a.png", "b.png", "c.png")):
    """Images that are recognised by their value, and other files, as text or bytes."""
    for path, content in {**{name: shade(i) for i, name in enumerate(shades)}, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def jsonl(*rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def captions(root, **options):
    """{first pixel of an image: its captions}"""
    dataset = load(root, **options)
    return dict(zip(dataset.images[:, 0, 0, 0].tolist(), dataset.captions, strict=True))


# ---- where captions are found --------------------------------------------------------------------------------------


def test_metadata_jsonl(tmp_path):
    rows = {"file_name": "b.png", "text": "a blue dot"}, {"file_name": "a.png", "text": "ein grüner Baum", "size": 3}
    dataset = load(folder(tmp_path, {"metadata.jsonl": jsonl(*rows)}))
    assert dataset.captions == (("ein grüner Baum",), ("a blue dot",), ())
    assert dataset.languages is None
    assert "2 captions for 2 images; without one: c.png" in dataset.notes
    assert dataset.skipped == []
    assert dataset.titles([1, 2, 0]) == ["a blue dot", "", "ein grüner Baum"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_metadata_csv_as_any_program_writes_it(tmp_path, separator, end, encoding):
    lines = [("file_name", "text"), ("a.png", '"ein Wort, noch; eins"'), ("b.png", '"say ""hü"""'), ("c.png", "")]
    text = end.join(separator.join(line) for line in lines) + end
    dataset = load(folder(tmp_path, {"metadata.csv": text.encode(encoding)}))
    assert dataset.captions == (("ein Wort, noch; eins",), ('say "hü"',), ())
    said = [note for note in dataset.notes if "Windows-1252" in note]
    assert said == (["metadata.csv is not UTF-8, read as Windows-1252"] if encoding == "cp1252" else [])


def test_a_txt_beside_each_image_one_caption_a_line(tmp_path):
    files = {"a.txt": "\ufeffone\r\n\r\n  two  words \r\n", "b.de.txt": "drei", "b.txt": "three", "c.txt": "\n \n"}
    dataset = load(folder(tmp_path, {**files, "README.txt": "about", "d.TXT": "no image"}))
    assert dataset.captions == (("one", "two words"), ("drei", "three"), ())
    assert dataset.languages == (("", ""), ("de", ""), ())
    assert "2 .txt files without an image of that name: README.txt, d.TXT" in dataset.notes


def test_languages_lists_and_both_files_add_up(tmp_path):
    rows = [
        {"file_name": "a.png", "text_en": ["a dot", "a spot"], "text_de": "ein Punkt"},
        {"file_name": "b.png", "captions": {"en": "a line", "de": ["ein Strich"]}, "text": None},
        {"file_name": "a.png", "text_en": "a dot", "caption_fr": "un point"},  # the first again, and one more
    ]
    root = folder(tmp_path, {"metadata.jsonl": jsonl(*rows), "metadata.csv": "file_name,text-pt-BR\nc.png,um ponto\n"})
    dataset = load(root)
    found = [sorted(zip(*pair, strict=True)) for pair in zip(dataset.captions, dataset.languages, strict=True)]
    assert found == [
        [("a dot", "en"), ("a spot", "en"), ("ein Punkt", "de"), ("un point", "fr")],
        [("a line", "en"), ("ein Strich", "de")],
        [("um ponto", "pt-br")],
    ]
    english = dataset.in_languages(["en"])
    assert english.captions == (("a dot", "a spot"), ("a line",), ())
    assert english.fingerprint() != dataset.fingerprint()
    with pytest.raises(ValueError, match="has captions in de, en, fr, pt-br and none in ja"):
        dataset.in_languages(["ja"])


def test_captions_in_class_folders_and_beside_them(tmp_path):
    names = ("cat/1.png", "cat/2.png", "dog/1.png")
    files = {
        "metadata.csv": "file_name,text\ncat/1.png,a cat\n",
        "dog/metadata.jsonl": '{"file_name": "1.png", "text": "a dog"}',
    }
    dataset = load(folder(tmp_path, files, names))
    assert dataset.classes == ["cat", "dog"]
    assert dataset.captions == (("a cat",), (), ("a dog",))
    assert dataset.titles(range(3)) == ["a cat", "cat", "a dog"]


def test_a_folder_without_captions_has_none(tmp_path):
    dataset = load(folder(tmp_path, {"notes.md": "x"}))
    assert dataset.captions is None
    assert dataset.notes == ["1 other file left out (.md 1)"]
    dataset = load(folder(tmp_path, {"README.txt": "x", "a.txt": ""}))
    assert dataset.captions is None
    assert "1 .txt file without an image of that name: README.txt" in dataset.notes


def test_captions_stay_with_their_images(tmp_path):
    """Whatever is skipped, split off or resized."""
    files = {"metadata.jsonl": jsonl(*({"file_name": f"{c}.png", "text": c} for c in "abcde")), "b.png": b"broken"}
    dataset = load(folder(tmp_path, files, [f"{c}.png" for c in "abcde"]), size=6)
    assert [path for path, _ in dataset.skipped] == ["b.png"]
    for part in (dataset, load(dataset, size=5), dataset.subset([3, 0]), *dataset.split(0.5)):
        expected = [("abcde"[int(v)],) for v in part.images[:, 0, 0, 0]]
        assert list(part.captions) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,label,score\na.png,cat,1\nb.png,dog,2\nc.png, cat ,3\n"),
        ("metadata.csv", "File_Name;Label;score\na.png;cat;1\nb.png;dog;2\nc.png;cat;3\n"),
        ("metadata.jsonl", jsonl(*({"image": f"{i}.png", "class": c, "score": 1} for i, c in ("ax", "by", "cx")))),
    ],
)  # fmt: skip
def test_labels_in_metadata_are_classes_and_other_columns_are_named(tmp_path, name, text):
    dataset = load(folder(tmp_path, {name: text}))
    assert [dataset.classes[i] for i in dataset.labels] in (["cat", "dog", "cat"], ["x", "y", "x"])
    assert dataset.notes == [f"classes are taken from {name}", f"{name}: not used: score"]


def test_labels_of_some_images_and_labels_that_are_none_are_said(tmp_path):
    rows = jsonl({"file_name": "a.png", "label": 1.5}, {"file_name": "b.png", "label": "x"}, {"file_name": "c.png"})
    dataset = load(folder(tmp_path, {"metadata.jsonl": rows}))
    assert dataset.classes is None
    assert "1 image with a class in a file, not all" in dataset.notes
    assert any("line 1: its label is 1.5, expected a whole number or a string" in note for note in dataset.notes)


@pytest.mark.parametrize("text", ["", "file_name,text\n", "\n\n"])
def test_metadata_that_say_nothing_are_said(tmp_path, text):
    assert load(folder(tmp_path, {"metadata.csv": text})).notes == ["metadata.csv says nothing of any image"]


def test_whole_paths_of_images_in_the_folder_are_found(tmp_path):
    rows = (
        f"file_name,text\n{tmp_path}/a.png,x\n{tmp_path}/sub/b.png,y\n{tmp_path.parent}/c.png,z\n{tmp_path}x/a.png,q\n"
    )
    root = folder(tmp_path, {"metadata.csv": rows}, ["a.png", "sub/b.png", "c.png"])
    assert captions(root) == {0: ("x",), 1: ("y",), 2: ()}
    assert any("line 4: leads out of the folder; line 5: leads out" in note for note in load(root).notes)


# ---- what is odd or broken -----------------------------------------------------------------------------------------


def test_broken_lines_are_listed_and_the_rest_is_used(tmp_path):
    lines = ["", "not json", '["a.png"]', '{"text": "no name"}', '{"file_name": 3, "text": "x"}', "[" * 100_000]
    lines += ['{"file_name": "a.png", "text": 7}', '{"file_name": "b.png", "text": "kept"}', '{"file_name": "a.png"}']
    dataset = load(folder(tmp_path, {"metadata.jsonl": "\r\n".join(lines)}))
    assert dataset.captions == ((), ("kept",), ())
    note = next(note for note in dataset.notes if note.startswith("metadata.jsonl"))
    assert note == (
        "metadata.jsonl: 6 lines cannot be used (line 2: not a JSON object; line 3: not a JSON object; "
        "line 4: no file_name; line 5: no file_name; line 6: not a JSON object; and 1 more)"
    )


def test_missing_images_are_listed(tmp_path):
    rows = [{"file_name": name, "text": name} for name in ("a.png", "gone.png", "notes.md", "sub/x.png")]
    dataset = load(folder(tmp_path, {"metadata.jsonl": jsonl(*rows), "notes.md": "x"}))
    assert dataset.skipped == [
        ("gone.png", "named in metadata.jsonl line 2, but no such image"),
        ("notes.md", "named in metadata.jsonl line 3, but no such image"),
        ("sub/x.png", "named in metadata.jsonl line 4, but no such image"),
    ]
    assert "3 files skipped (first: gone.png: named in" in describe(dataset)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "x/../../secret.png", "..\\secret.png", "..", "sub/../../main/../secret.png"],
)
def test_no_name_leads_out_of_the_folder(tmp_path, name, monkeypatch):
    (tmp_path / "secret.png").write_bytes(shade(9))
    root = folder(
        tmp_path / "main",
        {"metadata.jsonl": jsonl({"file_name": name, "text": "x"}, {"file_name": "a.png", "text": "y"})},
    )
    opened = []
    monkeypatch.setattr("pydiff.data.folder.read_frames", spy(opened))
    dataset = load(root)
    assert dataset.captions == (("y",), (), ())
    assert any("line 1: leads out of the folder" in note for note in dataset.notes)
    assert all(root in path.parents for path in opened)


def spy(opened):
    from pydiff.data.image import read_frames

    def reading(path, **options):
        opened.append(path)
        return read_frames(path, **options)

    return reading


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "x" * 5000, "a.png\n\x1b[31m", "", ".", "a.png/"])
def test_hostile_names_are_listed_in_print(tmp_path, name):
    rows = json.dumps({"file_name": name, "text": "x"}) + '\n{"file_name": "b.png", "text": "kept"}'
    dataset = load(folder(tmp_path, {"metadata.jsonl": rows}))
    assert dataset.captions[1] == ("kept",)
    text = describe(dataset)
    text.encode()
    assert "\x1b" not in text
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("language", ["en\ud800", "en\x1b[31m", "en\n", "\ud800\ud801"])
def test_hostile_languages_are_told_in_print(tmp_path, language):
    rows = [{"file_name": "a.png", "text": {language: "x"}}, {"file_name": "b.png", "caption_de": "y"}]
    dataset = load(folder(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, rows))}))
    assert dataset.captions == (("x",), ("y",), ())
    assert dataset.languages[0][0] in ("en", "en[31m", "")
    assert all(note.isprintable() for note in dataset.notes)


def test_languages_without_number_are_told_in_part(tmp_path):
    text = {f"l{i:03}": f"x{i}" for i in range(900)}
    dataset = load(folder(tmp_path, {"metadata.jsonl": jsonl({"file_name": "a.png", "text": text})}))
    assert any(note.startswith("900 captions") and "and 895 more" in note for note in dataset.notes), dataset.notes
    with pytest.raises(ValueError, match=r"has captions in l000, .*and 895 more and none in fr$"):
        dataset.in_languages(["fr"])


def test_names_in_windows_spelling_and_with_composed_or_decomposed_umlauts(tmp_path):
    names = [f"sub/{unicodedata.normalize(form, c)}.png" for form, c in (("NFC", "ä"), ("NFD", "ö"), ("NFC", "ü"))]
    rows = [{"file_name": f"sub\\{c}.png", "text": c} for c in (unicodedata.normalize("NFD", "ä"), "ö", "ü")]
    found = captions(folder(tmp_path, {"metadata.jsonl": jsonl(*rows)}, names))
    assert found == {0: ("ä",), 1: ("ö",), 2: ("ü",)}


def test_long_and_odd_captions_are_kept_in_one_clean_line(tmp_path):
    long = " ".join(f"word{i}" for i in range(300))
    odd = "\x1b[31mred\x07 \ud83d\ude00 a\u0308\u2028next\tline"
    rows = json.dumps({"file_name": "a.png", "text": long}) + "\n" + json.dumps({"file_name": "b.png", "text": odd})
    dataset = load(folder(tmp_path, {"metadata.jsonl": rows}))
    assert dataset.captions[:2] == ((long,), ("[31mred 😀 ä next line",))
    assert "captions: 5 to 300 words" in describe(dataset)


def test_files_that_are_no_text(tmp_path):
    files = {"a.txt": bytes(100), "b.txt": b"x" * (2**20 + 1), "metadata.csv": b"\xff\xfe\x00", "c.txt": "kept"}
    root = folder(tmp_path, files)
    os.mkfifo(root / "metadata.jsonl")
    dataset = load(root)
    assert dataset.captions == ((), (), ("kept",))
    assert dataset.skipped == [
        ("a.txt", "not a text file"),
        ("b.txt", "1,048,577 bytes, too large for a caption"),
        ("metadata.csv", "damaged UTF-16"),
        ("metadata.jsonl", "not a file"),
    ]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("name,text\na.png,x", "line 1: the columns are name, text, expected file_name and text"),
        ('"na\nm\x1be",text\na.png,x', r"line 1: the columns are na\nm\x1be, text, expected file_name and text"),
        ("file_name,text\na.png", None),
        ("file_name,text\na.png,x,more,columns", None),
        ('file_name,text\na.png,"' + "x" * 200_000 + '"', "field larger than field limit"),
    ],
)
def test_odd_csv_files(tmp_path, text, note):
    dataset = load(folder(tmp_path, {"metadata.csv": text, "b.txt": "kept"}))
    assert dataset.captions[1] == ("kept",)
    assert any(note in n for n in dataset.notes) if note else not any("cannot be used" in n for n in dataset.notes)


@given(st.text(max_size=60))
def test_clean_text_is_one_printable_line_and_stays_so(text):
    once = clean(text)
    assert clean(once) == once
    assert len(once.splitlines()) <= 1
    once.encode()


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_refused(data):
    try:
        text, _ = decode(data)
    except ValueError:
        return
    assert "\0" not in text or data.startswith((b"\xff\xfe", b"\xfe\xff"))


@given(st.lists(st.sampled_from(["..", ".", "a", "b.png", "/", "\\", "", "c"]), max_size=8).map("/".join))
def test_names_are_looked_up_among_the_images_alone(name):
    found, known = Captions(["b.png", "a/b.png", "a/c/b.png"]), {None, "b.png", "a/b.png", "a/c/b.png"}
    with contextlib.suppress(ValueError):  # "leads out of the folder"
        assert found.image("a", name) in known


def test_columns_that_hold_captions():
    known = {
        "text": "",
        "caption": "",
        "Captions": "",
        "prompt": "",
        "text_de": "de",
        "captions-EN": "en",
        "text_pt_BR": "pt-br",
    }
    for key, language in known.items():
        assert language_of(key) == language
    for key in ("texture", "text_length", "context", "label", "prompt_id2", "text_raw"):
        assert language_of(key) is None


# ---- arrays, and the set itself ------------------------------------------------------------------------------------


def test_npz_with_captions(tmp_path):
    images = np.arange(3, dtype=np.uint8).repeat(16).reshape(3, 4, 4)
    np.savez(tmp_path / "a.npz", images=images, captions=np.array(["rot", "grün", ""]), labels=[0, 1, 1])
    dataset = load(tmp_path / "a.npz")
    assert dataset.captions == (("rot",), ("grün",), ())
    assert dataset.classes == ["0", "1"]
    several = np.array([["one", "two"], ["three", ""], ["", ""]])
    np.savez(
        tmp_path / "b.npz",
        images=images,
        captions_en=several,
        captions_de=np.array([b"eins", "f\u00fcnf".encode(), b""]),
    )
    dataset = load(tmp_path / "b.npz")
    assert dataset.captions == (("one", "two", "eins"), ("three", "fünf"), ())
    assert dataset.languages == (("en", "en", "de"), ("en", "de"), ())
    np.savez(tmp_path / "c.npz", images=images, captions=np.array(["one"]))
    with pytest.raises(ValueError, match="captions for 1 images, and 3 images"):
        load(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", images=images, captions=np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="its text is 1, not a string"):
        load(tmp_path / "d.npz")


def test_a_text_is_no_list_of_captions():
    """Of five letters for five images, nobody would notice."""
    for captions in ("hello", b"hello", {"de": "hallo"}):
        with pytest.raises(TypeError, match=r"captions are the text .* give a list with one for each image"):
            load(np.zeros((5, 4, 4), np.uint8), captions=captions)
    with pytest.raises(ValueError, match="caption number 1: its text is 7, not a string"):
        load(np.zeros((2, 4, 4), np.uint8), captions=["a", 7])


def test_arrays_with_captions():
    images = np.zeros((2, 4, 4), np.uint8)
    assert load(images, captions=["a", ["b", "c"]]).captions == (("a",), ("b", "c"))
    assert load(images, captions={"en": ["a", ""], "de": ["x", "y"]}).languages == (("en", "de"), ("de",))
    with pytest.raises(ValueError, match="captions= belongs to arrays"):
        load("digits", captions=["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": ["a"]}, "one entry for each of 2 images"),
        ({"captions": ["a", 3]}, None),
        ({"captions": ["a", [3]]}, "a string or a sequence of strings"),
        ({"languages": ["en", "de"]}, "belong together"),
        ({"captions": ["a", "b"], "languages": ["en", ()]}, "as many languages as captions"),
    ],
)
def test_impossible_captions(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Dataset("test", np.zeros((2, 4, 4, 1), np.uint8), **changes)


def test_the_fingerprint_notices_captions():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    words = [None, [("a",), ("b",)], [("b",), ("a",)], [("a", "b"), ()], [("a",), ()]]
    sets = [Dataset("x", images, captions=w) for w in words]
    sets.append(Dataset("x", images, captions=words[1], languages=[("en",), ("de",)]))
    assert len({s.fingerprint() for s in sets}) == len(sets)


def test_the_caption_of_a_step_depends_on_seed_step_and_number_alone():
    captions = (("a", "b", "c"), (), ("d",))
    chosen = np.tile([0, 1, 2], 200)
    picked = pick_captions(captions, chosen, 5, 7)
    assert set(picked[0::3]) == {"a", "b", "c"}
    assert set(picked[1::3]) == {""}
    assert set(picked[2::3]) == {"d"}
    assert min(picked.count(c) for c in "abc") > 40
    half = np.arange(300, 600)
    assert pick_captions(captions, chosen[half], 5, 7, half) == picked[300:]
    assert pick_captions(captions, chosen, 6, 7) != picked != pick_captions(captions, chosen, 5, 8)
