"""Mistakes on the command line: each is refused at once, in a few lines, and leaves nothing."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from earlydrop.training.keys import Key, keys
from torture.commands import TINY, Outcome, fork, real
from torture.tally import Tally

COUNT, REAL = 400, 12
MOST_LINES, MOST_SECONDS = 3, 5.0
OUTSIDE = {"positive": ("0", "-1"), "not negative": ("-1", "-0.5"), "below one": ("1", "-1", "7"),
           "rate": ("1", "-1", "7"),
           "probability": ("-1", "7")}  # fmt: skip
PATHS = ("../../x", "a/b", "..", "/tmp-x", "~")
GRAMMAR = (
    "seed", "=1", "seed=[", "seed=1,", "optim.lr='", "schedule.rate=${nowhere}",
    "study=${oc.env:NOT_SET_AT_ALL}", "seed==1", "--nonsense",
    "seed=0,1", "optim.lr=1e-3,1e-2", "model.hidden=[16", "schedule={rate:0.1", "tags=[a", "ü=1",
    "optim.lr=${optim.lr}", "optim.lr=???",
)  # fmt: skip


@dataclass(frozen=True)
class Mistake:
    """Arguments with a mistake.

    If it is ``certain``, a command that accepts them has failed; else they are only listed.
    """

    command: str
    arguments: tuple[str, ...]
    certain: bool = True
    sweep: bool = False


def mistake(*arguments: str, certain: bool = True, sweep: bool = False) -> Mistake:
    """A mistake on the command line of a tiny run."""
    return Mistake("run", (*(["-m"] if sweep else []), *TINY, *arguments), certain, sweep)


def misspelt(name: str, rng: random.Random) -> str:
    """A key with one letter left out, doubled, or swapped with the next."""
    at = rng.randrange(len(name) - 1)
    forms = (
        name[:at] + name[at + 1 :],
        name[: at + 1] + name[at:],
        name[:at] + name[at + 1] + name[at] + name[at + 2 :],
    )
    return next(
        (
            form
            for form in rng.sample(forms, 3)
            if form not in keys() and form.count(".") == name.count(".")
        ),
        name + "x",
    )


def wrong_types(key: Key) -> Iterator[tuple[str, bool]]:
    """Values of a wrong type, and whether that is certain."""
    plain = {getattr(kind, "__origin__", kind) for kind in key.kinds}
    if types.NoneType not in plain:
        yield "null", True
    if list in plain:
        yield from (("7", True), ("many", True), ("{a:1}", True))
        return
    yield from (("[1]", True), ("{a:1}", True))
    if plain & {int, float, bool} and str not in plain:
        yield "many", True
    if int in plain and float not in plain:
        yield "1.5", True
    if float in plain:
        yield from (("nan", True), ("inf", True))
    if str in plain:
        yield from (("nonsense", bool(key.choices)), ("''", bool(key.choices)))


def schema_mistakes(rng: random.Random) -> list[Mistake]:
    """Every key misspelt, of a wrong type, out of its bounds, and added where it is not."""
    made = []
    for name, key in keys().items():
        default = "1" if key.default in (None, []) else str(key.default)
        made.append(mistake(f"{misspelt(name, rng)}={default}"))
        made.append(mistake(f"+{misspelt(name, rng)}={default}"))
        made += [mistake(f"{name}={value}", certain=certain) for value, certain in wrong_types(key)]
        made += [mistake(f"{name}={value}") for value in OUTSIDE.get(key.bounds or "", ())]
    return made


def group_mistakes() -> list[Mistake]:
    """Groups and options that are not there, additions, deletions, and what Hydra cannot parse."""
    groups = (
        "model",
        "data",
        "schedule",
        "optim",
        "augment",
        "probe",
        "trainer",
        "experiment",
        "nothing",
        "hydra/launcher",
    )
    made = [mistake(f"{group}=nonsense") for group in groups]
    made += [mistake(argument) for argument in ("+new=1", "++x.y=1", "+lr=0.5", "+trainer.foo=1",
             "++optim.learning_rate=0.5",
             "+model.new=null", "++seeds=3", "+hydra.foo=1", "~nothing", "~optim.nothing",
             "model@x=mlp", "+experiment=nonsense")]  # fmt: skip
    made += [
        mistake(argument, certain=False)
        for argument in ("~seed", "~optim.lr", "~model", "~trainer", "+seed=3", "++optim.lr=0.1")
    ]
    return made + [mistake(argument) for argument in GRAMMAR] + [mistake("", certain=False)]


def name_mistakes() -> list[Mistake]:
    """Names that a study, label, project, tag or folder cannot have."""
    long, tracked = "x" * 300, "tracking=offline"
    made = [mistake(f"{key}='{value}'") for key in ("study", "label") for value in PATHS]
    made += [
        mistake("study=''"),
        mistake("label=''", certain=False),
        mistake(f"study={long}"),
        mistake(f"label={long}"),
    ]
    made += [mistake(f"study='{value}'", "seed=0,1", sweep=True) for value in (*PATHS, "")]
    made += [mistake("study='my study'", "seed=0,1", sweep=True, certain=False)]
    made += [mistake(f"project='{value}'", tracked) for value in ("../../x", "a/b", "")]
    made += [
        mistake("tags=['']", tracked),
        mistake(f"tags=['{long}']", tracked, certain=False),
        mistake("tags=['a/b']", tracked, certain=False),
    ]
    made += [mistake(f"out='{value}'") for value in ("/dev/null/x", "/proc/x", "file", "file/x")]
    made += [mistake(f"out='{value}'", certain=False) for value in ("~/x", "", ".", long)]
    return made


def meaning_mistakes() -> list[Mistake]:
    """Values of the right type and within their bounds that are still impossible."""
    single = (
        "threads=100000", "threads=-1", "trainer.accumulate=3", "trainer.batch_size=100000",
        "device=meta", "device=cuda:99", "model=mixer",
        "optim.min_lr=1", "optim.warmup=200%", "optim.warmup=-5", "trainer.eval_every=0x",
        "schedule.cutoff=200%", "schedule.rate=1.5",
        "probe.at=[200%]", "probe.at=[x]", "probe.batches=1", "trainer.mc_passes=3",
        "model.hidden=[0]", "model.hidden=[-1]", "model.hidden=[]",
        "model.profile=[1,2,3]", "model.heads=3", "model.depth=2", "model.dropout=nonsense",
        "data.name=nonsense", "model.name=nonsense",
        "schedule.name=nonsense", "data.train_images=10000000", "data.image_size=1",
        "schedule.name=piecewise", "mode=eval",
        "augment.randaugment=nonsense", "trainer.stop_metric=nonsense",
    )  # fmt: skip
    made = [
        mistake(
            argument, certain=argument not in ("augment.randaugment=nonsense", "optim.warmup=200%")
        )
        for argument in single
    ]
    made += [
        mistake("data=imagefolder", f"data.root={root}", "device=cpu")
        for root in ("/nowhere", "file", "''")
    ]
    made += [
        mistake(*pair)
        for pair in (
            ("model=vit_micro", "model.heads=7"),
            ("model=vit_micro", "model.patch=13"),
        )
    ]
    made += [mistake(*pair, sweep=True) for pair in (("trainer.accumulate=3", "seed=0,1"),
             ("schedule=none,nonsense",), ("seed=0,many",),
             ("study=a,b", "trainer.accumulate=3"), ("mode=eval", "seed=0,1"),
             ("trainer.accumulate=3", "seed=0,1", "hydra.sweep.dir=other"))]  # fmt: skip
    return made


def other_commands() -> list[Mistake]:
    """Folders and options that the other commands cannot use."""
    made = []
    for command in ("report", "cite", "findings", "reproduce"):
        for folder in (
            "nowhere",
            "file",
            "empty",
            "/dev/null",
            "/proc/1/x",
            "",
            "a\0b".replace("\0", "\n"),
            "--nonsense",
            "~",
        ):
            made.append(Mistake(command, (folder,)))
        made += [Mistake(command, ()), Mistake(command, ("empty", "empty"))]
    made += [
        Mistake("findings", ("empty", "--claims", value)) for value in ("nonsense", "", "../x")
    ]
    made += [
        Mistake(command, ("empty", "--out", value))
        for command in ("findings", "reproduce")
        for value in ("file", "/dev/null/x", "")
    ]
    return made


def all_mistakes(seed: int) -> list[Mistake]:
    """The mistakes above, each once, and more of the schema's, 400 in all."""
    rng = random.Random(seed)
    written = list(
        dict.fromkeys([*group_mistakes(), *name_mistakes(), *meaning_mistakes(), *other_commands()])
    )
    drawn = [each for each in dict.fromkeys(schema_mistakes(rng)) if each not in written]
    return written + rng.sample(drawn, max(COUNT - len(written), 0))


