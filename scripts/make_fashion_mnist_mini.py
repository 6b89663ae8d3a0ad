"""Make the embedded dataset: a stratified subset of Fashion-MNIST, 10,000 + 2,500 images.

Xiao et al. 2017, MIT licence.

    python scripts/make_fashion_mnist_mini.py /usr/share/datasets/fashion-mnist

The folder holds the four published files (Debian: package dataset-fashion-mnist). The first 1,000
training and 250 test images of each class are kept, in their published order. The result is checked
by hash, so that anybody can make the same file again.
"""

import argparse
import hashlib
import lzma
from pathlib import Path

import numpy as np

from earlydrop.training.data.arrays import EMBEDDED, EMBEDDED_SHA256, read_idx


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the four published files")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    arguments = parser.parse_args()
    arrays = []
    for split, count in (("train", 1_000), ("t10k", 250)):
        images = read_idx(arguments.folder / f"{split}-images-idx3-ubyte.gz")
        labels = read_idx(arguments.folder / f"{split}-labels-idx1-ubyte.gz")
        keep = first_of_each_class(labels, count)
        arrays += [images[keep], labels[keep]]
    content = b"".join(array.tobytes() for array in arrays)
    digest = hashlib.sha256(content).hexdigest()
    if digest != EMBEDDED_SHA256:
        raise SystemExit(
            f"the content's SHA-256 is {digest}, expected {EMBEDDED_SHA256}: are these the "
            "published files?"
        )
    filters = [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    ]
    arguments.out.write_bytes(lzma.compress(content, format=lzma.FORMAT_XZ, filters=filters))
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, content SHA-256 {digest}")


if __name__ == "__main__":
    main()
