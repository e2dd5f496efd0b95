"""What diffusers writes, in our own terms."""
