"""``earlydrop`` on a machine that seems to have two GPUs, both of which are the CPU."""

from unittest import mock

import torch

from earlydrop.commands.run import main
from earlydrop.training import device

if __name__ == "__main__":
    in_turn = device.device_of_job

    def device_of_job(name, job):
        with (
            mock.patch.object(
                torch.accelerator, "current_accelerator", return_value=torch.device("cuda")
            ),
            mock.patch.object(torch.accelerator, "device_count", return_value=2),
        ):
            print(f"job {job} of device={name} on {in_turn(name, job)}", flush=True)
        return "cpu"

    device.device_of_job = device_of_job
    main()
