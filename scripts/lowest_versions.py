"""Print the lowest supported version of every direct dependency, as constraints for pip.

python scripts/lowest_versions.py > lowest.txt
pip install -e '.[train]' -c lowest.txt
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest_versions(extras: tuple[str, ...] = ("train",)) -> list[str]:
    """The direct dependencies of the package and some of its extras, each held to its lower bound.

    Args:
        extras: Names of extras in ``pyproject.toml``.

    Returns:
        Lines such as ``torch==2.11``.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    lines = []
    for requirement in requirements:
        bound = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
        if bound is None:
            raise ValueError(
                f"{requirement!r} in pyproject.toml has no lower bound: write name>=version"
            )
        lines.append(f"{bound[1]}=={bound[2]}")
    return lines


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
