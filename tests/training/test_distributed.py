"""Several workers of one run give the numbers of one.

The workers are gloo processes on this machine, started as torchrun starts them.
"""

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from earlydrop.training import distributed
from earlydrop.training.distributed import ALONE, Group, Requests, check_parts, join, leave
from earlydrop.training.fields import ConfigError
from earlydrop.training.reduce import Bucket, GradientSum
from tests.training.states import assert_same

SMALL = [
    "tracking=off", "device=cpu", "threads=1", "data.train_images=330", "trainer.batch_size=64",
    "trainer.accumulate=4", "trainer.steps=8", "trainer.log_every=2", "trainer.eval_every=50%",
    "model.width=16", "model.depth=2", "model.heads=2", "evaluation.batch_size=90",
    "probe.at=[0%,50%]", "probe.batches=6", "probe.dataset_limit=300",
]  # fmt: skip
MIXED = ["augment=paper", "schedule=constant", "schedule.kind=all", "schedule.rate=0.2"]


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def start(warm):
    """Start workers.

    ``happens`` says which event hits which worker before which step; ``each`` gives one worker's
    own overrides.
    """

    def workers(size, out, *overrides, ranks=None, happens=None, each=lambda rank: []):
        program = "earlydrop" if happens is None else str(Path(__file__).with_name("misfortune.py"))
        arguments = [*(happens or "").split(), *SMALL, f"out={out}", *overrides]
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": str(size)}
        return [
            warm.start(
                *arguments,
                *each(rank),
                env=where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                program=program,
            )
            for rank in (range(size) if ranks is None else ranks)
        ]

    return workers


def finish(processes, timeout=240):
    return [(process.communicate(timeout=timeout), process.returncode) for process in processes]


@pytest.fixture(scope="module")
def train(start):
    def workers(size, out, *overrides):
        ended = finish(start(size, out, *overrides))
        assert [code for _, code in ended] == [0] * size, ended
        (folder,) = {path.parent for path in Path(out).rglob("status.json")}
        assert sum(bool(output.strip()) for (output, _), _ in ended) == 1  # one worker speaks
        return folder

    return workers


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_near(one, other, rel):
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for ours, theirs in zip(one, other, strict=True):
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=rel, abs=1e-7), (ours["step"], name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, train):
    return train(1, tmp_path_factory.mktemp("alone"), *MIXED)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_numbers_do_not_depend_on_the_number_of_workers(size, alone, tmp_path, train):
    """With mixing, accumulation, dropout, stochastic depth, uneven batches and probes."""
    folder = train(size, tmp_path, *MIXED)
    assert folder.name == alone.name  # the same fingerprint
    one, other = lines(alone), lines(folder)
    training = [
        [{k: v for k, v in line.items() if not k.startswith("probe/")} for line in each]
        for each in (one, other)
    ]
    assert_near(*training, rel=1e-5)
    probes = [
        [
            {
                k: v
                for k, v in line.items()
                if k in ("probe/gdv", "probe/gde", "probe/gradient_norm")
            }
            | {"step": line["step"]}
            for line in each
            if "probe/gdv" in line
        ]
        for each in (one, other)
    ]
    assert_near(*probes, rel=1e-4)
    weights = [
        torch.load(max((f / "checkpoints").glob("*.pt")), weights_only=True)
        for f in (alone, folder)
    ]
    for name, weight in weights[0]["model"].items():
        torch.testing.assert_close(
            weight, weights[1]["model"][name], rtol=1e-3, atol=2e-5
        )  # AdamW divides what is nearly 0 by its own size
    assert json.loads((folder / "provenance.json").read_text())["environment"]["workers"] == size


