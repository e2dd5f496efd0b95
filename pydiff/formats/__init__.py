"""File formats shared with other software: safetensors, PyTorch's own files, and diffusers' folders."""
