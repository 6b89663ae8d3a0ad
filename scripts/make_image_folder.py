"""Make a folder of synthetic JPEG images, laid out as ImageNet is, for tests and rehearsals.

    python scripts/make_image_folder.py /tmp/images --classes 1000 --train 4 --val 1

Each class has a colour and a pattern of its own, so that a model can learn something. All images
have one height, and their widths vary.
"""

import argparse
import colorsys
from pathlib import Path

import numpy as np
from PIL import Image


def picture(label: int, classes: int, random: np.random.Generator, side: int) -> Image.Image:
    """A striped, noisy image in a class's colour, 0.67 to 1.5 times as wide as high."""
    height, width = side, int(side * random.uniform(0.67, 1.5))
    colour = 255 * np.array(colorsys.hsv_to_rgb(label / classes, 0.8, 0.9))
    rows, columns = np.mgrid[:height, :width] / side
    stripes = 0.5 + 0.5 * np.sin(
        2 * np.pi * (2 + label % 7) * (rows * np.cos(label) + columns * np.sin(label))
        + random.uniform(0, 6)
    )
    pixels = stripes[..., None] * colour + random.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--train", type=int, default=4, help="training images of each class")
    parser.add_argument("--val", type=int, default=1, help="validation images of each class")
    parser.add_argument(
        "--side", type=int, default=64, help="height in pixels; ImageNet's are about 400"
    )
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise SystemExit(f"error: {arguments.out} is not empty: give a new folder")
    for split, count in (("train", arguments.train), ("val", arguments.val)):
        for label in range(arguments.classes):
            folder = arguments.out / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                random = np.random.default_rng([label, i, split == "val"])
                picture(label, arguments.classes, random, arguments.side).save(
                    folder / f"{i:05d}.JPEG", quality=85
                )
    total = arguments.classes * (arguments.train + arguments.val)
    print(f"{arguments.out}: {total:,} images of {arguments.classes:,} classes")


if __name__ == "__main__":
    main()
