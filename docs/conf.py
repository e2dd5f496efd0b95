"""Builds the documentation site: `pip install -e '.[docs]'`, then `sphinx-build -W docs build/site`.

The pages are Markdown, and so are the docstrings: what is indented in them is an equation or code. The reference is
made from the sources, without importing them.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "pydiff"
author = copyright = "the pydiff authors"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "autodoc2"]
html_theme = "furo"
html_title = f"pydiff {version}"

myst_enable_extensions = ["fieldlist"]
myst_heading_anchors = 3

autodoc2_packages = [{"path": "../pydiff", "exclude_files": ["cli.py", "console.py", "__main__.py", "moved.py"]}]
autodoc2_output_dir = "reference"
autodoc2_render_plugin = "myst"
autodoc2_hidden_objects = ["private", "dunder", "inherited"]
autodoc2_index_template = None
suppress_warnings = ["autodoc2.dup_item"]  # a constant that is set in one of two ways
