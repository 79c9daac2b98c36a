"""The diagram in ARCHITECTURE.md, the import contracts and the code agree."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
MOST_DEFERRED = 50


@pytest.fixture(scope="module")
def imports():
    """Which package of ``study`` imports which, by name. ``__main__`` only starts ``cli``."""
    graph = grimp.build_graph("study", cache_dir=None)
    modules = graph.modules - {"study", "study.__main__"}
    package = {module: module.split(".")[1] for module in modules}
    found = {
        (package[importer], package[imported])
        for importer in package
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported in package
    }
    return {(importer, imported) for importer, imported in found if importer != imported}


def below(package, edges):
    """Every package that ``package`` reaches along ``edges``."""
    found = set()
    waiting = [package]
    while waiting:
        here = waiting.pop()
        new = {imported for importer, imported in edges if importer == here} - found
        found |= new
        waiting += new
    return found


def test_the_diagram_is_the_code(imports):
    """An arrow for each import that does not follow from the other arrows, and no other arrow."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    [mermaid] = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    needed = {
        (importer, imported)
        for importer, imported in imports
        if not any(imported in below(via, imports) for a, via in imports if a == importer)
    }
    assert set(re.findall(r"(\w+) --> (\w+)", mermaid)) == needed


def test_the_table_names_every_package(imports):
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text[text.index("| package of `study/`") :].split("\n\n")[0]
    named = {name.removesuffix(".py") for name in re.findall(r"`(\w+(?:\.py)?)/?`", table)}
    assert {package for both in imports for package in both} <= named


def test_no_module_imports_itself_through_others():
    """So no call goes to a function that calls back into the module it came from."""
    graph = grimp.build_graph("study", cache_dir=None, exclude_type_checking_imports=True)
    imported_by = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    list(TopologicalSorter(imported_by).static_order())  # raises CycleError, naming the cycle


def test_no_package_has_a_function_named_like_one_of_its_modules():
    """The import contracts would read ``from study.package import name`` as the module alone, and
    miss what the package imports."""
    found = set()
    for init in (ROOT / "study").rglob("__init__.py"):
        modules = {path.stem for path in init.parent.iterdir()}
        for line in ast.parse(init.read_text(encoding="utf-8")).body:
            names = [name.asname or name.name for name in getattr(line, "names", ())]
            package = ".".join(init.parent.relative_to(ROOT).parts)
            if getattr(line, "module", package) != package:  # not the modules themselves
                found |= {f"{package}.{name}" for name in names if name in modules}
    assert not found - {"study.errors"}


def test_few_imports_are_deferred():
    """Imports are at the top, except slow ones of the command line and optional packages."""
    found = {
        (file.relative_to(ROOT).as_posix(), line.lineno)
        for file in (ROOT / "study").rglob("*.py")
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for line in ast.walk(function)
        if isinstance(line, ast.Import | ast.ImportFrom)
    }
    assert len(found) <= MOST_DEFERRED, sorted(found)
