"""``study export`` and ``study import`` from the command line, against PEFT and transformers."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import study
from study.cli import main
from study.config import CellConfig, ModelConfig
from study.errors import StudyError
from study.models import FrozenBase, load_base, load_tokenizer, smollm2, tiny
from study.store import load_records
from study.store.cache import cache_folder
from study.sweeps import app as hydra_app
from study.sweeps.cells import plan
from study.sweeps.run import run
from study.training.peft_format import CONFIG, read_adapter

peft = pytest.importorskip("peft")
IDS = torch.arange(40).view(2, 20)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str]:
    """The exit code and the printed text."""
    monkeypatch.setattr(sys, "argv", ["study", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.fixture(scope="module")
def trained(cell: Callable[..., CellConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cells on the tiny base: three rules with saved adapters, and one without."""
    folder = tmp_path_factory.mktemp("kept")
    common = [
        f"results_dir={folder}",
        "name=kept",
        "adapter.rank=6",
        "probes.steps=null",
        "optimizer.lr=0.05",
    ]
    rules = [
        ["adapter.scaling=lora"],
        ["adapter.scaling=rslora"],
        ["adapter.scaling=power", "adapter.exponent=0.75"],
    ]
    run(plan([cell(*common, *rule, "train.save_adapter=true") for rule in rules]))
    run(plan([cell(*common, "adapter.rank=2", "data.seed=5")]))
    return folder / "kept"


def cell_id(study_dir: Path, scaling: str, rank: int = 6) -> str:
    cells = study.load(study_dir).cells
    return str(cells[(cells["scaling"] == scaling) & (cells["rank"] == rank)]["cell_id"].item())


def assert_equal_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 2e-5 of the largest, because our banks and PEFT multiply in different orders."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def our_logits(base: FrozenBase, adapter: Path) -> torch.Tensor:
    """The logits of our banks with a trained adapter."""
    from study.adapters import AdapterSpec, adapted

    found = read_adapter(adapter)
    with (
        adapted(base.model, list(found.pairs), [AdapterSpec(6, 1.0, start=found.pairs)]),
        torch.no_grad(),
    ):
        return base.model(IDS).logits


@pytest.mark.parametrize("scaling", ["lora", "rslora", "power"])
def test_export(
    trained: Path,
    tiny_base: FrozenBase,
    scaling: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import copy

    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = cell_id(trained, scaling)
    expected = our_logits(tiny_base, trained / "cells" / name / "adapter")
    assert command(monkeypatch, capsys, "export", trained, name[:8], tmp_path / "adapter")[0] == 0
    record = json.loads((tmp_path / "adapter" / "study_record.json").read_text())
    assert (record["cell_id"], record["config"]["adapter"]["init"]) == (name, "kaiming")
    with torch.no_grad():
        # In float64: PEFT's float32 logits are further from it than ours (1e-4 against 1e-5).
        exact = copy.deepcopy(tiny_base.model).double()
        theirs = peft.PeftModel.from_pretrained(exact, tmp_path / "adapter").double().eval()(IDS)
        assert (tiny_base.model(IDS).logits - expected).abs().max() > 1e-2
    assert_equal_logits(theirs.logits.float(), expected)

    assert (
        command(monkeypatch, capsys, "export", trained, name, tmp_path / "merged", "--merged")[0]
        == 0
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert_equal_logits(copy.deepcopy(merged).double()(IDS).logits.float(), expected)
    text = "bytes, ünd 12 more"
    tokenizers = (
        AutoTokenizer.from_pretrained(tmp_path / "merged"),
        load_tokenizer(ModelConfig("tiny")),
    )
    assert len({tuple(tokenizer(text)["input_ids"]) for tokenizer in tokenizers}) == 1
    assert merged.config.use_cache


def test_a_missing_adapter_names_the_command_that_trains_it(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The named command trains the same cell again, with its adapter."""
    name = cell_id(trained, "lora", rank=2)
    code, printed = command(monkeypatch, capsys, "export", trained, name, tmp_path / "adapter")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    line = printed.partition("train it again with ")[2]
    words = shlex.split(line)
    assert words[:2] == ["study", "train"]
    assert {"adapter.rank=2", "data.seed=5", "train.save_adapter=true"} <= set(words)
    loss = study.load(trained).metrics.query("cell_id == @name")["loss"].tolist()
    hydra_app.main(words[2:])
    again = study.load(trained)
    assert len(again.cells) == 4
    assert again.metrics.query("cell_id == @name")["loss"].tolist() == pytest.approx(
        loss, nan_ok=True
    )
    assert command(monkeypatch, capsys, "export", trained, name, tmp_path / "adapter")[0] == 0


@pytest.mark.parametrize("merged", [[], ["--merged"]], ids=["adapter", "merged"])
def test_bad_exports_write_nothing(
    trained: Path,
    merged: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = cell_id(trained, "rslora")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for words, message in (
        ((trained, "xyz", tmp_path / "new"), "no cell of .* begins with 'xyz': choose from"),
        ((trained, "", tmp_path / "new"), "4 cells of .* begin"),
        ((trained, name, tmp_path / "used"), "already exists: give a new folder"),
        ((tmp_path / "nowhere", name, tmp_path / "new"), "no study in"),
    ):
        code, printed = command(monkeypatch, capsys, "export", *words, *merged)
        assert code == 2
        assert pd.Series([printed]).str.contains(message).item(), printed
        assert printed.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "used"]


@pytest.fixture
def theirs(tiny_base: FrozenBase, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A PEFT adapter whose ranks and alphas differ by layer, and its logits in PEFT."""
    import copy

    lora = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"layers.1.mlp.up_proj": 3},
        lora_dropout=0.1,
    )
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model), lora).eval()
    with torch.no_grad():
        for weight in (p for n, p in model.named_parameters() if "lora_B" in n):
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        logits = model(IDS).logits
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", logits


