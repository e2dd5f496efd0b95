"""Images, the denoising film and one self-contained HTML page that show a run."""

from pydiff.report.film import save_film
from pydiff.report.grid import grid, png_bytes, save_png
from pydiff.report.jupyter import html_summary
from pydiff.report.page import Page, write_page
from pydiff.report.terminal import show
from pydiff.report.write import write_report

__all__ = ["Page", "grid", "html_summary", "png_bytes", "save_film", "save_png", "show", "write_page", "write_report"]
