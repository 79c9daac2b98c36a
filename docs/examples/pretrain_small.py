"""Pretrain ``model=small``: a Llama of 2.8 million parameters that reads bytes.

Usage: python docs/examples/pretrain_small.py FOLDER [--steps 6000] [--width 256] [--blocks 4]. It
writes the model and its card into FOLDER, and prints the held-out loss while it trains. One thread
takes about 40 minutes.

The text is the documentation that Python and eight packages have in their source: every string of
at least 120 characters. The modules of ``data=pydoc`` and all of networkx are left out: adapters
are trained on the first, and the second is the held-out text.
"""

import argparse
import ast
import json
import math
import random
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from study.data.pydoc import MODULES
from study.models.tiny import tokenizer

PACKAGES = {  # each with its licence
    "matplotlib": "PSF", "numpy": "BSD-3", "pandas": "BSD-3", "scipy": "BSD-3",
    "sympy": "BSD-3", "torch": "BSD-3", "transformers": "Apache-2.0",
}  # fmt: skip
HELD_OUT = "networkx"  # BSD-3
SEED, LENGTH, BATCH, RATE, SHORTEST, LONGEST = 20261129, 512, 4, 2e-3, 120, 4096
EOS = 256


def strings(folder: Path, left_out: set[Path]) -> Iterator[str]:
    """The long strings of every Python file in ``folder``, in the order of the files' names."""
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts
        if file in left_out or {"test", "tests", "site-packages"} & {*inside}:
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and len(text) >= SHORTEST:
                yield text[:LONGEST]


def tokens(texts: list[str]) -> torch.Tensor:
    """The bytes of all texts, each with an end of text."""
    stream: list[int] = []
    for text in texts:
        stream += [*text.encode("utf-8", "ignore"), EOS]
    return torch.tensor(stream, dtype=torch.int16)


def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out tokens. Training texts are shuffled, and none occurs twice."""
    installed, library = (Path(sysconfig.get_path(key)) for key in ("purelib", "stdlib"))
    stems = [library.joinpath(*module.split(".")) for module in MODULES["source"]]
    of_pydoc = {f for stem in stems for f in (stem.with_suffix(".py"), stem / "__init__.py")}
    folders = [library, *(installed / package for package in PACKAGES)]
    texts = sorted({text for folder in folders for text in strings(folder, of_pydoc)})
    random.Random(SEED).shuffle(texts)
    return tokens(texts), tokens(list(strings(installed / HELD_OUT, set())))


def losses(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """The loss in nats of every byte but a row's first, ``[B, T - 1]``."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.float().transpose(1, 2), rows[:, 1:], reduction="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--blocks", type=int, default=4)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # of the files that are parsed
    torch.manual_seed(SEED)
    train, heldout = corpus()
    print(f"{len(train):,} bytes to train on, {len(heldout):,} held out", flush=True)
    check = heldout[: 128 * LENGTH * 4].view(-1, LENGTH)[::4].long()
    width, heads = asked.width, asked.width // 64
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=width, intermediate_size=width * 5 // 2,
            num_hidden_layers=asked.blocks, num_attention_heads=heads,
            num_key_value_heads=max(heads // 2, 1), max_position_embeddings=LENGTH,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=EOS, pad_token_id=257,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.1)
    places = torch.randperm(len(train) // LENGTH)[: asked.steps * BATCH].view(-1, BATCH)
    curve = {}
    for step in range(asked.steps + 1):
        if step * 20 % asked.steps < 20:
            with torch.no_grad():
                nats = torch.cat([losses(model, rows) for rows in check.split(16)])
            curve[step] = round(nats.mean().item() / math.log(2), 4)
            print(f"step {step}: {curve[step]} bits a byte", flush=True)
        if step == asked.steps:
            break
        share = step / asked.steps
        decay = 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 200) * decay
        rows = torch.stack([train[p * LENGTH : (p + 1) * LENGTH] for p in places[step]]).long()
        losses(model, rows).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    bits = nats.mean(0) / math.log(2)  # of a byte after 1, 2, ... bytes
    by_context = {
        f"{low} to {2 * low - 1}": round(bits[low - 1 : 2 * low - 1].mean().item(), 3)
        for low in (1, 4, 16, 64, 256)
    }
    model.to(torch.bfloat16).save_pretrained(asked.folder)
    of_byte = bytes_to_unicode()
    tokenizer([of_byte[byte] for byte in range(256)]).save_pretrained(asked.folder)
    card = {
        "data": {"the standard library": "PSF", **PACKAGES}, "heldout": HELD_OUT, "seed": SEED,
        "versions": {name: version(name) for name in (*PACKAGES, HELD_OUT)},
        "bytes_trained": asked.steps * BATCH * LENGTH, "bytes_in_corpus": len(train),
        "bits_per_byte": curve, "bits_per_byte_by_context": by_context,
    }  # fmt: skip
    (asked.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
