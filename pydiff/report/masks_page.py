"""The page of a segmentation: its IoU beside that of a threshold, and the predictions of both on held-out images."""

import numpy as np

from pydiff.report import loss
from pydiff.report.grid import grid
from pydiff.report.markup import img, text
from pydiff.report.nearest import spread
from pydiff.report.pixels import visible
from pydiff.report.story import table, write_story

SHOWN = 8
TINTS = np.array(
    [[235, 235, 230], [214, 69, 65], [46, 134, 171], [242, 183, 5], [86, 163, 91], [142, 85, 163], [240, 128, 60]],
    np.uint8,
)


def tint(masks, classes):
    """Masks (N, H, W) as images (N, H, W, 3) uint8, one colour per class."""
    more = np.random.default_rng(0).integers(40, 220, (max(classes - len(TINTS), 0), 3)).astype(np.uint8)
    return np.concatenate([TINTS, more])[masks]


def write_masks_page(path, scores, held_out, predicted, threshold, log):
    """Writes the page; scores: see `pydiff.segment.evaluated`. Returns its path."""
    chosen, count = spread(len(held_out), SHOWN), len(held_out.classes)
    images = visible(held_out.images[chosen])[..., :3]
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    rows = [images, *(tint(masks[chosen], count) for masks in (held_out.masks, predicted, threshold))]
    sheet = grid(np.concatenate(rows), columns=len(chosen), scale=max(1, 96 // images.shape[1]))
    legend = ", ".join(
        f'<span style="border-bottom:4px solid rgb({r},{g},{b})">{text(name)}</span>'
        for name, (r, g, b) in zip(held_out.classes, tint(np.arange(count), count).tolist(), strict=True)
    )
    network, other = scores["network"], scores["threshold"]
    lines = [
        (name, *("-" if v is None else f"{v:.3f}" for v in (network["iou"][k], other["iou"][k])))
        for k, name in enumerate(held_out.classes)
    ]
    lines += [(what, f"{network[key]:.3f}", f"{other[key]:.3f}") for what, key in
              (("mean", "mean iou"), ("pixels that are right", "accuracy"))]  # fmt: skip
    parts = [
        (
            "How well",
            "<p>Intersection over union of every class: of the pixels that are of the class or are taken for it, the "
            f"share that is both. Over {scores['images']} images that the network never saw, beside the best that "
            "thresholds of brightness or colour do.</p>" + table(("class", "network", "threshold"), lines),
        ),
        (
            "What it sees",
            f"<p>Rows: the image, its true mask, the network's, the threshold's. Classes: {legend}.</p>"
            + img(sheet, "held-out images, their masks, the network's, the threshold's"),
        ),
        ("Training", loss.chart(loss.curve(log))),
    ]
    lead = "The U-Net comes from here: it says of every pixel what it shows, as it says of noise what is noise."
    return write_story(path, f"Segmentation of {held_out.name}", lead, parts)
