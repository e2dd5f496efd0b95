"""Claims of papers and of the lecture, measured with pydiff's own trained models."""
