"""diffusers' file formats, translated into pydiff's terms and back."""