@pytest.mark.slow
def test_a_run_that_stops_goes_on_to_the_bit(tmp_path, start, train):
    """With four workers the order in which gradients are added matters."""
    size = 4
    options = [*MIXED, "probe=none"]
    straight = train(size, tmp_path / "straight", *options)
    stopped = finish(start(size, tmp_path / "stopped", *options, happens="stop 0 3"))
    assert [code for _, code in stopped] == [130] * size, stopped
    # The signal comes before the fourth step, which is finished, and so is the one after it.
    assert [path.name for path in (tmp_path / "stopped").rglob("step-*.pt")] == [
        "step-000000005.pt"
    ]
    resumed = train(size, tmp_path / "stopped", *options)
    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    one, other = (
        torch.load(max((f / "checkpoints").glob("step-*.pt")), weights_only=True)
        for f in (straight, resumed)
    )
    assert_same(one, other)


@pytest.mark.slow
def test_the_gradients_of_a_compiled_model_are_summed(tmp_path, train, needs_compiler):
    options = [*MIXED, "probe=none", "trainer.compile=true", "trainer.steps=2"]
    one, other = (lines(train(size, tmp_path / str(size), *options)) for size in (1, 2))
    assert_near(one, other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("happens", ["stop 0 5", "warn 3 5"])
def test_a_run_goes_on_with_another_number_of_workers_when_told(
    alone, tmp_path, happens, start, train
):
    """Whichever worker is asked to stop, all of them save and stop."""
    first = finish(start(4, tmp_path, *MIXED, happens=happens))
    assert [code for _, code in first] == [130] * 4, first
    (folder,) = {path.parent for path in tmp_path.rglob("status.json")}
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    refused = finish(start(2, tmp_path, *MIXED))
    assert [code for _, code in refused] == [1, 1]
    assert all(
        "workers 4 there, 2 here" in err and "resume=force" in err for (_, err), _ in refused
    ), refused
    assert train(2, tmp_path, *MIXED, "resume=force") == folder
    assert_near(
        [
            {k: line[k] for k in ("step", "train/loss")}
            for line in lines(folder)
            if "train/loss" in line
        ],
        [
            {k: line[k] for k in ("step", "train/loss")}
            for line in lines(alone)
            if "train/loss" in line
        ],
        rel=1e-5,
    )


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_others_and_the_run_goes_on_from_its_checkpoint(
    alone, tmp_path, start, train
):
    ended = finish(
        start(2, tmp_path, *MIXED, "trainer.checkpoint_seconds=0", happens="die 1 5"), timeout=120
    )
    assert ended[1][1] == -9
    (_, error), code = ended[0]
    assert code == 1
    assert "another worker is gone, or did not answer within distributed.timeout=600 s" in error
    assert "Traceback" not in error
    folder = train(2, tmp_path, *MIXED)
    assert_near(lines(folder)[-1:], lines(alone)[-1:], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.accumulate=3", "trainer.batch_size=63"],
            (
                r"2 workers cannot share the trainer.accumulate=3 parts of a batch equally: "
                r"start 1 or 3 of them"
            ),
        ),
        (["optim.lr=-1"], "optim.lr is -1"),
        (
            ["data=imagefolder", "data.root=/nowhere", "data.train_images=null"],
            "data.root is '/nowhere'",
        ),
        (["device=cuda"], "device=cuda is not available on this machine"),
        (["probe.dataset_limit=64"], "2 workers need at least 2 of each"),
    ],
)
def test_bad_input_is_one_line_on_every_worker(overrides, message, tmp_path, start):
    ended = finish(start(2, tmp_path, *overrides))
    for (_, error), code in ended:
        assert code == 1
        assert message in error
        assert len(error.strip().splitlines()) == 1, error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_only_the_first_worker_finds_locked_is_refused_on_all(tmp_path, alone, start):
    import filelock

    folder = tmp_path / "default" / alone.name
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"):
        ended = finish(start(2, tmp_path, *MIXED))
    assert all(
        code == 1 and "another process is working in" in error for (_, error), code in ended
    ), ended


def test_a_rendezvous_that_nobody_joins_ends_in_time(tmp_path, start):
    ((_, error), code) = finish(start(2, tmp_path, "distributed.timeout=3", ranks=[0]), timeout=90)[
        0
    ]
    assert code == 1
    assert "worker 0 of 2 did not meet the others at 127.0.0.1" in error
    assert len(error.strip().splitlines()) <= 2, error


