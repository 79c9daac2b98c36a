"""``round_once`` against float32 and against PEFT's own forward pass."""

import copy
import re
import runpy
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

peft = pytest.importorskip("peft")

import study  # noqa: E402
from study.config import ModelConfig  # noqa: E402
from study.integrations.peft import round_once  # noqa: E402
from study.models import load_tokenizer  # noqa: E402
from study.store import load_measured  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
D_IN, D_OUT, N = 256, 192, 64
SMALL = 0.0005
"""The size of the adapter's output beside the base's, below half a unit in the last place."""


class OneLayer(nn.Module):
    """A model of one linear layer, of the class that a test asks for."""

    def __init__(self, kind, bias):
        super().__init__()
        self.proj = Conv1D(D_OUT, D_IN) if kind == "conv1d" else nn.Linear(D_IN, D_OUT, bias=bias)
        self.config: dict[str, Any] = {}
        with torch.no_grad():
            self.proj.weight.normal_(std=D_IN**-0.5)
            if self.proj.bias is not None:
                self.proj.bias.normal_()

    def forward(self, x, **options):
        return self.proj(x, **options)


def build(
    kind="linear", bias=False, adapters=1, base=torch.bfloat16, adapter=torch.float32, **options
):
    """A PEFT model whose adapters' outputs are ``SMALL`` beside that of the base."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=8, target_modules=["proj"], fan_in_fan_out=kind == "conv1d", **options
    )
    model = peft.get_peft_model(OneLayer(kind, bias).to(base), config)
    for number in range(1, adapters):
        model.add_adapter(f"other{number}", config)
    if adapters > 1:
        model.base_model.set_adapter(["default", *(f"other{n}" for n in range(1, adapters))])
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=SMALL / layer(model).scaling["default"])
        if "lora_" in name:
            weight.data = weight.data.to(adapter)
    return model


def layer(model):
    return model.base_model.model.proj


def swallowed(model, exact, x, context):
    """``1 - <d, D> / <d, d>``: d is the adapter's output in float32, D the change that is left."""
    with torch.no_grad(), model.disable_adapter(), context:
        base = model(x).float()
    with torch.no_grad(), context:
        change = model(x).float() - base
    with torch.no_grad():
        d = exact(x.float())
        with exact.disable_adapter():
            d -= exact(x.float())
    return float(1 - (d * change).sum() / (d * d).sum())


CASES = {
    "float32 adapter": {},
    "bf16 adapter": {"adapter": torch.bfloat16},
    "autocast": {"base": torch.float32},
    "bias": {"bias": True},
    "Conv1D": {"kind": "conv1d"},
    "lora_bias": {"bias": True, "lora_bias": True},
    "two adapters": {"adapters": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_survives_that_peft_loses_and_gradients_are_those_of_peft(case):
    options = CASES[case]
    theirs, exact = build(**options), build(**options).float()
    ours = round_once(copy.deepcopy(theirs))
    is_autocast = options.get("base") == torch.float32
    x = torch.randn(4, N, D_IN).to(options.get("base", torch.bfloat16))
    found = []
    for model in (theirs, ours):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            y = model(inputs)
        (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        trained = {n: w.grad for n, w in model.named_parameters() if w.requires_grad}
        found.append({"y": y, "x": inputs.grad, **trained})
        assert all(w.grad is None for w in model.parameters() if not w.requires_grad)
    for name, theirs_ in found[0].items():
        assert theirs_.dtype == found[1][name].dtype
        torch.testing.assert_close(found[1][name], theirs_, rtol=0.02, atol=0.02, msg=name)
        if "lora_" in name:
            assert torch.equal(found[1][name], theirs_), name
    context = torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext()
    assert swallowed(theirs, exact, x, context) > 0.3
    assert abs(swallowed(ours, exact, x, context)) < 0.06


def test_peft_computes_float32_and_adapters_that_are_off_or_merged_or_mixed():
    theirs = build(adapters=2)
    ours = round_once(copy.deepcopy(theirs))
    x = torch.randn(4, D_IN, dtype=torch.bfloat16)
    names = ["default", "other1", "__base__", "default"]
    mixed = [model.eval()(x, adapter_names=names) for model in (ours, theirs)]
    assert torch.equal(*mixed)
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    theirs.merge_adapter()
    ours.merge_adapter()
    assert torch.equal(ours(x), theirs(x))
    exact = build(base=torch.float32)
    assert torch.equal(round_once(copy.deepcopy(exact))(x.float()), exact(x.float()))


@pytest.mark.parametrize("options", [{"bias": True}, {"base": torch.float32}])
def test_a_compiled_layer_has_one_graph(options):
    model = round_once(build(**options))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(N, D_IN).to(options.get("base", torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(options.get("base"))):
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)


def test_one_warning_counts_the_layers_that_are_left(tiny_base):
    """An adapter on the embedding is left. A model without LoRA is refused."""
    config = peft.LoraConfig(target_modules=["q_proj", "embed_tokens"])
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model).bfloat16(), config)
    with pytest.warns(UserWarning, match=r"round_once: 1 of \d+ LoRA .*1 of type Embedding"):
        round_once(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        round_once(build())
    with pytest.raises(ValueError, match="no LoRA layer"):
        round_once(nn.Linear(2, 2))


def test_the_code_of_the_page(tiny_base, here):
    """The blocks of docs/bf16.md as they stand."""
    page = (DOCS / "bf16.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    config = peft.LoraConfig(target_modules="all-linear")
    base, again = (copy.deepcopy(tiny_base.model).bfloat16() for _ in range(2))
    ids = torch.arange(5, 45).view(2, 20)
    W0, x, A, B = (torch.randn(*n).bfloat16() for n in ((9, 5), (2, 3, 5), (4, 5), (9, 4)))
    names = {"torch": torch, "F": nn.functional, "study": study}
    names |= {"W0": W0, "x": x, "A": A, "B": B, "gamma": 0.001, "base": base, "config": config}
    names |= {"get_peft_model": peft.get_peft_model}
    names |= {"model": peft.get_peft_model(again, config)}
    names |= {"loader": [{"input_ids": ids, "labels": ids}] * 2}
    for block in (*blocks, *(block for block in blocks if "study.record" in block)):
        trained = [weight for weight in names["model"].parameters() if weight.requires_grad]
        names["optimizer"] = torch.optim.AdamW(trained, lr=1e-5)
        exec(compile(block, "docs/bf16.md", "exec"), names)
    tables = load_measured("results/mine")
    lost = tables.probes.merge(tables.cells[["cell_id", "contraction"]]).groupby("contraction")
    lost = lost["swallowed"].mean()
    assert lost["factored"] > 0.5 > 0.1 > abs(lost["concatenated"])
    expected = x.double() @ (W0.double() + 0.001 * B.double() @ A.double()).T
    torch.testing.assert_close(names["y"].double(), expected, rtol=1 / 256, atol=1e-4)


def test_the_example_script(tiny_base, tmp_path, monkeypatch, capsys):
    """On the tiny base, with two updates."""
    pytest.importorskip("trl")
    tiny_base.model.save_pretrained(tmp_path)
    load_tokenizer(ModelConfig("tiny")).save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bf16.py", str(tmp_path)])
    script = runpy.run_path(str(DOCS / "examples/bf16.py"))
    script["SHOWN"][:] = [1, 2]
    script["main"](4, 1e-4)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| 4 |" in line]
    assert [row[0] for row in rows] == ["| PEFT", "| TRL"]
    for row in rows:
        bf16, once = (abs(float(numbers.split(",")[0])) for numbers in row[4:])
        assert once < bf16
