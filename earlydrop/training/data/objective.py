"""The training objective: augmentation, mixing, label smoothing and cross-entropy.

Training, the probe and ``train_eval`` share it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from earlydrop.training.config import AugmentConfig
from earlydrop.training.data import augment
from earlydrop.training.data.source import Batch, KeyedIndices, Source
from earlydrop.training.streams import stream


def _noting(keyed: KeyedIndices, keys: deque[int]) -> Iterator[tuple[int, Tensor]]:
    """Pass batches on and note their keys, since a loader asks for batches ahead."""
    for key, indices in keyed:
        keys.append(key)
        yield key, indices


class Objective:
    """Batches as the model sees them in training, and the loss on them."""

    def __init__(self, source: Source, options: AugmentConfig) -> None:
        self.source, self.options = source, options

    def batches(self, keyed: KeyedIndices, seed: int, purpose: str) -> Iterator[Batch]:
        """Augmented and mixed training images with their targets.

        Args:
            keyed: The batches' keys and indices.
            seed: Seed of the streams that augmentation and mixing are drawn from.
            purpose: Purpose of those streams.

        Yields:
            Images, and labels, (B,), or soft targets, (B, K); of a text, tokens and the tokens that
            come next, both (B, T).
        """
        options = self.options
        keys: deque[int] = deque()
        for images, labels in self.source.batches(_noting(keyed, keys), "train", (seed, purpose)):
            key = keys.popleft()
            if options.mixup > 0 or options.cutmix > 0:
                generator = stream(seed, purpose + "-mix", key)
                yield augment.mix(
                    images,
                    labels,
                    self.source.classes,
                    options.mixup,
                    options.cutmix,
                    options.switch,
                    generator,
                )
            else:
                yield images, labels

    def loss(self, logits: Tensor, targets: Tensor, clean: bool = False) -> Tensor:
        """Mean loss of a batch.

        Args:
            logits: (B, K); for a text (B, T, K), with the mean over all positions.
            targets: Labels, (B,), or soft targets, (B, K); for a text (B, T).
            clean: Whether to leave out label smoothing.
        """
        if logits.dim() == 3:  # B T V
            logits, targets = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(
            logits.float(), targets, label_smoothing=0.0 if clean else self.options.smoothing
        )
