"""``study export`` and ``study import`` from the command line, against PEFT and transformers."""

import copy
import json
import re
import shlex

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from study.adapters import AdapterSpec, adapted
from study.data.batches import build_corpus
from study.models import load_tokenizer, tiny
from study.store import load_cells, load_measured, load_records
from study.sweeps.cells import plan
from study.sweeps.launch import train_here
from study.training.peft_format import CONFIG, WEIGHTS, read_adapter

peft = pytest.importorskip("peft")
IDS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def trained(cell, tmp_path_factory):
    """Four cells on the tiny base: three rules with saved adapters, and one without."""
    folder = tmp_path_factory.mktemp("kept")
    common = [f"results_dir={folder}", "name=kept", "probes.steps=null", "optimizer.lr=0.05"]
    saved = [*common, "adapter.rank=6", "train.save_adapter=true"]
    rules = ["adapter.scaling=lora"], ["adapter.scaling=rslora"]
    kept = plan([cell(*saved, *rule) for rule in (*rules, ["adapter.scaling=crossover"])])
    for cells in (kept, plan([cell(*common, "adapter.rank=2", "data.seed=5")])):
        train_here(cells, [cells], lambda free: [free])
    return folder / "kept"


def cell_id(study_dir, scaling, rank=6):
    cells = load_cells(study_dir)
    return str(cells[(cells["scaling"] == scaling) & (cells["rank"] == rank)]["cell_id"].item())


@pytest.mark.parametrize("scaling", ["lora", "rslora", "crossover"])
def test_export(trained, tiny_base, scaling, tmp_path, works):
    """Our banks and PEFT have the same logits, within what the order of products rounds."""
    name = cell_id(trained, scaling)
    pairs = read_adapter(trained / "cells" / name / "adapter").pairs
    spec = AdapterSpec(6, 1.0, start=pairs)
    with adapted(tiny_base.model, list(pairs), [spec]), torch.no_grad():
        expected = tiny_base.model(IDS).logits
    within = 4e-5 * float(expected.abs().max())
    works("export", trained, name[:8], tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "study_record.json").read_text())
    assert (record["cell_id"], record["config"]["adapter"]["init"]) == (name, "kaiming")
    own = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert own["use_rslora"] == (scaling == "rslora")
    assert (own["lora_alpha"] == 16) == (scaling != "crossover"), "a power of r alone is in PEFT"
    names = {f"base_model.model.{n}.lora_{f}.weight" for n in tiny_base.card.linears for f in "AB"}
    assert set(load_file(tmp_path / "adapter" / WEIGHTS)) == names, "servers expect no others"
    works("export", trained, name, tmp_path / "folded", "--fold-scaling")
    assert json.loads((tmp_path / "folded" / CONFIG).read_text())["use_rslora"] is False
    with torch.no_grad():
        assert (tiny_base.model(IDS).logits - expected).abs().max() > 1e-2
        for place in ("adapter", "folded"):
            # In float64: PEFT's float32 logits are further from it than ours (1e-4 against 1e-5).
            exact = copy.deepcopy(tiny_base.model).double()
            theirs = peft.PeftModel.from_pretrained(exact, tmp_path / place).double().eval()(IDS)
            torch.testing.assert_close(theirs.logits.float(), expected, rtol=0, atol=within)


def test_a_missing_adapter_names_the_command_that_trains_it(trained, tmp_path, works, refused):
    """The named command trains the same cell again, with its adapter."""
    name = cell_id(trained, "lora", rank=2)
    line = refused("export", trained, name, tmp_path / "adapter")
    words = shlex.split(line.partition("train it again with ")[2])
    assert words[:2] == ["study", "train"]
    assert words[-1] == "train.save_adapter=true"
    loss = load_measured(trained).metrics.query("cell_id == @name")["loss"].tolist()
    works(*words[1:])
    again = load_measured(trained)
    assert len(again.cells) == 4
    found = again.metrics.query("cell_id == @name")["loss"].tolist()
    assert found == pytest.approx(loss, nan_ok=True)
    works("export", trained, name, tmp_path / "adapter")