def test_a_sweep_is_not_started_by_torchrun(tmp_path, start):
    ended = finish(start(2, tmp_path, "-m", "seed=0,1"))
    assert all(
        code == 1 and "a sweep starts its own jobs" in error for (_, error), code in ended
    ), ended


def test_a_single_process_is_a_group_of_one():
    assert join(1.0, torch.device("cpu")) is ALONE
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert list(ALONE.block(3)) == [0, 1, 2]
    assert ALONE.decide(lambda: 5) == 5
    assert ALONE.largest((1.0, 0.0)) == [1.0, 0.0]
    model = torch.nn.Linear(1, 1)
    assert ALONE.gradient_sum(model) is None


class Pretended:
    """Two workers, of which the other never asks for anything. It notes what is read, and when."""

    size = 2

    def __init__(self):
        self.events = []

    def ask_largest(self, values):
        self.events.append(("ask", *values))

        def read():
            self.events.append(("read", *values))
            return [float(value) for value in values]

        return read


def test_requests_are_read_one_step_later_and_none_is_left():
    group = Pretended()
    requests = Requests(group)
    asked = [(False, False), (False, True), (False, True), (True, False), (False, False)]
    done = [requests.exchange(stop, save) for stop, save in asked]
    assert done == [(False, False), (False, False), (False, True), (False, False), (True, False)]
    assert group.events == [
        ("ask", False, False),
        ("read", False, False),
        ("ask", False, True),
        ("read", False, True),
        ("ask", False, False),  # what was saved is not saved again
        ("read", False, False),
        ("ask", True, False),
        ("read", True, False),
    ]
    assert requests.read() == (False, False)


def test_the_request_of_the_last_step_but_one_is_read_at_the_end():
    group = Pretended()
    requests = Requests(group)
    requests.exchange(True, False)
    assert group.events == [("ask", True, False)]
    assert requests.read() == (True, False)
    assert group.events[-1] == ("read", True, False)


def test_a_single_process_acts_on_its_requests_at_once():
    requests = Requests(ALONE)
    assert requests.exchange(True, False) == (True, False)
    assert requests.exchange(False, True) == (False, True)
    assert requests.read() == (False, False)


def test_shares_and_blocks_cover_everything_once():
    groups = [Group(rank, 4) for rank in range(4)]
    assert sorted(i for group in groups for i in group.share(range(10))) == list(range(10))
    assert [i for group in groups for i in group.block(8)] == list(range(8))


def test_the_counts_that_fit_are_named():
    check_parts(32, 4096, 8)
    with pytest.raises(
        ConfigError,
        match=r"start 1, 2 or 4 of them, or set trainer.accumulate=8, which changes the results",
    ):
        check_parts(4, 64, 8)


def test_workers_that_do_not_see_the_same_run_are_refused(tmp_path, start):
    """Such as nodes whose copies of the data differ."""
    processes = start(
        2, tmp_path, "probe=none", each=lambda rank: [f"data.train_images={330 + rank}"]
    )
    for (_, error), code in finish(processes):
        assert code == 1
        assert "not all of the 2 workers have the same configuration, data, own code" in error
    assert not list(tmp_path.iterdir())


def test_batch_norm_is_not_shared(tmp_path, start):
    small = ["model=convnet_micro", "model.width=8", "model.depth=null", "model.heads=null"]
    for (_, error), code in finish(start(2, tmp_path, *small)):
        assert code == 1
        assert (
            "stem.1 is a BatchNorm, whose statistics 2 workers cannot share; "
            "train it in one process"
        ) in error
    assert not list(tmp_path.iterdir())


IMAGES = [
    "data=imagefolder", "data.workers=0", "data.train_images=null", "data.image_size=8",
    "augment.shift=2", "probe=none", "trainer.batch_size=8", "trainer.steps=2", "model=mlp",
    "model.width=null", "model.depth=null", "model.heads=null", "model.hidden=[8]",
]  # fmt: skip


