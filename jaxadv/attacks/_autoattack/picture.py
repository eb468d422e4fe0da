"""A figure of a few adversarial images, drawn with numpy alone."""

import pathlib
import struct
import zlib

import numpy as np

# 3 x 5 pixels a glyph, one digit of base 8 a row.
_ROWS = "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 42124"
_GLYPHS = dict(zip("0123456789>", _ROWS.split(), strict=True))


def draw(clean, adversarial, labels, predictions, *, height: int = 96) -> np.ndarray:
    """Rows: clean images, perturbations, adversarial images, "label>prediction".

    Args:
        clean: (B, H, W, C) in [0, 1], C = 1 or 3.
        adversarial: same shape.
        labels: (B,) true classes.
        predictions: (B,) classes of the adversarial images.
        height: approximate height of an image in pixels.

    Returns:
        RGB bytes of shape (rows, columns, 3). Perturbations are scaled to their largest entry, grey
        is 0.
    """
    zoom = max(height // clean.shape[1], 1)
    deltas = adversarial - clean
    largest = np.abs(deltas).max(axis=(1, 2, 3), keepdims=True)
    shown = 0.5 + 0.5 * deltas / np.where(largest > 0, largest, 1)
    rows = [_row(images, zoom) for images in (clean, shown, adversarial)]
    texts = [f"{label}>{guess}" for label, guess in zip(labels, predictions, strict=True)]
    width = rows[0].shape[1] // len(texts)
    captions = [_text(text, width) for text in texts]
    return np.concatenate([*rows, np.concatenate(captions, axis=1)])


def write_png(path, pixels: np.ndarray) -> None:
    """Writes RGB bytes of shape (H, W, 3) to a PNG file."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.tobytes() for line in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pathlib.Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def _row(images, zoom: int) -> np.ndarray:
    colours = np.broadcast_to(images, (*images.shape[:3], 3))
    bytes_ = np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)
    large = bytes_.repeat(zoom, axis=1).repeat(zoom, axis=2)
    framed = np.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def _text(text: str, width: int) -> np.ndarray:
    ink = np.zeros((7, 4 * len(text) + 1), bool)
    for place, letter in enumerate(text):
        for row, digit in enumerate(_GLYPHS[letter]):
            for column in range(3):
                ink[1 + row, 1 + 4 * place + column] = int(digit) >> (2 - column) & 1
    zoom = max(min(3, width // ink.shape[1]), 1)
    ink = ink.repeat(zoom, axis=0).repeat(zoom, axis=1)[:, :width]
    out = np.full((21, width, 3), 255, np.uint8)
    out[: ink.shape[0], : ink.shape[1]][ink] = 0
    return out
