"""Write an image folder as shards, tar files in WebDataset's format, for data=shards.

    python scripts/make_shards.py /data/imagenet /data/imagenet-shards --per-shard 1000

FOLDER holds train/ and val/ (or test/), with one folder per class in each. OUT gets the same splits
with tar files in each, the names of the classes, and a list of the shards, so that a missing shard
is noticed. Images are copied byte for byte. The key of a sample is its index in the folder. The
index also selects the random stream of the sample, so a run from the shards gives the same numbers
as a run from the folder.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

from earlydrop.training.data.files import ImageFiles, find_images
from earlydrop.training.data.shards import CLASS_LIST, SHARD_LIST
from earlydrop.training.fields import ConfigError


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_split(files: ImageFiles, out: Path, per_shard: int) -> None:
    """Write the shards of one split into the folder ``out``, and their list."""
    out.mkdir(parents=True)
    shards = []
    for number, start in enumerate(range(0, len(files.samples), per_shard)):
        samples = files.samples[start : start + per_shard]
        name = f"{out.name}-{number:06d}.tar"
        with tarfile.open(out / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, (path, label) in enumerate(samples, start):
                add(tar, f"{index:08d}{Path(path).suffix.lower()}", Path(path).read_bytes())
                add(tar, f"{index:08d}.cls", str(label).encode())
        size = (out / name).stat().st_size
        shards.append({"url": name, "nsamples": len(samples), "filesize": size})
    content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    (out / SHARD_LIST).write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--per-shard",
        type=int,
        default=1000,
        help="images in a tar file; about 100 MB is a good size",
    )
    arguments = parser.parse_args()
    if arguments.per_shard < 1:
        parser.error(f"--per-shard is {arguments.per_shard}: expected more than 0")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise SystemExit(f"error: {arguments.out} is not empty: give a new folder")
    found = [name for name in ("train", "val", "test") if (arguments.folder / name).is_dir()]
    if not found:
        raise SystemExit(
            f"error: {arguments.folder} has none of train/, val/ and test/: "
            "give a folder that data=imagefolder reads"
        )
    try:
        splits = {name: find_images(arguments.folder / name) for name in found}
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    classes = splits[found[0]].classes
    for name, files in splits.items():
        if files.classes != classes:
            raise SystemExit(
                f"error: {arguments.folder}: {name}/ and {found[0]}/ have other class folders: "
                "expected the same"
            )
    for name, files in splits.items():
        write_split(files, arguments.out / name, arguments.per_shard)
        print(f"{arguments.out / name}: {len(files.samples):,} images of {len(classes):,} classes")
    (arguments.out / CLASS_LIST).write_text(json.dumps(classes) + "\n")


if __name__ == "__main__":
    main()
