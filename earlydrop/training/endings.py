"""Endings of a run before its last step."""


class TrainingFailed(RuntimeError):  # noqa: N818
    """The run cannot go on; the message says when and why. Its last good checkpoint is kept."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint."""
