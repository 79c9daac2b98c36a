"""llama.cpp's server on bases and adapters of transformers and PEFT, in float32.

``python -m tests.integrations.llama_cpp`` measures the numbers of docs/serving.md.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
import xllamacpp as llama

from study.training.peft_format import read_adapter


def write(file: Path, model: Any, weights: dict[str, torch.Tensor], **keys: Any) -> Path:
    """Weights of a Llama or a Mixtral, or factors of an adapter, as ``convert_hf_to_gguf.py`` and
    ``convert_lora_to_gguf.py`` order them: rows of q and k by halves of a head, and the experts'
    gates apart from what they multiply."""
    writer, sizes = gguf.GGUFWriter(file, "llama"), model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, sizes.num_hidden_layers)
    heads = {"q_proj": sizes.num_attention_heads, "k_proj": sizes.num_key_value_heads}
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(*(value if isinstance(value, tuple) else [value]))
    for path, weight in weights.items():
        layer, _, factor = path.partition(".weight")
        kind, parts = layer.rpartition(".")[2], {layer: weight.detach()}
        if kind in heads and factor != ".lora_a":
            halves = weight.detach().unflatten(0, (heads[kind], 2, -1))
            parts = {layer: halves.swapaxes(1, 2).flatten(0, 2)}
        elif kind == "gate_up_proj":
            both = [weight.detach()] * 2 if factor == ".lora_a" else weight.detach().chunk(2, 1)
            parts = {
                layer.replace("gate_up", n): w for n, w in zip(("gate", "up"), both, strict=True)
            }
        for name, part in parts.items():
            writer.add_tensor(f"{names.get_name(name)}.weight{factor}", part.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_base(file: Path, model: Any) -> Path:
    sizes = model.config
    keys: dict[str, Any] = {
        "context_length": sizes.max_position_embeddings,
        "embedding_length": sizes.hidden_size,
        "block_count": sizes.num_hidden_layers,
        "feed_forward_length": sizes.intermediate_size,
        "head_count": sizes.num_attention_heads,
        "head_count_kv": sizes.num_key_value_heads,
        "layer_norm_rms_eps": sizes.rms_norm_eps,
        "rope_freq_base": sizes.rope_parameters["rope_theta"],
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "default",
        "token_list": [f"t{n}" for n in range(sizes.vocab_size)],
        "token_types": [1] * sizes.vocab_size,
        "token_merges": ["t 0"],
    }
    if experts := getattr(sizes, "num_local_experts", 0):
        keys |= {"expert_count": experts, "expert_used_count": sizes.num_experts_per_tok}
    return write(file, model, dict(model.named_parameters()), **keys)


def write_adapter(folder: Path, model: Any) -> Path:
    """As ``convert_lora_to_gguf.py`` does: it stores lora_alpha."""
    adapter, factors = read_adapter(folder), {}
    for layer, (A, B, _) in adapter.pairs.items():
        factors |= {f"{layer}.weight.lora_a": A, f"{layer}.weight.lora_b": B}
    alpha = "adapter.lora.alpha", float(adapter.config["lora_alpha"])
    kind = ("adapter.type", "lora")
    return write(
        folder / "adapter.gguf", model, factors, type="adapter", string=kind, float32=alpha
    )


def serve(base: Path, adapter: Path) -> Any:
    """A server, until it is deleted. Its ``listening_address`` is a URL."""
    options = llama.CommonParams()
    options.model.path, options.warmup, options.port = str(base), False, 0
    options.cpuparams.n_threads = 1
    options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.lora_adapters = [llama.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return llama.Server(options)