def test_bad_exports(trained, tmp_path, refused):
    name = cell_id(trained, "rslora")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for words, message in (
        ((trained, "xyz", tmp_path / "new"), "no cell of .* begins with 'xyz': choose"),
        ((trained, "", tmp_path / "new"), "4 cells of .* begin"),
        ((trained, name[1:], tmp_path / "new"), "no cell of .* begins with"),
        ((trained, name, tmp_path / "used"), "already exists: give a new folder"),
        ((tmp_path / "nowhere", name, tmp_path / "new"), "no study in"),
    ):
        assert re.search(message, refused("export", *words))


def test_import_continues_training_a_peft_adapter(theirs, tiny_base, cell, jsonl, tmp_path, works):
    small = ["model=tiny", "data=file", f"data.path={jsonl}", "data.sequence_length=48"]
    small += ["data.heldout=6", "train.batch_size=3", "train.steps=2", "optimizer.lr=1e-2"]
    small += ["train.save_adapter=true", f"results_dir={tmp_path / 'results'}"]
    printed = works("import", theirs, *small).out
    assert "6 layers, rank 2 to 6, gamma 1.22474 to 5.65685 (rslora), on tiny" in printed
    (further,) = (line for line in printed.splitlines() if line.startswith("to train it further"))
    words = shlex.split(further.partition(":")[2])
    assert "adapter.dropout=0.1" in words
    works(*words[1:], "adapter.dropout=0")

    continued = tmp_path / "results" / "continued"
    tables, [record] = load_measured(continued), load_records(continued)
    row = tables.cells.iloc[0]
    assert (row["rank"], row["alpha"], row["scaling"], row["init"]) == (6, 8, "rslora", "imported")
    # The loss at step 0 is PEFT's loss with this adapter, not that of a fresh init.
    config = cell(*small, f"adapter.path={theirs}", "adapter.dropout=0", "name=continued")
    loss = peft_loss(theirs, tiny_base, config)
    assert tables.metrics["loss"].iloc[0] == pytest.approx(loss, rel=1e-5)
    after = read_adapter(continued / "cells" / record["cell_id"] / "adapter").pairs
    before = read_adapter(theirs).pairs
    gammas = [{n: pair.gamma for n, pair in pairs.items()} for pairs in (after, before)]
    assert gammas[0] == pytest.approx(gammas[1])
    assert all(not torch.equal(after[n].B_OR, pair.B_OR) for n, pair in before.items())
    assert {tuple(p.A_RD.shape) for p in after.values()} == {(2, 64), (6, 64), (6, 128)}


def peft_loss(folder, base, config):
    """PEFT's loss on the batch of step 0."""
    tokenizer = load_tokenizer(config.model)
    corpus = build_corpus(config.data, tokenizer, tokenizer.eos_token_id)
    batch = corpus.train.batch(config.data.seed, 0, config.train.batch_size)
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval()
        logits = model(batch.input_ids_BT).logits
    return float(cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten()))


def test_bad_imports(theirs, tmp_path, refused):
    """PEFT saves the base's own weight beside an adapter on a head."""
    other = tiny.config()
    other.intermediate_size = 96
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny.build(), config).save_pretrained(tmp_path / "lm_head")
    base = ["model=hf", f"model.path={tmp_path / 'other'}"]
    for words, message in (
        ((theirs,), "names no base: choose one"),
        ((theirs, *base), "for another base than .*(up_proj is .64, 128|down_proj is .128, 64)"),
        ((tmp_path / "nowhere", "model=tiny"), f"{CONFIG} does not exist"),
        ((tmp_path / "lm_head", "model=tiny"), "lm_head, outside the blocks"),
    ):
        assert re.search(message, refused("import", *words))