def test_an_image_folder_is_listed_by_the_first_worker_alone(tmp_path, start):
    """The other workers have the list from it.

    Here a second worker's folder has the splits, but no class in them.
    """
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(
                    tmp_path / "images" / split / name / f"{i}.png"
                )
        (tmp_path / "empty" / split).mkdir(parents=True)
    roots = ["images", "empty"]
    ended = finish(
        start(
            2, tmp_path / "out", *IMAGES, each=lambda rank: [f"data.root={tmp_path / roots[rank]}"]
        )
    )
    assert [code for _, code in ended] == [0, 0], ended


class Nccl:
    """Stands for torch.distributed on GPUs."""

    def __init__(self, refuse=None):
        self.refuse, self.calls = refuse, []
        self.group = self
        self.WORLD = self

    def init_process_group(self, backend, timeout, device_id):
        self.calls.append((backend, device_id))
        if self.refuse is not None:
            raise RuntimeError(self.refuse)

    def is_available(self):
        return True

    is_initialized = is_available

    def new_group(self, backend, timeout):
        return self

    def barrier(self, group):
        pass

    def get_backend(self):
        return "nccl"

    def abort(self):
        self.calls.append("abort")

    def destroy_process_group(self):
        self.calls.append("destroy")


@pytest.fixture
def as_worker(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "here",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    join.cache_clear()
    yield monkeypatch
    join.cache_clear()


def test_on_gpus_a_worker_names_its_own_and_gives_up_what_a_lost_one_would_answer(as_worker):
    fake = Nccl()
    as_worker.setattr(distributed, "dist", fake)
    assert join(1.0, torch.device("cuda:1")).size == 2
    assert fake.calls == [("nccl", torch.device("cuda:1"))]
    leave()
    assert fake.calls[1:] == ["destroy"]
    leave(lost=True)
    assert fake.calls[2:] == ["abort", "destroy"]


def test_two_workers_on_one_gpu_are_refused(as_worker):
    as_worker.setattr(
        distributed,
        "dist",
        Nccl("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"),
    )
    with pytest.raises(
        ConfigError, match=r"worker 1 of 2 has the same GPU as another one \(cuda:0\)"
    ):
        join(1.0, torch.device("cuda:0"))


def reduce_a_number(error):
    """Raise an error where a collective call of torch does: in a function of torch.distributed."""
    module = {"__name__": "torch.distributed.distributed_c10d"}
    exec("def all_reduce(error):\n    raise error", module)
    module["all_reduce"](error)


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("act", "lost"),
    [
        (lambda: reduce_a_number(RuntimeError("Application pair closure")), True),
        (lambda: fail(torch.distributed.DistBackendError("no words that anybody knows")), True),
        (lambda: fail(torch.distributed.DistNetworkError("gone")), True),
        (lambda: fail(RuntimeError("the socket of my own data timed out")), False),
        (lambda: torch.zeros(2) @ torch.zeros(3), False),
        (lambda: reduce_a_number(torch.OutOfMemoryError("nccl needs memory")), False),
    ],
)
def test_a_lost_worker_is_known_by_the_type_and_place_of_the_error_and_not_by_its_words(act, lost):
    with pytest.raises(RuntimeError) as raised, distributed.answered(Group(0, 2, 5.0)):
        act()
    assert (raised.type is distributed.WorkerLostError) is lost


def test_a_reduction_that_fails_while_it_is_waited_for_has_a_type():
    class Work:
        def wait(self):
            raise RuntimeError("Application pair closure")

    sum_of_gradients = GradientSum([], None)
    bucket = Bucket([torch.nn.Parameter(torch.zeros(1))])
    bucket.work = Work()
    sum_of_gradients.buckets = [bucket]
    with (
        pytest.raises(torch.distributed.DistBackendError, match="pair closure"),
        sum_of_gradients.summed(),
    ):
        sum_of_gradients.next_bucket = 1
