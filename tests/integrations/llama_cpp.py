"""llama.cpp's server on bases and adapters of transformers and PEFT, in float32.

``python -m tests.integrations.llama_cpp results/reference/served.csv`` measures what
docs/serving.md shows.
"""

import copy
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
import xllamacpp as llama
from peft import PeftModel

from study.integrations.exporting import export, fold
from study.integrations.serving import Server, ask, base_of, drawn
from study.store import load_records
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


def measure(out: Path, work: Path, steps: int = 30) -> None:
    """Train rsLoRA at three ranks on the base ``small``, and write log-probabilities of the tokens
    after the fixed prompts of ``study serve-check``: of the base, and with the adapter in PEFT, in
    the server as it is and in the server after ``study fold``."""
    words = f"train -m model=small data=pydoc data.sequence_length=128 train.steps={steps} name=r"
    rsloras = "adapter.scaling=rslora adapter.rank=4,16,64 optimizer.lr=2e-3 probes.steps=null"
    kept = f"train.save_adapter=true results_dir={work}"
    command = [sys.executable, "-m", "study", *words.split(), *rsloras.split(), *kept.split()]
    subprocess.run(command, check=True)
    source = base_of("small")
    model = source.load(torch.device("cpu"), torch.float32, None)
    base, rows = write_base(work / "base.gguf", model), []
    for record in load_records(work / "r"):
        rank, cell = record["config"]["adapter"]["rank"], record["cell_id"]
        own = export(work / "r", cell, work / f"own-{rank}")
        fold(own, work / f"folded-{rank}")
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), own).eval()
        found = []
        for folder in (own, work / f"folded-{rank}"):
            running = serve(base, write_adapter(folder, model))
            server = Server(running.listening_address, None, remote=False)
            found.append([server.log_probabilities(p, {}, {}) for p in drawn(model).tolist()])
            print(rank, ask(folder, read_adapter(folder), server.url, "small", None, False))
        with torch.no_grad():
            ids = torch.as_tensor(drawn(model))
            peft, plain = (m(ids).logits[:, -1].log_softmax(-1) for m in (adapted, model))
        for n, (before, after) in enumerate(zip(*found, strict=True)):
            for token in before.keys() & after.keys():
                numbers = plain[n, token], peft[n, token], before[token], after[token]
                rows.append([rank, n, token, *(f"{float(p):.5f}" for p in numbers)])
    with out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["rank", "prompt", "token", "base", "peft", "server", "folded"])
        table.writerows(sorted(rows))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        measure(Path(sys.argv[1]), Path(place))
