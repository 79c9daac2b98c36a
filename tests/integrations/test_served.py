"""``study serve-check --url``: the factor of llama.cpp, and a line for what can't be decided."""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from study.integrations.serving import served
from study.models import tiny
from study.training.peft_format import read_adapter
from tests.models.small import mixtral

peft = pytest.importorskip("peft")
Cli = Callable[..., Any]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def adapted(base: Any, folder: Path, **options: Any) -> Path:
    """An adapter of PEFT whose effect is as large as the base's."""
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    config = peft.LoraConfig(**options)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    torch.manual_seed(config.r)
    for path, weight in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(weight, std=0.02 if config.use_rslora else 0.02 * config.r**0.5)
    model.save_pretrained(folder)
    return folder


def asked(cli: Cli, base: str, folder: Path, server: Any) -> tuple[float, str]:
    """The factor that the command finds, as a share of gamma, and its sentence."""
    ran = cli("serve-check", str(folder), "--url", server.listening_address, "--base", base)
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    return float(re.search(r"([\d.e-]+) of gamma", said)[1]), said


TOO_WEAK = "alpha / r instead of alpha / sqrt r"
MANY = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 64, "down_proj": 4}}
KINDS: dict[str, tuple[dict[str, Any], float, str]] = {
    **{f"LoRA {r}": ({"r": r}, 1.0, "(as PEFT)") for r in (4, 16, 64)},
    **{
        f"rsLoRA {r}": ({"r": r, "use_rslora": True}, r**-0.5, f"({TOO_WEAK})") for r in (4, 16, 64)
    },
    "alphas": (MANY, math.nan, "no single factor"),
    "experts": (
        {"r": 16, "use_rslora": True, "target_modules": [], "target_parameters": EXPERTS},
        0.25,
        f"({TOO_WEAK})",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_of_llama_cpp(kind: str, tmp_path: Path, study_cli: Cli) -> None:
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package)
    from tests.integrations import llama_cpp

    options, share, words = KINDS[kind]
    model: Any = tiny.build()
    if kind == "experts":
        config = mixtral()
        config.initializer_range = 0.2
        model = AutoModelForCausalLM.from_config(config)
    model.eval().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    base = llama_cpp.write_base(tmp_path / "base.gguf", model)
    own = adapted(model, tmp_path / "own", **{"lora_alpha": 16, **options})
    assert study_cli("fold", str(own), str(tmp_path / "folded")).code == 0
    rows = served(read_adapter(own)).set_index("server").loc[["llama.cpp"]]
    if kind != "experts":  # of which the table says nothing
        assert (rows["factor"] / rows["gamma"]).nunique() == (3 if kind == "alphas" else 1)
    for folder, expected, said in ((own, share, words), (tmp_path / "folded", 1, "(as PEFT)")):
        server = llama_cpp.serve(base, llama_cpp.write_adapter(folder, model))
        factor, found = asked(study_cli, str(tmp_path / "model"), folder, server)
        assert said in found
        assert math.isnan(expected) or factor == pytest.approx(expected, rel=0.02), found
