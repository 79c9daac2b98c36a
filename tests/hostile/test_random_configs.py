"""Random configurations are read or refused in one line. Nothing else happens."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from study.config import CellConfig, Sources, identity, optimizer_config
from study.config.compose import CONF, compose, parse
from study.config.hints import as_study_errors
from study.errors import MOST_CHARACTERS, StudyError
from study.integrations.configs import read_file, write
from study.integrations.overrides import written
from study.vocabulary.optimizers import OPTIMIZERS

from .test_configs import AXOLOTL, LLAMA_FACTORY, PEFT

SHARED = Path(__file__).parents[3] / "shared/data/configs"
REAL = sorted(path for path in SHARED.rglob("*") if path.suffix in (".yml", ".yaml"))
QUIET = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for of_field in fields(config):
        default = of_field.default_factory  # type: ignore[misc]
        if is_dataclass(default):
            yield from _keys(default, f"{of_field.name}.")
        else:
            yield prefix + of_field.name


KEYS = (
    *_keys(CellConfig),
    *(f"optimizer.{name}" for row in OPTIMIZERS for name in _keys(optimizer_config(row))),
)
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**30, 10**400, float("inf"), float("nan")),
    *("", "abc", "???", "${oc.env:HOME}", "${nope}", "${", "a\nb", "\udcff"),
    *([], [None], [[1]], ["a"], {}, {"a": 1}),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(WRONG),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def loader() -> Iterator[ConfigLoader]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Inside, a StudyError of one line is expected, and any other exception fails the test."""
    said = ""
    try:
        yield
    except StudyError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) <= MOST_CHARACTERS


@pytest.fixture(scope="module")
def composed(loader: ConfigLoader) -> Callable[[str], DictConfig]:
    """The composed configuration of an optimizer, as a copy."""

    @cache
    def of(optimizer: str) -> DictConfig:
        overrides = ["model=tiny", f"optimizer={optimizer}"]
        return loader.load_configuration("config", overrides, run_mode=RunMode.RUN)

    return lambda optimizer: of(optimizer).copy()


@pytest.mark.parametrize("key", dict.fromkeys(KEYS))
def test_every_key_of_a_wrong_type_gets_one_line(
    composed: Callable[[str], DictConfig], key: str
) -> None:
    """As a config that was composed, so that a value needs no quotes."""
    option = key.removeprefix("optimizer.")
    name = next((name for name, row in OPTIMIZERS.items() if option in row.options), "adamw")
    for value in WRONG:
        with one_line(), as_study_errors():
            config = composed(name)
            parent, _, last = key.rpartition(".")
            (config[parent] if parent else config)[last] = value
            identity(parse(config), Sources("a", "b", "c"))


@QUIET
@given(st.dictionaries(st.sampled_from(sorted({*KEYS, "model", "optimizer", "train"})), VALUES))
def test_random_overrides_get_one_line(loader: ConfigLoader, values: dict[str, Any]) -> None:
    with one_line(), as_study_errors():
        overrides = [f"{key}={written(value)}" for key, value in values.items()]
        (cell,) = compose(loader, "config", ["model=tiny"], [overrides])
        identity(cell, Sources("a", "b", "c"))


@QUIET
@given(st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_random_text_as_overrides_gets_one_line(loader: ConfigLoader, texts: list[str]) -> None:
    with one_line(), as_study_errors():
        compose(loader, "config", ["model=tiny"], [texts])


def changed(values: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """``values`` with a few of them replaced, removed or added."""
    result = dict(values)
    for key in data.draw(st.lists(st.sampled_from(sorted(map(str, values))), max_size=3)):
        result[key] = data.draw(VALUES)
    return result | data.draw(st.dictionaries(st.text(max_size=8), VALUES, max_size=2))


@pytest.mark.parametrize(
    "values", [AXOLOTL, LLAMA_FACTORY, PEFT], ids=["axolotl", "llama-factory", "peft"]
)
@QUIET
@given(data=st.data())
def test_a_changed_configuration_is_imported_or_refused(
    here: Path, values: dict[str, Any], data: st.DataObject
) -> None:
    import_or_refuse(here, changed(values, data))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name[:30])
def test_real_configurations_are_imported_or_refused(here: Path, path: Path) -> None:
    import_or_refuse(here, yaml.safe_load(path.read_text()))


@pytest.mark.skipif(not REAL, reason="shared/data/configs is absent")
@QUIET
@given(data=st.data())
def test_changed_real_configurations_are_imported_or_refused(
    here: Path, data: st.DataObject
) -> None:
    values = yaml.safe_load(data.draw(st.sampled_from(REAL or [None])).read_text())
    import_or_refuse(here, changed(values, data))


@QUIET
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_random_files_are_refused(here: Path, content: str | bytes) -> None:
    for name in ("x.yaml", "x.json"):
        Path(name).write_bytes(
            content.encode(errors="replace") if isinstance(content, str) else content
        )
        with one_line():
            read_file(Path(name))


def import_or_refuse(here: Path, values: dict[str, Any]) -> None:
    """Import ``values``. What is written must be what was checked, so it can be composed again."""
    try:
        Path("x.yaml").write_text(yaml.safe_dump(values))
    except yaml.YAMLError:  # such a value can't be in a file
        return
    except UnicodeEncodeError:
        return
    with one_line():
        write(read_file(Path("x.yaml")), "x", here / "conf", force=True)
