"""Steps of the first day on a GPU that no command of study does (:mod:`benchmarks.gpu`)."""

import sys

import torch
from hydra import compose, initialize_config_dir
from torch.profiler import profile
from transformers import AutoModelForCausalLM

from study.config import ModelConfig
from study.config.compose import CONF, parse
from study.models import load_tokenizer
from study.models.sources import find_model
from study.sweeps.cells import plan
from study.sweeps.packs import prepare
from study.sweeps.run import Worker
from study.training.loop import train


def model(shape: str, base: str, device: str, folder: str) -> None:
    """Save a random model of a shape, or of tiny's, made on the device, with the base's tokens."""
    named = ModelConfig("tiny") if shape == "tiny" else ModelConfig("shape", shape)
    config = find_model(named).config()
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(ModelConfig(base)).save_pretrained(folder)


def trace(to: str, *overrides: str) -> None:
    """Profile the third step of a cell: print its operations, and write them for a viewer."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        pack = prepare(plan([parse(compose("config", overrides=[*overrides]))]))
    [cell] = pack.cells
    steps = train(Worker().base(cell, pack.device), pack.corpus, [cell.config])
    next(steps), next(steps)
    with profile() as profiled:
        next(steps)
        if pack.device.type == "cuda":
            torch.cuda.synchronize()
    steps.close()
    profiled.export_chrome_trace(f"{to}.json.gz")
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
