"""Files that others write and read: safetensors, and diffusers' folders."""