def _left(root: Path, sweep: bool) -> list[str]:
    """Files that a command left in its folder or beside it, except the failures of a sweep."""
    paths = [str(path.relative_to(root)) for path in root.rglob("*")]
    mine = {"deep", "deep/er", "deep/er/file", "deep/er/empty"}
    return [
        path
        for path in paths
        if path not in mine and not (sweep and path.startswith(("deep/er/runs", "deep/er/other")))
    ]


def _try(tally: Tally, case: str, mistaken: Mistake, root: Path, really: bool) -> None:
    cwd = root / "deep" / "er"  # so that ../../ stays below the root
    (cwd / "empty").mkdir(parents=True)
    (cwd / "file").touch()
    done = (real if really else fork)(mistaken.command, mistaken.arguments, cwd, limit=60)
    if tally.crash(case, done):
        return
    outside = [
        path
        for path in _left(root, True)
        if path != "deep/er/runs" and not path.startswith("deep/er/")
    ]
    literal = (cwd / "~").exists()
    written = "a folder called ~" if literal else f"outside its folder: {', '.join(outside[:3])}"
    if outside or literal:
        tally.fail(
            "silent",
            case,
            done.shown,
            f"wrote {written}",
        )
    if done.code == 0:
        _accepted(tally, case, mistaken, done)
    else:
        _refused(tally, case, mistaken, done, root, really)


