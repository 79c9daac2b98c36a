"""The code of docs/peft.md and of the notebook runs as it stands."""

import json
import re
from pathlib import Path

import pytest
import torch

import study
from study.store import load_cells, load_measured

peft = pytest.importorskip("peft")

DOCS = Path(__file__).parents[2] / "docs"
OF_RANKS, OF_OWN_LOSS = re.findall(
    r"^```python\n(.*?)^```", (DOCS / "peft.md").read_text(), re.M | re.S
)
"""All blocks of the page."""


@pytest.fixture
def script(cell, peft_model, tiny_base, here):
    """What a user's script has before the lines of the page, in a folder of its own."""
    torch.manual_seed(0)
    model = peft_model(cell("adapter.rank=4"))
    batches = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 90, (2, 2, 12))]
    return {
        "study": study,
        "torch": torch,
        "peft_model": model,
        "optimizer": torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3),
        "loader": torch.utils.data.DataLoader(batches, batch_size=None),
    }


def run(code, names, steps):
    exec(compile(code, "docs/peft.md", "exec"), names)
    tables = load_measured("results/mine")
    assert set(tables.cells["status"]) == {"complete"}
    assert set(tables.cells["steps_done"]) == {steps}
    assert set(tables.probes["site"]) >= {"adapter_out", "layer_out_grad", "adapter_update"}
    return tables


def test_from_a_script_to_exponents_in_15_lines(script, tiny_base, works):
    import transformers

    assert len(OF_RANKS.strip().splitlines()) <= 15
    tiny_base.model.save_pretrained("base")
    names = ("get_peft_model", "LoraConfig")
    script |= {"BASE": "base", "AutoModelForCausalLM": transformers.AutoModelForCausalLM}
    script |= {name: getattr(peft, name) for name in names}
    tables = run(OF_RANKS, script, steps=2)
    assert tables.cells["rank"].tolist() == [4.0, 16.0, 64.0]
    works("analyze", "results/mine")
    exponents = study.load("results/mine").exponents
    first = exponents.query("step == 0 and layer == 'model' and site == 'adapter_grad'")
    [row] = first.query("stat == 'norm'").to_dict("records")
    assert row["exponent"] == pytest.approx(0.0, abs=0.1)
    assert row["predicted"] == pytest.approx(0.0, abs=0.01)


def test_a_loss_of_ones_own(script):
    def my_loss(logits, labels):
        return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])

    metrics = run(OF_OWN_LOSS, script | {"my_loss": my_loss}, steps=2).metrics
    assert metrics["loss"].notna().tolist() == [True, True, False]
    assert metrics["eval_loss"].tolist()[2] == 2.5


def test_the_notebook_runs_from_top_to_bottom(here):
    Path("results").mkdir()
    Path("results/reference").symlink_to(DOCS.parent / "results/reference")
    cells = json.loads((DOCS / "examples/study.ipynb").read_text())["cells"]
    assert len(cells) == 10
    names = {}
    for code in ("".join(one["source"]) for one in cells if one["cell_type"] == "code"):
        exec(compile(code, "docs/examples/study.ipynb", "exec"), names)
    assert names["figure"].axes
    assert set(names["mine"].cells["status"]) == {"complete"}
    assert "Do outputs and gradients keep their size" in names["mine"]._repr_html_()
    assert sorted(load_cells("results/recorded")["rank"]) == [4, 16]
