"""Every data file that is shipped has its line in NOTICE, with a licence that allows it and the hash of the file."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {".py", ".css", ".html", ".js", ".so", ".pyd", ".pyi", ".typed", ".pyc"}
ALLOWED = ("PDDL-1.0", "MIT", "CC0", "Unicode-3.0", "CC BY 4.0")

if not (ROOT / "NOTICE").is_file():
    pytest.skip("the sources are not here, only the installed package", allow_module_level=True)

LINES = [line.split(" | ") for line in (ROOT / "NOTICE").read_text().splitlines() if line.startswith("pydiff/")]


def test_every_data_file_has_a_line():
    shipped = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pydiff").rglob("*")
        if path.is_file() and path.suffix not in OURS and not path.name.endswith(".LICENSE.txt")
    }
    assert shipped == {file for file, *_ in LINES}


@pytest.mark.parametrize("line", LINES, ids=[file for file, *_ in LINES])
def test_a_line_says_source_licence_and_hash(line):
    file, what, source, licence, digest = line
    assert what
    assert source
    assert licence.startswith(ALLOWED)
    assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest() == digest
    text = ROOT / licence.partition(", see ")[2]
    assert text.read_text().startswith((ROOT / file).relative_to(text.parent).parts[0])  # the file, or its folder


def test_the_package_says_every_licence():
    """SPDX, as tools that collect licences read it."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"].split(" AND ")
    found = {
        re.sub(r"^CC BY ", "CC-BY-", part)
        for *_, licence, _ in LINES
        for part in re.split("; | and ", licence.partition(",")[0])
    }
    assert set(said) == {"MIT", *found}
