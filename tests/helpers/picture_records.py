"""array_record files of pictures in the layout of ImageNet, and what decoding them gives.

python -m tests.helpers.picture_records FOLDER streams an epoch from such files and prints the
greatest memory of the process in megabytes.
"""

import io
import resource
import sys

import jax
import numpy as np
from PIL import Image

from experiments.data._rows import Pictures, Records
from jaxadv import training


def field(number, value):
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def record(picture, label, name="n01440764_1.JPEG"):
    """A serialized tf.train.Example as tensorflow_datasets writes it: int64 lists are packed."""
    integers = field(3, field(1, varint(label)))
    strings = {"file_name": name.encode(), "image": picture}
    entries = {name: field(1, field(1, value)) for name, value in strings.items()}
    entries["label"] = integers
    body = (field(1, field(1, name.encode()) + field(2, value)) for name, value in entries.items())
    return field(1, b"".join(body))


def pictures(number, seed=0, size=None):
    """JPEGs of different sizes, and labels."""
    rng, found = np.random.default_rng(seed), []
    for index in range(number):
        height, width = size or (20 + 3 * (index % 5), 36 - 4 * (index % 3))
        coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image = image.convert("L") if index % 7 == 6 else image
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95)
        found.append(file.getvalue())
    return found, rng.integers(0, 1000, number).astype(np.int32)


def write(folder, part, files, labels, shards=3):
    """Writes records, named by number, in shards of different lengths."""
    from array_record.python import array_record_module

    folder.mkdir(parents=True, exist_ok=True)
    bounds = [0, *sorted({len(files) * k // (shards + 1) for k in range(1, shards)}), len(files)]
    for shard, (first, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        path = folder / f"imagenet2012-{part}.array_record-{shard:05d}-of-{len(bounds) - 1:05d}"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for row in range(first, end):
            name = f"ILSVRC2012_val_{row + 1:08d}.JPEG"
            writer.write(record(files[row], int(labels[row]), name))
        writer.close()


def stream_an_epoch(paths, side=256):
    """Takes every minibatch once; returns the greatest memory in megabytes."""
    images = Pictures(Records(paths), side)
    with training.Stream(images, np.zeros(len(images), np.int32), chunk=2) as stream:
        for first in range(0, len(images) // 8, 2):
            jax.block_until_ready(stream.take(jax.random.key(0), first, 2, batch_size=8))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    import pathlib

    print(stream_an_epoch(sorted(pathlib.Path(sys.argv[1]).iterdir())))
