"""Configurations of other tools that a stranger made: text stays text, and one line each."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from .conftest import BOMB

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
    "warmup_ratio": 0.1,
}
PEFT = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/model",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "use_rslora": False,
    "init_lora_weights": True,
}
LAUGHS = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
DOCUMENTS: dict[str, tuple[str, str | bytes, str]] = {
    "billion laughs": ("x.yaml", LAUGHS, "stands for over 20000 values"),
    "an alias inside itself": ("x.yaml", "a: &a [*a]\n", "stands for over 20000 values"),
    "deep lists": ("x.yaml", "[" * 5000, "not valid YAML"),
    "a long list": ("x.yaml", "a: [" + "1, " * 60_000 + "1]", "stands for over 20000 values"),
    "a long file": ("x.yaml", "a: 1\n" * 60_000, "x.yaml is larger than 0.25 MiB"),
    "deep JSON": ("x.json", "[" * 100_000, "x.json is not valid JSON"),
    "a Python object": ("x.yaml", "a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "a Python name": ("x.yaml", "!!python/name:os.system", "not valid YAML"),
    "an unknown tag": ("x.yaml", "base_model: !secret x", "not valid YAML"),
    "two documents": ("x.yaml", "a: 1\n---\nb: 2\n", "not valid YAML"),
    "a key twice": ("x.yaml", "lora_r: 8\nlora_r: 9\n", "has the key 'lora_r' twice"),
    "a JSON key twice": ("x.json", '{"r": 8, "r": 9}', "the key 'r' occurs twice"),
    "a long number": ("x.yaml", f"base_model: {'9' * 5000}", "not valid YAML"),
    "no text": ("x.yaml", b"\xff\xfe\x00", "is not UTF-8 text"),
    "nothing": ("x.yaml", "", "is empty: give a configuration"),
    "null bytes": ("x.yaml", "a: \x00", "not valid YAML"),
}
AXOLOTL_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"peft_init_lora_weights": "pissa"}, "peft_init_lora_weights='pissa' changes"),
    "loftq": ({"peft_init_lora_weights": "loftq"}, "peft_init_lora_weights='loftq' changes"),
    "a flag in quotes": ({"peft_use_rslora": "false"}, "'false' is neither true nor false"),
    "dora in quotes": ({"peft_use_dora": "true"}, "peft_use_dora='true' is neither true nor"),
    "bf16": ({"bf16": "maybe"}, "bf16='maybe' is not understood"),
    "a large number": ({"lora_alpha": 10**400}, "lora_alpha=1000"),
    "a large rank": ({"lora_r": 10**12}, "adapter.rank=1000000000000 is too large"),
    "no rank": ({"lora_r": [8]}, "lora_r=[8] is not a number"),
    "infinity": ({"lora_alpha": float("inf")}, "lora_alpha=inf is not a number"),
    "many epochs": ({"num_epochs": 1e300, "max_steps": None}, "num_epochs=1e+300 is not positive"),
    "a negative share": ({"val_set_size": -1}, "val_set_size=-1.0 is neither a share"),
    "a ratio": ({"warmup_ratio": 1e300}, "warmup_ratio=1e+300 is not between 0 and 1"),
    "no names": ({"lora_target_modules": [["q_proj"]]}, "neither a string nor a list of strings"),
    "a number of names": ({"lora_target_modules": 7}, "neither a string nor a list of strings"),
    "no file": (
        {"datasets": [{"path": "x", "data_files": [3]}]},
        "data_files=[3] is neither a string nor a list of strings",
    ),
    "a null byte": ({"base_model": "a\0b"}, "is not a path"),
    "a long path": ({"base_model": "a" * 5000}, "is not a path"),
    "a long file name": (
        {"datasets": [{"path": "org/x", "data_files": "a" * 3000}]},
        "is not a path",
    ),
    "no text": ({"base_model": {"a": 1}}, "base_model={'a': 1} is not a string"),
}
PEFT_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora=True is not plain LoRA"),
    "dora in quotes": ({"use_dora": "false"}, "use_dora='false' is not plain LoRA"),
    "rslora in quotes": ({"use_rslora": "false"}, "use_rslora='false' is neither true nor false"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the base's"),
    "corda": ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changes the base's"),
    "biases": ({"bias": "all"}, "bias='all' is not plain LoRA"),
    "some layers": ({"layers_to_transform": [0]}, "layers_to_transform=[0] is not plain LoRA"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices=[1] is not plain"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config={'top_k': 2} is not plain LoRA"),
    "a later PEFT": ({"use_magic": 3}, "use_magic=3 is not a known field"),
    "ranks": ({"rank_pattern": ["q_proj"]}, "rank_pattern=['q_proj'] is not a mapping"),
    "no targets": ({"target_modules": []}, "target_modules is missing"),
}
FACTORY_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no stage": ({"stage": ["sft"]}, "stage: ['sft'] is unknown"),
    "no method": ({"finetuning_type": {"lora": 1}}, "finetuning_type={'lora': 1} is not LoRA"),
    "a large rank": ({"lora_rank": 10**12}, "adapter.rank=1000000000000 is too large"),
    "no names": ({"dataset": [["rows"]]}, "neither a string nor a list of strings"),
    "a folder that is none": ({"dataset_dir": 7}, "dataset_dir=7 is not a string"),
    "a flag in quotes": ({"use_rslora": "false"}, "'false' is neither true nor false"),
    "many epochs": ({"num_train_epochs": 1e300}, "num_train_epochs=1e+300 is not positive"),
    "a ratio": ({"warmup_ratio": -1}, "warmup_ratio=-1.0 is not between 0 and 1"),
    "a null byte": ({"model_name_or_path": "a\0b"}, "is not a path"),
    "an empty list": ({"dataset": []}, "dataset is missing"),
}
INFOS: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "dataset_info.json is not valid JSON"),
    "no entry": ('{"more": {}}', "'rows': choose from more"),
    "no mapping": ('{"rows": [1]}', "rows=[1] is not a mapping"),
    "a path that is none": ('{"rows": {"file_name": "a\\u0000b"}}', "is not a path"),
    "columns": ('{"rows": {"columns": [1]}}', "columns=[1] is not a mapping"),
    "tags": ('{"rows": {"tags": "x"}}', "tags='x' is not a mapping"),
}
TARGETS = "adapter.targets"
SECRET = "hf_a_secret"
TEXTS = (
    "${oc.env:HF_TOKEN}",
    "\\${oc.env:HF_TOKEN}",
    "a,b",
    'it\'s "quoted"',
    "{a: 1}",
    "[1, 2]",
    "!!python/name:os.system",
    "&anchor *alias",
    "# no comment",
    "- item",
    "back\\slash\\",
    "éé ☃",
    "null",
    "true",
    "1e3",
    "${nope",
)
Refused = Callable[..., str]


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_grows_or_lies_gets_one_line(refused: Refused, case: str) -> None:
    name, text, says = DOCUMENTS[case]
    refused(f"import-config {name}", says, files={name: text}, seconds=BOMB)


@pytest.mark.parametrize("case", AXOLOTL_VALUES)
def test_a_value_of_axolotl_that_is_not_understood(refused: Refused, case: str) -> None:
    changes, says = AXOLOTL_VALUES[case]
    text = yaml.safe_dump({**AXOLOTL, **changes})
    refused("import-config x.yaml", says, files={"x.yaml": text})


@pytest.mark.parametrize("case", FACTORY_VALUES)
def test_a_value_of_llama_factory_that_is_not_understood(refused: Refused, case: str) -> None:
    changes, says = FACTORY_VALUES[case]
    files = {"x.yaml": yaml.safe_dump({**LLAMA_FACTORY, **changes})}
    refused("import-config x.yaml", says, files=files)


@pytest.mark.parametrize("case", INFOS)
def test_a_description_of_data_sets_that_lies(refused: Refused, case: str) -> None:
    text, says = INFOS[case]
    values = yaml.safe_dump({**LLAMA_FACTORY, "dataset_dir": "."})
    refused("import-config x.yaml", says, files={"x.yaml": values, "dataset_info.json": text})


@pytest.mark.parametrize("case", PEFT_VALUES)
def test_a_value_of_peft_that_is_not_understood(refused: Refused, case: str) -> None:
    changes, says = PEFT_VALUES[case]
    files = {"adapter_config.json": json.dumps({**PEFT, **changes})}
    refused("import-config adapter_config.json", says, files=files)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (f"import-config x.yaml --name {'x' * 300}", "is longer than 200 bytes"),
        (f"sweep-from x.yaml --ranks {'9' * 400}", "rank must be a positive integer"),
        (f"sweep-from x.yaml --ranks {'9' * 5000}", "rank must be a positive integer"),
        (f"sweep-from x.yaml --seeds {','.join(map(str, range(2000)))}", "give at most 1000"),
        (
            "sweep-from x.yaml --rules '${oc.env:HF_TOKEN}'",
            "unknown adapter.scaling '${oc.env:HF_TOKEN}'",
        ),
        ("import-config /dev/zero", "is not a file"),
        ("import-config .", "is a folder"),
        ("import-config x.yaml --to /proc/x", "cannot write"),
        ("import-config x.yaml --sweep many.yaml", "has 101 values: give at most 100"),
        ("import-config x.yaml --sweep laughs.yaml", "stands for over 20000 values"),
    ],
)
def test_an_option_that_is_wrong(refused: Refused, command: str, says: str) -> None:
    files = {
        "x.yaml": yaml.safe_dump(AXOLOTL),
        "many.yaml": yaml.safe_dump({"lora_r": list(range(1, 102))}),
        "laughs.yaml": LAUGHS,
    }
    refused(command, says, files=files, seconds=BOMB)


def test_text_of_a_configuration_arrives_as_it_is(
    run: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the base's path, the targets, a swept value and the notes; never as a value of Hydra."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    values = {
        **AXOLOTL,
        "base_model": TEXTS[0],
        "lora_target_modules": list(TEXTS),
        "evil\nname: x": "y\nseed: 9",
    }
    sweep = {"lora_target_modules": [list(TEXTS), *([text] for text in TEXTS)]}
    files = {"x.yaml": yaml.safe_dump(values), "s.yaml": yaml.safe_dump(sweep)}
    ended = run("import-config x.yaml --sweep s.yaml --name 'é'", files=files, seconds=BOMB)
    assert ended.code == 0, ended.err
    words = shlex.split(ended.out)
    words.append("data.path=x")
    shown = run([*words[1:], "--cfg", "job"], seconds=BOMB, small=False)
    assert shown.code == 0, shown.err
    composed: Any = OmegaConf.to_object(OmegaConf.create(shown.out))
    assert composed["model"]["path"] == TEXTS[0]
    assert composed["adapter"]["targets"] == list(TEXTS)
    assert (composed["name"], composed["seed"]) == ("é", 0)
    swept = run([*words[1:], "--cfg", "hydra"], seconds=BOMB, small=False)
    params = OmegaConf.create(swept.out).hydra.sweeper.params
    parse = OverridesParser.create().parse_override
    cells = [
        parse(f"key={text}") for text in parse(f"key={params[TARGETS]}").sweep_string_iterator()
    ]
    values = OmegaConf.create({"cells": [cell.value() for cell in cells]})
    assert OmegaConf.to_object(values)["cells"] == sweep["lora_target_modules"]
    everything = [ended.out, ended.err, shown.out, swept.out]
    everything += [path.read_text() for path in here.rglob("conf/**/*.yaml")]
    assert SECRET not in "".join(everything)


@pytest.mark.parametrize("name", ["null", "true", "1", "a b", "-m", "é", "x=y", "[a]"])
def test_an_experiment_of_any_name_can_be_composed(run: Any, name: str) -> None:
    files = {"x.yaml": yaml.safe_dump(AXOLOTL)}
    ended = run(["import-config", "x.yaml", f"--name={name}"], files=files)
    assert ended.code == 0, ended.err
    shown = run([*shlex.split(ended.out)[1:], "--cfg", "job"], seconds=BOMB, small=False)
    assert shown.code == 0, shown.err
    assert yaml.safe_load(shown.out)["adapter"]["targets"] == ["q_proj"]


def test_roles_that_are_lists_are_unknown_roles(run: Any) -> None:
    entry = {"hf_hub_url": "org/x", "formatting": "sharegpt", "tags": {"user_tag": ["human"]}}
    values = {**LLAMA_FACTORY, "dataset_dir": "."}
    info = json.dumps({"rows": entry})
    ended = run(
        "import-config x.yaml", files={"x.yaml": yaml.safe_dump(values), "dataset_info.json": info}
    )
    assert ended.code == 0, ended.err
    assert "dataset: rows (convert its rows" in ended.err


def test_a_template_in_one_long_line_is_no_file(run: Any) -> None:
    """The system refuses to look for a file of such a name."""
    dataset = {"path": "org/chats", "type": "chat_template", "chat_template_jinja": "{{ x }}" * 100}
    files = {"x.yaml": yaml.safe_dump({**AXOLOTL, "datasets": [dataset]})}
    ended = run("import-config x.yaml", files=files)
    assert ended.code == 0, ended.err
    assert "write the template to a file" in ended.err
