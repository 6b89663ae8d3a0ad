"""A change of code that computes numbers is noticed.

The digests of each part's code stand in numerics.json beside its version. When this fails: raise
the part's version in earlydrop/training/fingerprint.py, or show that the numbers are the same to
the byte (see CONTRIBUTING.md). Then record the new digests: python tests/test_numerics.py
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

from earlydrop.training.fingerprint import VERSIONS

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("numerics.json")
PARTS = {
    "data": [
        "training/data/arrays.py",
        "training/data/glyphs.py",
        "training/data/text.py",
        "training/data/order.py",
        "training/streams.py",
    ],
    "folder": [
        "training/data/folder.py",
        "training/data/files.py",
        "training/data/loading.py",
        "training/data/workers.py",
        "training/data/shards.py",
        "training/data/shard_index.py",
        "training/data/huggingface.py",
        "training/data/transforms.py",
    ],
    "torchcodec": ["training/data/decode.py"],
    "mixing": ["training/data/augment.py", "training/data/objective.py"],
    "masks": [
        "sites/masks.py",
        "sites/layers.py",
        "sites/bank.py",
        "schedules/paper.py",
        "schedules/piecewise.py",
        "schedules/classic.py",
    ],
    "compiled_masks": ["sites/masks.py", "sites/layers.py"],
    "compiled_attention": ["sites/attention.py"],
    "models": [
        "training/models/build.py",
        "training/models/timm.py",
        "training/models/mlp.py",
        "training/models/convnet.py",
        "training/models/gpt.py",
    ],
    "library_models": ["training/models/library.py", "training/models/pretrained.py"],
    "own_data": ["training/data/own.py"],
    "optimizer": [
        "training/optim.py",
        "training/trainer.py",
        "training/parts.py",
        "training/window.py",
        "training/stopping.py",
        "classic/max_norm.py",
        "distance.py",
    ],
    "parts": ["training/distributed.py", "training/reduce.py"],
    "swin": ["training/optim.py"],
    "vit": ["training/models/timm.py"],
    "evaluation": ["training/evaluate.py"],
    "probe": [
        "gradients/chunks.py",
        "gradients/sums.py",
        "gradients/measures.py",
        "gradients/probe.py",
        "training/probes.py",
    ],
    "probe_parts": ["training/probes.py"],
    "monte_carlo": ["classic/monte_carlo.py"],
}


class Bare(ast.NodeTransformer):
    """Without docstrings and without the texts of messages, which compute nothing."""

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_JoinedStr(self, node):
        return ast.Constant("")


def digest(part):
    texts = [
        ast.unparse(Bare().visit(ast.parse((ROOT / "earlydrop" / file).read_text())))
        for file in PARTS[part]
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@pytest.mark.parametrize("part", list(PARTS))
def test_code_that_computes_numbers_changes_with_its_version_only(part):
    recorded = json.loads(RECORD.read_text())[part]
    assert recorded == {"version": VERSIONS[part], "code": digest(part)}, __doc__


def test_every_part_is_watched():
    assert PARTS.keys() == VERSIONS.keys()


if __name__ == "__main__":
    RECORD.write_text(
        json.dumps(
            {part: {"version": VERSIONS[part], "code": digest(part)} for part in PARTS}, indent=1
        )
        + "\n"
    )
