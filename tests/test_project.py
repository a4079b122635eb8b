"""The project's own rules: which way imports point, what may not be called, what the documents say."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.core

import axfold
from axfold import cli
from axfold.data.formats import a3m, fasta, pdb
from axfold.residues import RESTYPES_WITH_X

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "axfold"
SOURCES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [p for d in (".", "docs", "examples", "benchmarks") for p in sorted((ROOT / d).glob("*.md"))]

MAY_IMPORT = {
    "cache": (),
    "errors": (),
    "residues": (),
    "stereochemistry": ("residues",),
    "testing": (),
    "metrics": (),
    "config": ("errors",),
    "options": ("config", "errors"),
    "progress": (),
    "ops": ("cache", "errors", "memory.rows"),
    "memory": ("config", "errors"),
    "parallel": ("errors",),
    "model": ("config", "residues", "ops", "memory.rows", "parallel.axial"),
    "train": (
        *("ahead", "config", "console", "data", "errors", "metrics", "model", "network", "ops", "options"),
        *("output", "residues", "stereochemistry", "weights"),
    ),
    "data": ("config", "errors", "residues"),
    "weights": ("cache", "config", "errors"),
    "output": ("config", "errors", "residues", "data.query"),
}
"""What a part may import of axfold, beside itself and the version."""

RUN = (
    *("__init__", "__main__", "ahead", "batch", "cli", "console", "doctor"),
    *("compare", "forecast", "forward", "graphs", "network", "planning", "predictor", "writing"),
)
"""Parts that run the others and may use all of them; nobody imports the command line."""

WITHOUT_TORCH = (
    *(
        "__init__",
        "__main__",
        "ahead",
        "batch",
        "cli",
        "console",
        "config",
        "errors",
        "forecast",
        "options",
        "progress",
        "residues",
        "stereochemistry",
        "writing",
    ),
    *("data", "output"),
)
"""Parts that are imported before it is clear that there is anything to compute."""


class Import(NamedTuple):
    """One imported name: `name` is "axfold.ops.Op" for `from axfold.ops import Op`."""

    name: str
    line: int
    when_imported: bool  # at the top of the module, not inside a function or for type checkers alone

    def of(self, module: str) -> bool:
        return f"{self.name}.".startswith(f"{module}.")


def imports(source: str) -> Iterator[Import]:
    """All imports of a module's source, wherever they stand."""

    def walk(node: ast.AST, when_imported: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, when_imported)
            elif isinstance(child, ast.ImportFrom):
                prefix = "." * child.level + (child.module or "")
                for alias in child.names:
                    yield Import(f"{prefix}.{alias.name}", child.lineno, when_imported)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
                yield from walk(child, when_imported and not function and not for_types)

    return walk(ast.parse(source), True)


