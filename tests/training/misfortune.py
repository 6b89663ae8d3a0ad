"""A worker of a run to which something happens.

Usage: ``python misfortune.py stop|warn|die RANK STEP [overrides]``.
"""

import os
import signal
import sys

from earlydrop.commands.run import main
from earlydrop.training.trainer import Trainer


def befall(what, rank, step):
    original = Trainer.train_step

    def train_step(self, parts):
        if self.step == step and self.group.rank == rank:
            os.kill(
                os.getpid(),
                {"stop": signal.SIGTERM, "warn": signal.SIGUSR1, "die": signal.SIGKILL}[what],
            )
        original(self, parts)

    Trainer.train_step = train_step


if __name__ == "__main__":
    befall(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    del sys.argv[1:4]
    main()
