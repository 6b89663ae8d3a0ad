"""The tree's rules.

Imports run one way, no two modules import each other, private names stay private, and tests stand
where their modules do.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "earlydrop"
ORDER = [  # from the top: a module imports what stands below it
    "commands",
    "experiment",
    "claims",
    "analysis",
    "training",
    "metrics",
    "integrations",
    "scheduler",
    "classic",
    "gradients",
    "distance",
    "sites",
    "schedules",
    "exact",
    "display",
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in MODULES}


def imports(path):
    """The modules of earlydrop that a file imports, under TYPE_CHECKING and in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in NAMES
                else node.module
                for alias in node.names
            }
    return {name for name in found if name in NAMES}


def level(name):
    part = name.split(".")[1] if "." in name else None
    return ORDER.index(part) if part in ORDER else None


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path):
    ours = level(dotted(path))
    for name in imports(path):
        theirs = level(name)
        if ours is not None and theirs is not None:
            assert ours <= theirs, f"{dotted(path)} imports {name}, which stands above it"


def test_no_two_modules_import_each_other():
    graph = {dotted(path): imports(path) - {dotted(path)} for path in MODULES}
    for name, others in graph.items():
        for other in others:
            package = name.startswith(other + ".") or other.startswith(
                name + "."
            )  # a package offers what its modules hold
            assert package or name not in graph[other], f"{name} and {other} import each other"


def test_the_library_needs_torch_and_the_standard_library_alone():
    allowed = set(sys.stdlib_module_names) | {"torch", "earlydrop"}
    own = {"huggingface": "transformers", "lightning": "lightning"}
    for path in MODULES:
        here = level(dotted(path))
        if here is None or here < ORDER.index("metrics"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            outside = {name.split(".")[0] for name in names} - allowed - {own.get(path.stem)}
            assert not outside, f"{dotted(path)} imports {outside}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_ones_own(node):
    """Whether an attribute is taken from ``self``, ``cls`` or ``super()``."""
    return ast.unparse(node.value) in ("self", "cls", "super()")


def own_private_names(tree):
    """The private names that a file gives to functions, classes, variables and attributes."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and is_ones_own(node)
        ):
            named.add(node.attr)
    return {name for name in named if is_private(name)}


def private_imports(tree):
    """The private names that a file imports from modules of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("earlydrop"):
            yield from (alias.name for alias in node.names if is_private(alias.name))


def private_reads(tree):
    """The private attributes that a file takes, but from ``self``, ``cls`` or ``super()``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_ones_own(node):
            yield node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr")
        ):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(name):
                yield name


TORCHS = {"_modules", "_parameters", "_buffers"}  # of nn.Module, whatever of ours has the same name
PYTHONS = {
    "_replace",
    "_asdict",
    "_fields",
    "_make",
    "_repr_html_",
    "_repr_png_",
}  # of named tuples, and of IPython
TREES = {
    path: ast.parse(path.read_text())
    for path in [
        *MODULES,
        *sorted((ROOT / "tests").rglob("*.py")),
        *sorted((ROOT / "scripts").rglob("*.py")),
    ]
}
OURS = set().union(*map(own_private_names, TREES.values())) - TORCHS - PYTHONS


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stay_private(path):
    """No module imports a private name of another, or reads another's private attribute."""
    tree = TREES[path]
    others = OURS - own_private_names(tree)
    foreign = {*private_imports(tree), *(name for name in private_reads(tree) if name in others)}
    assert not foreign, (
        f"{path}: {sorted(foreign)} are private to another file: give what is needed a public name"
    )


@pytest.mark.parametrize(
    "code",
    [
        "from earlydrop.training.cost import _timed",
        "trainer._evaluate()",
        "cost._SECONDS",
        "bank._vectors[device]",
        "getattr(bank, '_vectors', None)",
        "make()._vectors",
    ],
)
def test_a_private_read_is_found(code):
    tree = ast.parse(code)
    assert OURS.intersection({*private_imports(tree), *private_reads(tree)})


@pytest.mark.parametrize(
    "code",
    [
        "self._vectors",
        "bank.__dict__",
        "module._modules",
        "bank._replace(a=1)",
        "torch._foreach_norm(x)",
    ],
)
def test_what_is_ones_own_or_somebody_elses_is_no_private_read(code):
    assert not OURS.intersection(private_reads(ast.parse(code)))


def test_tests_carry_the_names_of_their_modules():
    known = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    for path in (ROOT / "tests").rglob("test_*.py"):
        below = path.relative_to(ROOT / "tests")
        if len(below.parts) > 1:
            folder = PACKAGE / below.parent
            name = path.stem.removeprefix("test_")
            assert folder.is_dir(), path
            assert name in known or name in (
                "accelerate",
                "models",
                "mistakes",
                "laws",
                "sweeps",
                "recipes",
                "slurm",
                "completion",
            ), path


def test_files_stay_short():
    for path in [*MODULES, *(ROOT / "scripts").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 440, path


def test_reading_drawing_and_printing_import_no_hydra():
    code = """
import importlib, sys
for module in (
    "earlydrop.analysis",
    "earlydrop.analysis.plots",
    "earlydrop.commands.report",
    "earlydrop.claims.write",
):
    importlib.import_module(module)
    print(module, [name for name in ("hydra", "omegaconf", "wandb", "timm") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = out.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(" []") for line in lines), lines


def opens_text(call):
    """Whether a call opens a file, or a program's output, as text without saying its encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    if name in ("run", "Popen", "check_output"):
        return bool({"text", "universal_newlines"} & keywords.keys())
    if name in ("FileHandler", "NamedTemporaryFile", "TextIOWrapper"):
        return True
    owner = (
        call.func.value.id
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
        else None
    )
    if name != "open" or owner in ("os", "Image", "lzma", "webbrowser"):
        return False
    place = 0 if isinstance(call.func, ast.Attribute) else 1  # path.open(mode), open(path, mode)
    mode = keywords.get("mode", call.args[place] if len(call.args) > place else ast.Constant("r"))
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_opens_text_without_saying_its_encoding(path):
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert [call.lineno for call in calls if opens_text(call)] == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("p.read_text()", True),
        ("p.read_text(encoding='utf-8')", False),
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("p.open('wb')", False),
        ("p.open('w')", True),
        ("os.open(p, 0)", False),
        ("subprocess.run(x, text=True)", True),
        ("subprocess.run(x)", False),
        ("logging.FileHandler(p)", True),
    ],
)
def test_what_opens_text(code, wrong):
    assert opens_text(ast.parse(code, mode="eval").body) is wrong