def part(path: Path) -> str:
    """The first folder or the module of a file in the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def wrong_imports(part: str, source: str) -> list[str]:
    """Imports by which a source in `part` would point the wrong way."""
    allowed = [f"axfold.{name}" for name in (part, *MAY_IMPORT[part], "__version__")]
    return [
        f"line {found.line}: {found.name}"
        for found in imports(source)
        if found.name.startswith(".") or (found.of("axfold") and not any(found.of(name) for name in allowed))
    ]


def unsafe_calls(source: str) -> list[str]:
    """Calls that would run code or follow paths that a file brings along."""
    tree = ast.parse(source)
    names = [(item.name, item.line) for item in imports(source) if item.name != "pickle"]
    names += [(ast.unparse(node), node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found = [
        f"line {line}: {name}"
        for name, line in names
        if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
        and name != "pickle.UnpicklingError"  # which torch.load raises
    ]
    required = {
        "np.load": "allow_pickle=False",
        "torch.load": "weights_only=True",
        "extractall": "filter='data'",
    }
    forbidden = {"allow_pickle=True", "weights_only=False", "shell=True"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        given = {ast.unparse(keyword) for keyword in node.keywords}
        missing = {
            need
            for name, need in required.items()
            if (function == name or function.endswith(f".{name}")) and need not in given
        }
        bad = [f"without {need}" for need in missing] + [f"with {use}" for use in given & forbidden]
        if function in ("eval", "exec", "os.system", "os.popen"):
            bad.append("at all")
        found += [f"line {node.lineno}: {function} {how}" for how in bad]
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name: str) -> None:
    files = [path for path in SOURCES if part(path) == name]
    wrong = {path.name: found for path in files if (found := wrong_imports(name, path.read_text("utf-8")))}
    assert files
    assert not wrong


def test_every_part_has_its_rule() -> None:
    assert {part(path) for path in SOURCES} - set(RUN) <= set(MAY_IMPORT)


def test_nobody_imports_the_command_line() -> None:
    for path in SOURCES:
        if path.name != "__main__.py":
            assert not [item for item in imports(path.read_text("utf-8")) if item.of("axfold.cli")], path


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("ops", "from axfold.model.pair import Transition"),
        ("ops", "from axfold import model"),
        ("data", "def f():\n    import axfold.predict"),
        ("model", "from axfold.memory.plan import plan"),
        ("model", "from axfold.train.loss import losses"),
        ("model", "from axfold.memory import plan"),
        ("model", "from . import pair"),
    ],
)
def test_a_wrong_import_is_found(part: str, source: str) -> None:
    assert wrong_imports(part, source)


def test_ray_has_one_importer() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if any(item.of("ray") for item in imports(path.read_text("utf-8")))
    }
    assert users <= {"data/executors.py"}


def test_torch_is_imported_when_needed() -> None:
    early = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if part(path) in WITHOUT_TORCH
        and any(item.of("torch") and item.when_imported for item in imports(path.read_text("utf-8")))
    }
    assert not early


@pytest.mark.parametrize(
    "code",
    ["import axfold", "import sys; sys.argv = ['axfold', '--help']; from axfold.cli import main; main()"],
    ids=["import", "help"],
)
def test_nothing_heavy_is_loaded_at_start(code: str) -> None:
    heavy = "torch", "matplotlib", "gemmi", "modelcif", "scipy"
    report = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded:', *(m for m in {heavy!r} if m in sys.modules)))\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_unsafe_is_called(path: Path) -> None:
    assert not unsafe_calls(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(data)",
        "from pickle import loads",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(command, shell=True)",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_an_unsafe_call_is_found(source: str) -> None:
    assert unsafe_calls(source)


def test_imported_packages_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in required}  # type: ignore[index]
    declared |= {"ihm"}  # a part of modelcif
    used = {item.name.split(".")[0] for path in SOURCES for item in imports(path.read_text("utf-8"))}
    assert used - set(sys.stdlib_module_names) - {"axfold"} <= declared


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == axfold.__version__
    assert re.search(
        rf"^## \[?{re.escape(axfold.__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert not [target for target in local if not (document.parent / target).exists()]


def options_of(command: typer.core.TyperCommand | typer.core.TyperGroup) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_commands_in_the_documents_exist() -> None:
    lines = [
        (document.name, line)
        for document in DOCUMENTS
        for line in re.findall(r"^ {4}axfold (.+)$", document.read_text("utf-8"), re.M)
    ]
    assert lines
    for document, line in lines:
        command, words = typer.main.get_command(cli.app), shlex.split(line, comments=True)
        while isinstance(command, typer.core.TyperGroup) and words[0] not in options_of(command):
            assert words[0] in command.commands, f"{document}: axfold {line}"
            command = command.commands[words.pop(0)]
        known = options_of(command)
        used = {word for word in words if word.startswith("-")}
        assert used <= known, f"{document}: axfold {line}"


def test_the_two_commands_stand_in_the_readme() -> None:
    readme, makefile = (ROOT / "README.md").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in readme[:1500]
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_example_is_one_protein() -> None:
    folder = ROOT / "examples"
    (record,) = fasta.parse((folder / "demo.fasta").read_text("utf-8"), "demo.fasta")
    alignment = a3m.parse((folder / "demo.a3m").read_text("utf-8"), "demo.a3m")
    structure = pdb.parse((folder / "demo.pdb").read_text("utf-8"), "demo.pdb")
    assert alignment.sequences[0] == record.sequence
    assert "".join(RESTYPES_WITH_X[i] for i in structure.aatype) == record.sequence
    assert len(alignment.sequences) == 128


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").splitlines()[-1] == "make test"
