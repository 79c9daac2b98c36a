"""The server of processes imports this: what a run of ``study`` imports sooner or later."""

import joblib  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytorch_optimizer  # noqa: F401
import transformers.optimization  # noqa: F401
from hydra.core.plugins import Plugins
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import tests.faults.instrument
import tests.faults.seeded_bugs  # noqa: F401

Plugins.instance()
