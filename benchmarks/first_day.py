"""The step of the first day on a GPU that no command of study does (:mod:`benchmarks.gpu`)."""

import sys

import torch
from transformers import AutoModelForCausalLM

from study.config import ModelConfig
from study.models import load_tokenizer
from study.models.sources import find_model


def save_model(shape: str, base: str, device: str, folder: str) -> None:
    """Save a random model of a shape, or of tiny's, made on the device, with the base's tokens."""
    named = ModelConfig("tiny") if shape == "tiny" else ModelConfig("shape", shape)
    config = find_model(named).config()
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(ModelConfig(base)).save_pretrained(folder)


if __name__ == "__main__":
    save_model(*sys.argv[1:])
