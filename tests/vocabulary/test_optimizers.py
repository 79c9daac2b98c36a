"""An optimizer is known in its row, its constructor and theory's tables, and nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

from study.config import optimizer_config
from study.training.optimizers import CONSTRUCTORS
from study.vocabulary.optimizers import OPTIMIZERS, decay_of, label, of_family

ROOT = Path(__file__).parents[2]
KNOWN_IN = ("vocabulary/optimizers.py", "training/optimizers.py", "theory/")
OPTIONS = {option for row in OPTIMIZERS.values() for option in row.options}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Every string of a module with its line, docstrings included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_other_module_names_an_optimizer() -> None:
    names = set(OPTIMIZERS) - OPTIONS  # "momentum" is an option's name too
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "study").rglob("*.py"))
        if not str(path.relative_to(ROOT / "study")).startswith(KNOWN_IN)
        for line, text in strings(path)
        if text in names
    ]
    assert found == []


def test_every_row_has_a_constructor_and_a_configuration_file() -> None:
    assert set(CONSTRUCTORS) == set(OPTIMIZERS)
    for name in OPTIMIZERS:
        file = yaml.safe_load((ROOT / f"conf/optimizer/{name}.yaml").read_text())
        assert set(file) == set(optimizer_config(name).__dataclass_fields__), name


def test_rows_answer_what_other_modules_ask() -> None:
    assert of_family("linear") == ("sgd", "momentum", "nesterov")
    assert of_family("spectral") == ("muon",)
    assert decay_of("adamw", 0.1) == "decoupled"
    assert decay_of("adam", 0.1) == "coupled"
    assert decay_of("adam", 0.0) == "none"
    assert label("adamw") == "AdamW"
    assert label("paged_adamw_8bit") == "paged_adamw_8bit"
    assert [name for name, row in OPTIMIZERS.items() if row.has_eps] == ["adamw", "adam", "rmsprop"]
