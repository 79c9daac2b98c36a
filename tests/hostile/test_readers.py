"""One property for each reader of foreign files: what it can't read is one line, a StudyError."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from study.config import CellConfig, DataConfig, ModelConfig, Sources, identity, optimizer_config
from study.config.compose import CONF, compose
from study.config.hints import as_study_errors
from study.data import load_rows
from study.integrations.configs import read_file, write
from study.integrations.overrides import written
from study.models import load_base, tiny
from study.training.peft_format import read_adapter
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.sources import FORMATS

from .conftest import one_line

FEW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**30, 10**400, float("inf"), float("nan")),
    *("", "abc", "???", "../x", "${oc.env:HOME}", "${nope}", "${", "a\nb", "\udcff"),
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
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def changed(values: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """``values`` with a few of them replaced and a few added."""
    result = dict(values)
    for key in data.draw(st.lists(st.sampled_from(sorted(map(str, values))), max_size=3)):
        result[key] = data.draw(VALUES)
    return result | data.draw(st.dictionaries(st.text(max_size=8), VALUES, max_size=2))


# Data.

ENDINGS = ("jsonl", "json", "csv", "parquet", "jsonl.gz", "csv.zst", "txt")
FIELDS = sorted({key for row in FORMATS.values() for needed in row.needs for key in needed})
TURN = st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type"]), SCALARS)
ROWS = st.lists(
    st.dictionaries(st.sampled_from([*FIELDS, "x"]), SCALARS | st.lists(TURN, max_size=3)),
    max_size=3,
)
CONTENTS = (
    st.binary(max_size=60)
    | st.text(alphabet='{}[]":, contextarg0\\\n', max_size=60).map(str.encode)
    | ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    | ROWS.map(lambda rows: json.dumps(rows).encode())
)


@FEW
@given(CONTENTS, st.sampled_from(ENDINGS), st.sampled_from(["auto", *FORMATS]))
def test_a_data_file(here: Path, content: bytes, ending: str, form: str) -> None:
    path = here / f"rows.{ending}"
    path.write_bytes(content)
    template = "chatml" if form == "messages" else None
    config = DataConfig("file", str(path), 64, 8, 0, format=form, chat_template=template)
    with one_line():
        rows = load_rows(config, tiny.tokenizer).rows
        assert len({type(row) for row in rows}) == 1


# Models and adapters.

MODEL_KEYS = sorted({*tiny.config().to_dict(), "auto_map", "num_labels", "text_config"})
MODEL_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 0.5, -1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "64", "llama", "gpt2", "../x", "sdpa", "org/kernel", "full_attention"]),
    st.sampled_from([[], {}, [1], {"a": 1}, ["full_attention"]]),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("received") / "m"
    tiny.build().save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


CONFIGS = st.dictionaries(st.sampled_from(MODEL_KEYS), MODEL_VALUES, min_size=1, max_size=3)


@FEW
@given(CONFIGS | st.binary(max_size=200), st.sampled_from(["model.safetensors", "tokenizer.json"]))
def test_a_model(model: Path, change: dict[str, object] | bytes, name: str) -> None:
    """With other values in its configuration, or with another file."""
    path = model / ("config.json" if isinstance(change, dict) else name)
    before = path.read_bytes()
    if isinstance(change, dict):
        change = json.dumps(json.loads(before) | change).encode()
    path.write_bytes(change)
    try:
        with one_line():
            load_base(ModelConfig("hf", str(model)), torch.device("cpu"), "float32")
    finally:
        path.write_bytes(before)


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
PEFT = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/model",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "use_rslora": False,
    "rank_pattern": {},
    "init_lora_weights": True,
}
TENSORS = {f"{LAYER}.lora_A.weight": (2, 64), f"{LAYER}.lora_B.weight": (64, 2)}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAMES = [*TENSORS, f"{LAYER}.base_layer.weight", f"{LAYER}.lora_magnitude_vector", "x"]


@FEW
@given(
    data=st.data(),
    shapes=st.dictionaries(
        st.sampled_from(NAMES), st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=2
    ),
)
def test_an_adapter(here: Path, data: st.DataObject, shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = {name: torch.ones(shape) for name, shape in (TENSORS | shapes).items()}
    save_file(tensors, here / WEIGHTS)
    (here / CONFIG).write_text(json.dumps(changed(PEFT, data)))
    with one_line():
        assert read_adapter(here).pairs


# Configurations.

AXOLOTL = {
    "base_model": "org/model",
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj"],
    "datasets": [{"path": "none.jsonl", "type": "alpaca"}],
    "learning_rate": 1e-4,
    "max_steps": 3,
}
LLAMA_FACTORY = {
    "model_name_or_path": "org/model",
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "dataset": "rows",
    "template": "qwen3",
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
}
TRL = {
    "model_name_or_path": "org/model",
    "use_peft": True,
    "lora_r": 8,
    "dataset_name": "org/rows",
    "learning_rate": 1e-4,
}
FORMS = {"axolotl": AXOLOTL, "llama-factory": LLAMA_FACTORY, "trl": TRL, "peft": PEFT}


@pytest.mark.parametrize("values", FORMS.values(), ids=FORMS)
@FEW
@given(data=st.data(), content=st.none() | st.binary(max_size=200))
def test_a_configuration_of_another_tool(
    here: Path, values: dict[str, Any], data: st.DataObject, content: bytes | None
) -> None:
    """One with a few changes, or any content. What is written can be composed again."""
    try:
        found = yaml.safe_dump(changed(values, data)).encode() if content is None else content
    except (yaml.YAMLError, UnicodeEncodeError):  # such a value can't be in a file
        return
    Path("x.yaml").write_bytes(found)
    with one_line():
        write(read_file(Path("x.yaml")), "x", here / "conf", force=True)


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


@pytest.fixture(scope="module")
def checked() -> Iterator[Callable[[list[str]], None]]:
    """Compose overrides, check them and compute the identity."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        loader: ConfigLoader = GlobalHydra.instance().config_loader()

        def check(overrides: list[str]) -> None:
            with one_line(), as_study_errors():
                (cell,) = compose(loader, "config", ["model=tiny"], [overrides])
                identity(cell, Sources("a", "b", "c"))

        yield check


OVERRIDES = st.builds(
    lambda key, value: f"{key}={written(value)}",
    st.sampled_from(sorted({*KEYS, "model", "optimizer", "train"})),
    VALUES,
)


@FEW
@given(st.lists(OVERRIDES, max_size=4) | st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_overrides(checked: Callable[[list[str]], None], overrides: list[str]) -> None:
    checked(overrides)