def _accepted(tally: Tally, case: str, mistaken: Mistake, done: Outcome) -> None:
    own = (
        " ".join(mistaken.arguments[len(TINY) :])
        if mistaken.command == "run"
        else " ".join(mistaken.arguments)
    )
    if mistaken.certain:
        tally.fail("silent", case, done.shown, f"accepted: {done.last_line}")
    else:
        tally.notes.append(f"accepted, and may be: {mistaken.command} {own!r:.100}")


def _refused(
    tally: Tally, case: str, mistaken: Mistake, done: Outcome, root: Path, really: bool
) -> None:
    left = _left(root, mistaken.sweep)
    if left:
        tally.fail(
            "other",
            case,
            done.shown,
            f"refused, but left {', '.join(left[:4])} on disk: {done.last_line}",
        )
    if done.lines == 0 and not done.out.strip():
        tally.fail("other", case, done.shown, f"refused with code {done.code} without a word")
    if done.lines > MOST_LINES and not mistaken.sweep:
        tally.fail(
            "other", case, done.shown, f"refused in {done.lines} lines, the last: {done.last_line}"
        )
    if (
        done.seconds > MOST_SECONDS and not really and not mistaken.sweep
    ):  # of a real process, the import takes most
        tally.fail("other", case, done.shown, f"refused after {done.seconds:.1f} s")


def mistakes(tally: Tally) -> None:
    """Some 400 mistakes, in forks; a few of them again as real processes."""
    made = [(str(i), mistaken, False) for i, mistaken in enumerate(all_mistakes(tally.seed))]
    sample = random.Random(tally.seed).sample(made, REAL)
    made = [
        *tally.chosen(made, 20),
        *((f"real-{case}", mistaken, True) for case, mistaken, _ in tally.chosen(sample, 1)),
    ]
    root = Path(tempfile.mkdtemp(prefix="torture-")).resolve()
    try:
        for case, mistaken, really in made:
            if tally.wants(case):
                shutil.rmtree(root)
                os.mkdir(root)
                _try(tally, case, mistaken, root, really)
    finally:
        shutil.rmtree(root, ignore_errors=True)
