"""The preview of a training in progress: a few samples, as a PNG, and for a callback."""


def preview_png(live, watch=None):
    """The bytes of a PNG of a few samples. live: the run in training, of a diffusion model, or of an autoencoder, whose
    originals are above their reconstructions. watch: called with the step and the images (N, H, W, C) uint8; or None.
    """
    from pydiff.report.grid import grid, png_bytes

    draws = getattr(live, "draws", True)
    images = live.codec.show(live.pipeline.preview()) if draws else live.preview()
    if watch is not None:
        watch(live.step, images)
    return png_bytes(grid(images, columns=None if draws else len(images) // 2))
