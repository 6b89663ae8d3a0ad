"""Settings of a run that watches the test loss and stops early."""

STOPPING = {
    "trainer__stop_metric": "test/loss",
    "trainer__stop_patience": 1,
    "trainer__eval_every": "5%",
    "trainer__epochs": 20,
    "optim__lr": 0.1,
    "probe__at": [],
}


def stopping(config, **more):
    """A run that stops after two evaluations without a lower loss."""
    slower = {"trainer__stop_patience": 2, "optim__lr": 0.05, "trainer__log_every": 3}
    return config(**(STOPPING | slower | more))
