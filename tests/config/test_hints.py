"""The usual slips on the command line get one line; ``--help`` says what each key means."""

import re
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from study.config.compose import CONF
from study.config.hints import reference
from study.config.types import CONTRACTIONS, PRECISIONS, SCHEDULES
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import BATCHES, SITES, STATS
from study.vocabulary.scaling import RULES

SLIPS = {
    "rank=4": "unknown key rank: did you mean adapter.rank?",
    "lora_alpha=32": "unknown key lora_alpha: did you mean adapter.alpha?",
    "adapter.r=4": "unknown key adapter.r: did you mean adapter.rank?",
    "learning_rate=1e-4": "unknown key learning_rate: did you mean optimizer.lr?",
    "adapter.rnak=4": "unknown key adapter.rnak: did you mean adapter.rank?",
    "adapter.lr=1": "unknown key adapter.lr: did you mean optimizer.lr?",
    "optimizer.momentum=0.9": "unknown key optimizer.momentum",
    "optimizer=adamv": f"choose from {', '.join(sorted(OPTIMIZERS))}",
    "launcher=ray": "choose from basic, joblib, or pip install '.[ray]'",
    "+experiment=quick": "no + on the command line",
    "+lr=0.5": "unknown key lr: did you mean optimizer.lr?",
    "++lr=0.5": "unknown key lr: did you mean optimizer.lr?",
    "-m +lr=0.5,1": "unknown key lr: did you mean optimizer.lr?",
    "+experiment.foo=1": "unknown group experiment: a file of an experiment begins with # @pack",
    "max_batch_size=4": "unknown key max_batch_size: choose from model, data",
    "train.max_batch_size=4": "unknown key train.max_batch_size: choose from steps, epochs",
    "max_length=64": "unknown key max_length: did you mean data.sequence_length?",
    "~optimizer.weight_decay": "optimizer.weight_decay is not set: give optimizer.weight_decay=...",
    "~train train.steps=1": "train is not set: leave out ~train",
    "optimizer.lr=interval(1e-4,1e-2)": "interval(...) has no list of values: a sweep trains every",
    "-m optimizer.lr=interval(1e-4,1e-2)": "interval(...) has no list of values: a sweep trains",
    "optimizer.lr=range(1,3)": "requires --multirun: add -m",
    "hydra/sweeper=optuna": "there is no hydra/sweeper=optuna: a sweep trains every value",
    "~optimizer": "optimizer is not set",
    "~name": "name is not set",
    "~probes": "probes.tokens is not set",
    "experiment=qick": "did you mean quick?",
    "nothing=1": "unknown key nothing: choose from model, data, adapter",
    "--multirn": "unknown option --multirn: did you mean --multirun?",
    "--rank=8": "unknown option --rank=8: keys have no dashes, as in adapter.rank=4; see study",
    "--config my.yml": "unknown option --config: did you mean --config-dir?; see study",
    "mine.yml": "for a configuration file, study sweep-from mine.yml",
    "adapter.scaling=lora, rslora": "can't read adapter.scaling=lora,: write key=value without",
    "adapter.rank=4 8 16": "can't read 8",
    "adapter.rank=4,8": "add -m to sweep over several values",
    "-m hydra.sweep.dir=mine": "hydra.sweep.dir is not used: give results_dir=FOLDER",
    "-m optimizer.lr=1e-3,???": "optimizer.lr is not set",
    "-m data.seed=1,${nothing}": "Interpolation key 'nothing' not found",
    "-m optimizer=sgd,adamx": "did you mean adam?",
    "adapter=5": "Config group override must be a string or a list",
    "adapter.rank=[": "adapter.rank=[",
    "adapter.targets=[q_proj,k_prj]": "unknown target module 'k_prj': choose from",
    "-m seed=0,1 adapter.scaling=lorra": "unknown adapter.scaling 'lorra': choose from lora,",
    "data=file data.path=/none/such.jsonl": "/none/such.jsonl",
    "-m seed=0,1 data=file data.path=/none/such.jsonl": "/none/such.jsonl",
    "-m seed=0,1 data.sequence_length=9000": "longer than tiny allows: give at most 512",
    "train.answer_tokens=100 data.sequence_length=500": "longer than tiny allows: give at most 512",
    "--plan=b300": "unknown device of --plan 'b300': choose from h200, h100",
    "model=shape train.steps=1": "model=shape has no weights: add --plan",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_gets_one_line_and_writes_nothing(refused, here, slip):
    assert SLIPS[slip] in refused("train", "model=tiny", *slip.split())


def test_a_key_with_an_underscore_is_the_users_own(works, here):
    words = "model=tiny data.sequence_length=32 +_rate=0.5 optimizer.lr=${_rate} --plan"
    assert "1 cell" in works("train", *words.split()).out


def test_a_slip_and_advice_come_before_torch_is_imported():
    text = """
import sys
from study import cli
for line in ("train -m rank=4,8", "advise docs/examples/axolotl.yml"):
    sys.argv[1:], code = line.split(), 0
    try:
        cli.main()
    except SystemExit as leaving:
        code = leaving.code
    print(code, *{"torch", "transformers"} & set(sys.modules))
"""
    ran = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, cwd=CONF.parent
    )
    lines = ran.stdout.splitlines()
    assert (lines[0], lines[-1], ran.stderr.count("\n")) == ("2", "0", 1), ran.stderr


def test_a_slip_in_a_command(refused):
    assert "unknown command trian: did you mean train?" in refused("trian")


def test_the_help_of_hydra_names_commands_that_exist(works):
    text = works("train", "--hydra-help").out
    assert "--multirun" in text
    assert not re.search("-sc|--shell-completion", text)
    assert "Config search path" in works("train", "model=tiny", "--info").out


def test_every_key_has_a_meaning_and_its_choices(works):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for file in (CONF / "optimizer").glob("*.yaml"):
            composed = compose("config", [f"optimizer={file.stem}"], return_hydra_config=True)
            text, keys = reference(composed), set()
            for key in composed.keys() - {"hydra"}:
                keys |= {*composed[key]} if OmegaConf.is_dict(composed[key]) else {key}
            assert re.search(rf"(?m)^optimizer={file.stem} ", text)
            explained = set(re.findall(r"(?m)^ *(\w+):.*# +\w", text))
            assert keys - {"preset", "launcher", "experiment"} <= explained | {"name"}
    text = works("train", "--help").out
    choices = (*INITS, *RULES, *SITES, *STATS, *BATCHES, *CONTRACTIONS, *PRECISIONS, *SCHEDULES)
    for word in (*choices, "experiment", "study train -m", "adapter:\n  rank: 8"):
        assert word in text
