"""What the readers share: bits, the rule, the base, the data, and how keys without a counterpart are told."""

import json
from pathlib import Path
from typing import Any

from study.config import DataConfig
from study.data import Example, load_examples
from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields

STAND_INS = {"xbrl_extract_train.jsonl": "xbrl_extract"}
"""FinLoRA's files that the toolkit generates data like, for a machine that does not have them."""

WHY = {
    "peft_use_dora": "plain LoRA is trained",
    "use_dora": "plain LoRA is trained",
    "chat_template": "text is context + target, without a template",
    "train_on_inputs": "the loss is on targets alone",
    "sample_packing": "one example a row",
    "lora_model_dir": "adapters begin at their init",
    "lora_modules_to_save": "only adapters are trained",
    "modules_to_save": "only adapters are trained",
    "init_lora_weights": "adapter.init=kaiming, PEFT's default",
    "rank_pattern": "one rank for all layers",
    "alpha_pattern": "one alpha for all layers",
    "layers_to_transform": "all layers",
    "peft_layers_to_transform": "all layers",
    "fp16": "precision=float32",
    "plugins": "probes are on in every run",
}
"""What happens instead, for keys whose absence changes what is trained."""


def scaling_rule(use_rslora: bool) -> str:
    """``rslora`` or ``lora``."""
    return "rslora" if use_rslora else "lora"


def take_bits(fields: Fields) -> int | None:
    """Bits of the base's weights out of ``quant_bits``, ``load_in_8bit`` and ``load_in_4bit``.

    Raises :class:`StudyError` where they contradict one another or ask for other bits than 8 and 4.
    """
    bits = fields.take_whole("quant_bits")
    if bits not in (None, 4, 8):
        raise fields.wrong(
            "quant_bits", bits, "is neither 8 nor 4: leave it out for full precision"
        )
    said = {f"quant_bits: {bits}": bits} if bits else {}
    said |= {f"load_in_{n}bit: true": n for n in (8, 4) if fields.take_flag(f"load_in_{n}bit")}
    if len(set(said.values())) > 1:
        raise StudyError(f"{fields.where}: {' and '.join(said)} contradict each other: keep one")
    return next(iter(said.values()), None)


def put_base(experiment: Experiment, path: str, bits: int | None, folder: Path) -> None:
    """The base: a folder beside the file if there is one, else the hub name or path as it stands."""
    beside = folder / path
    experiment.groups["model"] = "hf"
    experiment.values["model.path"] = str(beside.resolve()) if beside.is_dir() else path
    if bits:
        experiment.values["model.quant_bits"] = bits


def put_data_file(
    experiment: Experiment, key: str, path: str, folder: Path
) -> list[Example] | None:
    """The data file that ``key`` names, looked for beside the configuration and then here; the examples in it.

    Where it is in neither place, FinLoRA's XBRL extraction is stood in for by the toolkit's own; any other file is left
    for the command line to name.
    """
    experiment.groups["data"] = "jsonl"
    found = next((p for p in (folder / path, Path(path)) if p.is_file()), None)
    if found is not None:
        experiment.values["data.path"] = str(found.resolve())
        return load_examples(DataConfig("jsonl", str(found)))
    if stand_in := STAND_INS.get(Path(path).name):
        experiment.groups["data"] = stand_in
        experiment.left_out.append(
            f"{key}: {path} is not here, so data={stand_in} stands in, generated questions of the same form; "
            f"with the file: data=jsonl data.path={Path(path).name}"
        )
    else:
        experiment.left_out.append(
            f"{key}: {path} is no file here: give data.path=... when you train"
        )
    return None


def tell_the_rest(experiment: Experiment, fields: Fields, prefix: str = "") -> None:
    """A line for every key that nobody took."""
    for key, value in fields.untaken().items():
        why = f" ({WHY[key]})" if key in WHY else ""
        experiment.left_out.append(f"{prefix}{key}: {short(value)}{why}")


def short(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."
