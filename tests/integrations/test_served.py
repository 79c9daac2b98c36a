"""llama.cpp serves adapters: rsLoRA at 1 / sqrt(r) of gamma, and right after ``study fold``."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from study.integrations.exporting import fold
from study.integrations.serving import served
from study.models import tiny
from study.training.peft_format import read_adapter

gguf, peft, llama = map(pytest.importorskip, ("gguf", "peft", "xllamacpp"))
MODEL: Any = tiny.build().eval()
SIZES = MODEL.config
IDS = list(range(5, 25))
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES.num_hidden_layers)
HEADS = {"q_proj": SIZES.num_attention_heads, "k_proj": SIZES.num_key_value_heads}
KEYS: dict[str, Any] = {
    "context_length": SIZES.max_position_embeddings,
    "embedding_length": SIZES.hidden_size,
    "block_count": SIZES.num_hidden_layers,
    "feed_forward_length": SIZES.intermediate_size,
    "head_count": SIZES.num_attention_heads,
    "head_count_kv": SIZES.num_key_value_heads,
    "layer_norm_rms_eps": SIZES.rms_norm_eps,
    "tokenizer_model": "gpt2",
    "tokenizer_pre": "default",
    "token_list": [f"t{n}" for n in range(SIZES.vocab_size)],
    "token_types": [1] * SIZES.vocab_size,
    "token_merges": ["t 0"],
}


def write(file: Path, weights: dict[str, torch.Tensor], keys: dict[str, Any]) -> Path:
    """A file of llama.cpp, which orders the rows of q and k by halves of a head."""
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(*(value if isinstance(value, tuple) else [value]))
    for path, weight in weights.items():
        layer, _, factor = path.partition(".weight")
        heads = HEADS.get(layer.rpartition(".")[2])
        if heads and factor != ".lora_a":
            weight = weight.unflatten(0, (heads, 2, -1)).swapaxes(1, 2).flatten(0, 2)
        own = f"{NAMES.get_name(layer)}.weight{factor}"
        writer.add_tensor(own, weight.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_adapter(folder: Path) -> Path:
    """As convert_lora_to_gguf.py does: it stores lora_alpha."""
    adapter, factors = read_adapter(folder), {}
    for layer, (A, B, _) in adapter.pairs.items():
        factors |= {f"{layer}.weight.lora_a": A, f"{layer}.weight.lora_b": B}
    keys: dict[str, Any] = {"type": "adapter", "string": ("adapter.type", "lora")}
    keys["float32"] = "adapter.lora.alpha", float(adapter.config["lora_alpha"])
    return write(folder / "adapter.gguf", factors, keys)


def of_server(base: Path, adapter: Path) -> np.ndarray:
    """The log-probabilities of the token after :data:`IDS`."""
    options = llama.CommonParams()
    options.model.path, options.warmup = str(base), False
    options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.lora_adapters = [llama.CommonAdapterLoraInfo(str(adapter), 1.0)]
    asked = {"prompt": IDS, "max_tokens": 1, "logprobs": SIZES.vocab_size}
    [choice] = llama.Server(options).handle_completions(asked)["choices"]
    found = choice["logprobs"]["content"][0]["top_logprobs"]
    return np.array([one["logprob"] for one in sorted(found, key=lambda one: one["id"])])


@torch.no_grad()
def of_peft(model: Any, factor: float = 1.0) -> np.ndarray:
    """The same in PEFT, with ``factor`` times its gamma."""
    with peft.helpers.rescale_adapter_scale(model, factor):
        return model(torch.tensor([IDS])).logits[0, -1].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("rank", [4, 16, 64])
@pytest.mark.parametrize("is_rslora", [False, True])
def test_the_factor_of_llama_cpp(rank: int, is_rslora: bool, tmp_path: Path) -> None:
    base = write(tmp_path / "base.gguf", dict(MODEL.named_parameters()), KEYS)
    torch.manual_seed(rank)
    options: Any = {"use_rslora": is_rslora, "target_modules": "all-linear"}
    config = peft.LoraConfig(r=rank, lora_alpha=16, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(copy.deepcopy(MODEL), config).eval()
    for path, weight in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(weight, std=0.02 if is_rslora else 0.02 * rank**0.5)
    model.save_pretrained(tmp_path / "own")
    fold(tmp_path / "own", tmp_path / "folded")
    own, folded = (of_server(base, write_adapter(tmp_path / name)) for name in ("own", "folded"))
    assert abs(of_peft(model) - of_peft(model, 0.0)).max() > 1, "the effect of the adapter"
    np.testing.assert_allclose(folded, of_peft(model), atol=1e-5)
    error = lambda factor: np.square(of_peft(model, factor) - own).sum()  # noqa: E731
    factor = minimize_scalar(error, bounds=(0, 2)).x
    row = served(read_adapter(tmp_path / "own")).set_index("server").loc["llama.cpp"]
    assert row["factor"] / row["gamma"] == pytest.approx(rank**-0.5 if is_rslora else 1.0)
    assert factor == pytest.approx(row["factor"] / row["gamma"], rel=0.02)
