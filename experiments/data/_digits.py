"""digits: 1,797 real 8x8 images of handwritten digits, shipped inside scikit-learn.

They are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin
and Kaynak, 1998), 13 writers, every pixel an integer in 0..16.
"""

import hashlib

import numpy as np

from ._dataset import DataError, Dataset

# MD5 of the 64 * 1,797 pixel values in 0..16 followed by the 1,797 labels, one byte each.
_MD5 = "7696c07daa6d85010f8268703ab8b067"
_TEST_EVERY = 5


def load_digits() -> Dataset:
    """Loads digits: 1,437 training and 360 test images of shape (8, 8, 1); works offline.

    A pixel v in 0..16 becomes (255 v + 8) // 16, which is 255 v / 16 rounded half up: 0 stays 0, 8
    becomes 128, 16 becomes 255, and no two values collide.

    scikit-learn defines no split. Here the images are sorted by class (stably), and every fifth,
    starting with the first, is a test image. This split needs no random numbers, is stratified (a
    fifth of each class, rounded up or down, is in the test set) and spreads every writer over both
    parts.

    Returns:
      The data set.

    Raises:
      DataError: if the installed scikit-learn ships other values.

    Example:
      >>> digits = load_digits()
      >>> digits.train_images.shape, digits.test_images.shape
      ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    # Imported here: scikit-learn takes seconds to import, and only this data set needs it.
    import sklearn
    from sklearn import datasets

    bunch = datasets.load_digits()
    source = f"scikit-learn {sklearn.__version__}"
    # The declared type includes a tuple, which other options return.
    images, labels = np.asarray(bunch["images"]), np.asarray(bunch["target"])  # pyright: ignore
    values = images.astype(np.uint8)
    digest = hashlib.md5(values.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if digest != _MD5:
        raise DataError(
            source, f"its digits have MD5 {digest}, expected {_MD5}", "Reinstall scikit-learn"
        )
    scaled = ((values.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)[..., None]
    test = np.zeros(len(labels), bool)
    test[np.argsort(labels, kind="stable")[::_TEST_EVERY]] = True
    labels = labels.astype(np.int32)
    return Dataset(
        "digits",
        scaled[~test],
        labels[~test],
        scaled[test],
        labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
        source=source,
        verification=f"MD5 {_MD5} of pixels and labels",
    )
