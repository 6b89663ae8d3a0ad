"""Image folders of random pictures."""

import numpy as np
from PIL import Image


def make_folder(root, splits=(("train", 5), ("val", 2))):
    rng = np.random.default_rng(0)
    for split, count in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
