"""Images made on the fly, ordinary, odd and broken, as {file name: bytes}."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

H, W = 10, 12  # not square, so that a swapped axis shows


def colour(seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, different in every pixel and channel."""
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def grey(seed: int = 0) -> np.ndarray:
    """(H, W) uint8."""
    return colour(seed)[..., 0]


def encode(image, kind: str = "PNG", **options) -> bytes:
    """A Pillow image, or an array that Pillow can read, in a file format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG with this header, whatever the data: Pillow itself cannot write bombs or 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def ordinary() -> dict[str, bytes]:
    """One sound file of every format, colour(0) or close to it."""
    frames = [Image.fromarray(colour(i)) for i in range(3)]
    animation = {"save_all": True, "append_images": frames[1:], "loop": 0}
    files = {
        "a.png": encode(colour()),
        "a.jpg": encode(colour(), "JPEG", quality=95, subsampling=0),
        "progressive.jpeg": encode(colour(), "JPEG", quality=95, subsampling=0, progressive=True),
        "a.gif": encode(frames[0], "GIF", **animation),
        "a.bmp": encode(colour(), "BMP"),
        "a.tif": encode(colour(), "TIFF"),
        "deflate.tiff": encode(colour(), "TIFF", compression="tiff_adobe_deflate"),
        "a.ppm": encode(colour(), "PPM"),
        "lossless.webp": encode(colour(), "WEBP", lossless=True),
        "animated.apng": encode(frames[0], "PNG", **animation),
        "animated.webp": encode(frames[0], "WEBP", lossless=True, **animation),
    }
    if "AVIF" in Image.SAVE:
        files["a.avif"] = encode(colour(), "AVIF", quality=95, subsampling="4:4:4")
    return files


def broken() -> dict[str, bytes]:
    """Files with the suffix of an image that cannot be used; every one must be skipped."""
    files = {
        "empty.png": b"",
        "empty.jpg": b"",
        "one-byte.png": b"\x89",
        "zeros.png": bytes(500),
        "text.png": b"these are words, not pixels\n" * 20,
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "noise.gif": np.random.default_rng(1).bytes(400),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "document.tif": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        "archive.webp": b"PK\x03\x04" + bytes(60),
        "magic-only.png": b"\x89PNG\r\n\x1a\n",
        "magic-only.jpg": b"\xff\xd8\xff\xe0",
        "magic-only.gif": b"GIF89a",
        "magic-only.bmp": b"BM",
        "magic-only.tif": b"II*\x00",
        "magic-only.webp": b"RIFF\x10\x00\x00\x00WEBP",
        "magic-only.ppm": b"P6",
        "zero-wide.png": png(0, 10, 8, 0, b""),
        "zero-high.png": png(10, 0, 8, 0, b""),
        "bomb.png": png(60_000, 60_000, 8, 0, b""),
        "bomb-1-bit.png": png(2**31 - 1, 2**31 - 1, 1, 0, b""),
        "bomb-warning.png": png(10_000, 10_000, 8, 0, b""),  # between our limit and Pillow's error
        "above-limit.png": png(8_192, 8_193, 8, 0, b""),
        "long.png": png(2**27, 1, 8, 0, b""),
        "bomb.ppm": b"P6 60000 60000 255 " + bytes(100),
        "huge.ppm": b"P5 4000 4000 255 " + bytes(100),
        "bad-depth.png": png(W, H, 7, 0, bytes(200)),
        "bad-type.png": png(W, H, 8, 5, bytes(200)),
        "16-bit-key.png": encode(np.full((H, W), 7000, np.uint16), transparency=7000),
        "no-data.png": png(W, H, 8, 2, b""),
        "words.ppm": b"P6 ten twelve 255 " + bytes(400),
        "float-large.tif": encode(np.full((H, W), 300, np.float32), "TIFF"),
        "float-nan.tif": encode(np.full((H, W), np.nan, np.float32), "TIFF"),
        "int32-negative.tif": encode(np.full((H, W), -5, np.int32), "TIFF"),
        "int32-large.tif": encode(np.full((H, W), 70_000, np.int32), "TIFF"),
    }
    sound = ordinary() | {"a.gif": encode(colour(), "GIF")}  # an animation cut after its first frame would be usable
    flipped = bytearray(sound["a.png"])
    flipped[60] ^= 0xFF
    files["bad-checksum.png"] = bytes(flipped)
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.ppm", "lossless.webp"):
        stem, suffix = name.split(".")
        for percent in (3, 20, 40, 60, 80):
            files[f"{stem}-cut-at-{percent:02}.{suffix}"] = sound[name][: len(sound[name]) * percent // 100]
    return files


def odd() -> dict[str, tuple[bytes, np.ndarray]]:
    """Unusual files that are sound, with the pixels (h, w, C) they must give."""
    c, g = colour(), grey()
    alpha = grey(3)
    rgba = np.dstack([c, alpha])
    la = np.dstack([g, alpha])
    bits = g > 127
    deep = np.random.default_rng(4).integers(0, 65536, (H, W), dtype=np.uint16)
    deep.flat[:2] = 0, 65535
    deep_as_8 = np.rint(deep / 257.0).astype(np.uint8)[..., None]
    deep_colour = np.random.default_rng(5).integers(0, 256, (H, W, 3), dtype=np.uint8)
    deep_rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep_colour.astype(np.uint16) * 257)
    palette = Image.fromarray(c).quantize(16)
    palette_rgb = np.asarray(palette.convert("RGB"))
    indices = np.asarray(palette)
    palette_alpha = bytes(range(0, 256, 16))
    keyed = Image.fromarray(c)
    key = tuple(int(v) for v in c[0, 0])
    unit = g / np.float32(255)
    cmyk = Image.fromarray(c).convert("CMYK")

    def with_alpha(rgb, opaque):
        return np.dstack([rgb, np.broadcast_to(np.where(opaque, 255, 0), (H, W)).astype(np.uint8)])

    grey_rgb = np.dstack([g, g, g])
    g1 = g[..., None]
    return {
        "1x1.png": (encode(c[:1, :1]), c[:1, :1]),
        "1xn.png": (encode(c[:1]), c[:1]),
        "nx1.png": (encode(c[:, :1]), c[:, :1]),
        "long.png": (encode(np.tile(c[:1], (1, 400, 1))), np.tile(c[:1], (1, 400, 1))),
        "grey.png": (encode(g), g1),
        "grey-as-rgb.png": (encode(grey_rgb), g1),
        "grey-as-rgba.png": (encode(with_alpha(grey_rgb, True)), g1),
        "grey.gif": (encode(g, "GIF"), g1),
        "opaque-rgba.png": (encode(with_alpha(c, True)), c),
        "rgba.png": (encode(rgba), rgba),
        "rgba.webp": (encode(rgba, "WEBP", lossless=True, exact=True), rgba),
        "rgba.tif": (encode(rgba, "TIFF"), rgba),
        "la.png": (encode(Image.merge("LA", _planes(la))), np.dstack([g, g, g, alpha])),
        "la-opaque.png": (encode(Image.merge("LA", _planes(np.dstack([g, np.full_like(g, 255)])))), g1),
        "1-bit.png": (encode(bits), np.where(bits, 255, 0).astype(np.uint8)[..., None]),
        "1-bit.tif": (encode(bits, "TIFF"), np.where(bits, 255, 0).astype(np.uint8)[..., None]),
        "1-bit.pbm": (encode(bits, "PPM"), np.where(bits, 255, 0).astype(np.uint8)[..., None]),
        "16-bit.png": (encode(deep), deep_as_8),
        "16-bit.tif": (encode(deep, "TIFF"), deep_as_8),
        "16-bit-big-endian.tif": (encode(deep.astype(">u2"), "TIFF"), deep_as_8),
        "16-bit.pgm": (encode(deep, "PPM"), deep_as_8),
        "16-bit-rgb.png": (png(W, H, 16, 2, deep_rows), deep_colour),
        "int32.tif": (encode(deep.astype(np.int32), "TIFF"), deep_as_8),
        "float.tif": (encode(unit, "TIFF"), g1),
        "palette.png": (encode(palette), palette_rgb),
        "palette-index.png": (encode(palette, transparency=3), with_alpha(palette_rgb, indices != 3)),
        "palette-alpha.png": (
            encode(palette, transparency=palette_alpha),
            np.dstack([palette_rgb, np.frombuffer(palette_alpha, np.uint8)[indices]]),
        ),
        "palette-index.gif": (encode(palette, "GIF", transparency=3), with_alpha(palette_rgb, indices != 3)),
        "grey-key.png": (encode(g, transparency=int(g[0, 0])), with_alpha(grey_rgb, g != g[0, 0])),
        "rgb-key.png": (encode(keyed, transparency=key), with_alpha(c, (c != c[0, 0]).any(-1))),
        "cmyk.tif": (encode(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        "UPPER.PNG": (encode(c), c),
        "png-inside.jpg": (encode(c), c),
        "bmp-inside.png": (encode(c, "BMP"), c),
        "bad-exif.png": (encode(c, exif=b"Exif\0\0 this is no TIFF header"), c),
        "bad-orientation.png": (encode(c, exif=exif(77)), c),
        "no-end.png": (encode(c)[:-12], c),
        "tail.png": (encode(c) + bytes(300), c),
        "plain.ppm": (b"P3 2 1 255  1 2 3  40 50 60\n", np.array([[[1, 2, 3], [40, 50, 60]]], np.uint8)),
    }


def _planes(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(pixels.shape[-1])]
