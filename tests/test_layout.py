"""The tree's rules: imports run one way, no two modules import each other, private names stay private, tests stand where their modules do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "earlydrop"
ORDER = [  # from the top: a module imports what stands below it
    "commands", "claims", "analysis", "training", "metrics", "integrations", "scheduler", "classic", "gradients", "distance", "sites",
    "schedules", "exact",
]  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in MODULES}


def imports(path):
    """The modules of earlydrop that a file imports, TYPE_CHECKING and imports inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in NAMES else node.module for alias in node.names
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
            package = name.startswith(other + ".") or other.startswith(name + ".")  # a package offers what its modules hold
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


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))], ids=str
)
def test_private_names_stay_private(path):
    """Nothing imports an underscored name of another module of ours, or reads an underscored attribute of a class of ours."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("earlydrop"):
            private = [alias.name for alias in node.names if alias.name.startswith("_") and not alias.name.startswith("__")]
            assert not private, f"{path}: {private} of {node.module}"


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
        assert len(path.read_text().splitlines()) <= 520, path


@pytest.mark.parametrize(
    "module", ["earlydrop.analysis", "earlydrop.analysis.plots", "earlydrop.commands.report", "earlydrop.claims.tables"]
)
def test_reading_drawing_and_printing_import_no_hydra(module):
    code = f"import sys, {module}; print([m for m in ('hydra', 'omegaconf', 'wandb', 'timm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


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
    owner = call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else None
    if name != "open" or owner in ("os", "Image", "lzma", "webbrowser"):
        return False
    place = 0 if isinstance(call.func, ast.Attribute) else 1  # path.open(mode), open(path, mode)
    mode = keywords.get("mode", call.args[place] if len(call.args) > place else ast.Constant("r"))
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_opens_text_without_saying_its_encoding(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if opens_text(call)] == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("p.read_text()", True), ("p.read_text(encoding='utf-8')", False), ("open(p)", True), ("open(p, 'rb')", False),
        ("p.open('wb')", False), ("p.open('w')", True), ("os.open(p, 0)", False), ("subprocess.run(x, text=True)", True),
        ("subprocess.run(x)", False), ("logging.FileHandler(p)", True),
    ],
)  # fmt: skip
def test_what_opens_text(code, wrong):
    assert opens_text(ast.parse(code, mode="eval").body) is wrong