def test_import_continues_training_a_peft_adapter(
    theirs: tuple[Path, torch.Tensor],
    tiny_base: FrozenBase,
    jsonl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = theirs
    base = ["model=tiny", "data=file", f"data.path={jsonl}", f"results_dir={tmp_path / 'results'}"]
    small = [
        "data.sequence_length=48",
        "data.heldout=6",
        "train.batch_size=3",
        "train.save_adapter=true",
    ]
    code, printed = command(
        monkeypatch, capsys, "import", folder, *base, *small, "train.steps=2", "optimizer.lr=1e-2"
    )
    assert code == 0, printed
    assert "4 layers, rank 2 to 4, gamma 1.5 to 5.65685 (rslora), on tiny" in printed
    (further,) = (line for line in printed.splitlines() if line.startswith("to train it further"))
    words = shlex.split(further.partition(":")[2])
    assert "adapter.dropout=0.1" in words
    hydra_app.main([*words[2:], "adapter.dropout=0"])

    tables = study.load(tmp_path / "results" / "continued")
    row = tables.cells.iloc[0]
    assert (row["rank"], row["alpha"], row["scaling"], row["init"]) == (4, 8, "rslora", "imported")
    # The loss at step 0 is PEFT's loss with this adapter, not that of a fresh init.
    record = load_records(tmp_path / "results" / "continued")[0]
    assert record["sources"]["adapter"]
    cells = plan([cell_of(record)])
    assert cells[0].id == record["cell_id"]
    assert tables.metrics["loss"].iloc[0] == pytest.approx(
        peft_loss(folder, tiny_base, cells[0].config), rel=1e-5
    )
    after = read_adapter(
        tmp_path / "results" / "continued" / "cells" / record["cell_id"] / "adapter"
    )
    before = read_adapter(folder)
    assert {n: p.gamma for n, p in after.pairs.items()} == pytest.approx(
        {n: p.gamma for n, p in before.pairs.items()}
    )
    assert all(not torch.equal(after.pairs[n].B_OR, pair.B_OR) for n, pair in before.pairs.items())
    assert {tuple(p.A_RD.shape) for p in after.pairs.values()} == {(2, 64), (4, 64)}


def cell_of(record: dict[str, Any]) -> CellConfig:
    from omegaconf import OmegaConf

    from study.config.compose import parse

    config = OmegaConf.create(record["config"])
    config.adapter.init = "kaiming"  # the default of a command line
    return parse(config)


def peft_loss(folder: Path, base: FrozenBase, config: CellConfig) -> float:
    """PEFT's loss on the batch of step 0."""
    import copy

    from torch.nn.functional import cross_entropy

    from study.data import build_corpus

    tokenizer = load_tokenizer(config.model)
    corpus = build_corpus(config.data, tokenizer, tokenizer.eos_token_id)
    batch = corpus.train.batch(config.data.seed, 0, config.train.batch_size)
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval()
        return float(
            cross_entropy(
                model(batch.input_ids_BT).logits.flatten(0, 1), batch.targets_BT.flatten()
            )
        )


def test_an_adapter_with_other_weights_is_another_cell(
    theirs: tuple[Path, torch.Tensor], cell: Callable[..., CellConfig], tmp_path: Path
) -> None:
    import shutil

    folder, _ = theirs
    shutil.copytree(folder, tmp_path / "elsewhere")
    ids = [plan([cell(f"adapter.path={path}")])[0].id for path in (folder, tmp_path / "elsewhere")]
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": 16}))
    ids.append(plan([cell(f"adapter.path={folder}")])[0].id)
    assert ids[0] == ids[1] != ids[2]
    assert plan([cell()])[0].id == plan([cell("train.save_adapter=true")])[0].id


def test_bad_imports(
    theirs: tuple[Path, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import LlamaForCausalLM

    folder, _ = theirs
    other = tiny.config()
    other.intermediate_size = 96
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    for words, message in (
        ((folder,), "names no base: choose one"),
        (
            (folder, "model=hf", f"model.path={tmp_path / 'other'}"),
            "for another base than .*up_proj is 64 -> 128",
        ),
        ((tmp_path / "nowhere", "model=tiny"), f"{CONFIG} does not exist"),
    ):
        code, printed = command(monkeypatch, capsys, "import", *words)
        assert code == 2
        assert pd.Series([printed]).str.contains(message).item(), printed
        assert printed.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "lm_head"], "the adapter is also on lm_head, outside the blocks: only layers"),
        (["embed_tokens"], "which is not A or B of a linear layer"),
    ],
)
def test_imports_of_adapters_outside_the_blocks(
    targets: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PEFT saves the base's own weight beside such an adapter."""
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    peft.get_peft_model(tiny.build(), config).save_pretrained(tmp_path / "adapter")
    code, printed = command(monkeypatch, capsys, "import", tmp_path / "adapter", "model=tiny")
    assert code == 2
    assert message in printed.splitlines()[-1]


def test_an_adapter_of_infinite_rank_cannot_be_saved(cell: Callable[..., CellConfig]) -> None:
    limit = ["adapter.rank=inf", "adapter.scaling=rslora", "optimizer=sgd"]
    with pytest.raises(StudyError, match="no factors to save"):
        cell(*limit, "train.save_adapter=true")


@pytest.mark.smollm2
@pytest.mark.skipif(
    not smollm2.is_whole(cache_folder() / smollm2._NAME),
    reason="SmolLM2 is not in the cache",
)
def test_smollm2(
    cell: Callable[..., CellConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One step on the real base. PEFT loads the export by its base's name and has our logits."""
    overrides = [
        *("model=smollm2", "name=real", f"results_dir={tmp_path}", "probes.steps=null"),
        *("train.steps=1", "train.batch_size=1", "train.eval_every=0", "train.save_adapter=true"),
        *("adapter.scaling=power", "adapter.exponent=0.7", "adapter.targets=[q_proj,down_proj]"),
        "optimizer.lr=1e-3",
    ]
    run(plan([cell(*overrides)]))
    name, adapter = str(study.load(tmp_path / "real").cells["cell_id"].item()), tmp_path / "adapter"
    assert command(monkeypatch, capsys, "export", tmp_path / "real", name, adapter)[0] == 0
    base = load_base(ModelConfig("smollm2"), torch.device("cpu"), "float32")
    expected = our_logits(base, tmp_path / "real" / "cells" / name / "adapter")
    with torch.no_grad():
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(IDS).logits
        moved = (base.model(IDS).logits - expected).abs().max()
    assert moved > 1e-2
    assert_equal_logits(theirs, expected)
