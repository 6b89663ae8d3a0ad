"""Make the embedded text: the King James Version of 1611, from Debian's package bible-kjv.

Its copyright is expired.

    bible -l200000 gen1:1-rev22:21 > kjv.txt
    python scripts/make_kjv.py kjv.txt

One verse a line, without its number, under the heading of its chapter. The result is checked by
hash, so that anybody can make the same file again.
"""

import argparse
import hashlib
import lzma
import re
from pathlib import Path

from earlydrop.training.data.text import EMBEDDED, EMBEDDED_SHA256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="what bible -l200000 gen1:1-rev22:21 printed")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    arguments = parser.parse_args()
    lines = [
        re.sub(r"^\s+\d+\s+", "", line).strip()
        for line in arguments.text.read_text(encoding="ascii").splitlines()
    ]
    content = ("\n".join(line for line in lines if line) + "\n").encode("ascii")
    digest = hashlib.sha256(content).hexdigest()
    if digest != EMBEDDED_SHA256:
        raise SystemExit(
            f"the content's SHA-256 is {digest}, expected {EMBEDDED_SHA256}: is this the text of "
            "bible-kjv?"
        )
    arguments.out.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(
        f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, content {len(content):,} bytes, "
        f"SHA-256 {digest}"
    )


if __name__ == "__main__":
    main()
