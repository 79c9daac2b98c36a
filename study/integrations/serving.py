"""``study serve-check``: by what servers multiply a PEFT adapter. Some ignore keys of its file.

``--url`` asks a running server. It gives log-probabilities of the token after a few fixed prompts,
with the adapter and without it. PEFT on this machine gives the same ones with any multiple of
gamma. The factor is the multiple whose changes, with minus without the adapter, fit the server's
best in least squares.
"""

import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from study.config import ModelConfig
from study.errors import StudyError, one_line
from study.models.messages import failing
from study.models.sources import UnloadedModel, find_model
from study.training.peft_format import PeftAdapter
from study.vocabulary.extras import install
from study.vocabulary.sources import MODELS

SERVERS = list(csv.DictReader(Path(__file__).with_name("servers.csv").read_text().splitlines()))
"""What servers read. ``reads``: keys of ``adapter_config.json`` that change the factor;
``rank_pattern`` if it divides by the tensors' rank. ``unknown``: keys of which nothing is known.
``whole``: whether ``lora_alpha`` must be written without a point. ``since``: the source."""


def served(adapter: PeftAdapter) -> pd.DataFrame:
    """A row for each server and group of kinds of layers of one rank and gamma. ``factor``: the
    server's; NaN if it is not known or if the adapter is refused."""
    config = adapter.config
    kinds: dict[tuple[int, float], dict[str, None]] = {}
    for layer, pair in adapter.pairs.items():
        kinds.setdefault((pair.A_RD.shape[-2], pair.gamma), {})[layer.rpartition(".")[2]] = None
    rows = []
    for server in SERVERS:
        open_keys = [key for key in server["unknown"].split() if config.get(key)]
        for (rank, gamma), names in kinds.items():
            factor, result = _factor(server["reads"].split(), adapter, rank, gamma), "as PEFT"
            if server["whole"] and isinstance(config["lora_alpha"], float):
                factor, result = math.nan, f"refuses lora_alpha={config['lora_alpha']}"
            elif open_keys:
                factor, result = math.nan, f"not known with {open_keys[0]}"
            elif not math.isclose(factor, gamma, rel_tol=1e-6):
                times = max(gamma / factor, factor / gamma)
                result = f"{times:.3g} times too {'weak' if factor < gamma else 'strong'}"
            row = {"server": server["server"], "layers": ", ".join(names), "gamma": gamma}
            rows.append(row | {"factor": factor, "result": result})
    return pd.DataFrame(rows)


def _factor(reads: list[str], adapter: PeftAdapter, rank: int, gamma: float) -> float:
    root, config = 0.5 if adapter.scaling == "rslora" else 1.0, adapter.config
    alpha = gamma * rank**root if "alpha_pattern" in reads else config["lora_alpha"]
    divisor = rank if "rank_pattern" in reads else config["r"]
    return float(alpha / divisor ** (root if "use_rslora" in reads else 1.0))


def verdict(rows: pd.DataFrame) -> str:
    wrong = rows[(rows["factor"] / rows["gamma"] - 1).abs() > 1e-6]
    refused = rows[rows["result"].str.startswith("refuses")]
    if wrong.empty and refused.empty:
        return "Servers multiply it as PEFT does, where that is known (study serve-check)."
    named = ", ".join(dict.fromkeys([*wrong["server"], *refused["server"]]))
    return f"Other factors than PEFT's: {named} (study serve-check). study fold removes the cause."


PROMPTS, LENGTH, TOP = 8, 16, 20
"""Prompts, tokens of each, and log-probabilities after each. vLLM gives at most 20."""
SECONDS, BYTES = 120, 1 << 20
"""The most of all requests together, and of one answer."""
STARTS = [0.0, *2.0 ** np.arange(-5, 9)]
"""Factors around which the best one is searched."""
OTHER_MODEL, WIDE, UNEVEN, EXACT = 1.0, 0.2, 0.02, 1e-3
"""A difference of the bases in nats, a width of the interval and a share of the change that is
left: above them the bases differ, the factor is not decided, and the layers differ. A rest below
the last, in nats, is of rounding."""


def base_of(base: str) -> UnloadedModel:
    own_path = base not in MODELS or MODELS[base].reads_path
    return find_model(ModelConfig(name="hf", path=base) if own_path else ModelConfig(name=base))


class Server:
    """An OpenAI-compatible server. ``without`` and ``adapted``: fields of requests for its base and
    for the adapter, ``served`` there."""

    def __init__(self, url: str, served: str | None, remote: bool) -> None:
        if urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1") and not remote:
            raise StudyError(f"--url={url} is not on this machine: give --remote to ask it too")
        self.url, self.until = url.rstrip("/").removesuffix("/v1"), time.monotonic() + SECONDS
        parents = {one["id"]: one.get("parent") for one in self.ask("/v1/models").get("data", ())}
        first = next(iter(parents), "")
        name = served or next((name for name in parents if parents[name]), first)
        base = parents[name] if parents.get(name) in parents else first
        self.without: dict[str, Any] = {"model": base}
        self.adapted: dict[str, Any] = {"model": name}
        if name == base:  # llama.cpp's adapters have numbers, and are on by default
            try:
                self.without["lora"] = [
                    {"id": one["id"], "scale": 0.0} for one in self.ask("/lora-adapters")
                ]
            except StudyError:
                raise StudyError(f"{url} has {base} without an adapter: load it there") from None

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            left = max(self.until - time.monotonic(), 1e-3)
            with build_opener(ProxyHandler({})).open(request, timeout=left) as answer:
                return json.loads(answer.read(BYTES))
        except (OSError, ValueError, HTTPException) as error:
            why = f"no OpenAI-compatible server answers at {self.url}{path} ({one_line(error)})"
            raise StudyError(f"{why}: start it, or give another --url") from None

    def log_probabilities(
        self, prompt: list[int], chosen: Mapping[str, Any], ids: Mapping[str, int]
    ) -> dict[int, float]:
        """Of the :data:`TOP` most probable tokens, by id. ``ids``: of tokens by their text."""
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": TOP}
        # vLLM's; and llama.cpp's, whose cache of prompts mixes up adapters.
        own = {"return_tokens_as_token_ids": True, "cache_prompt": False}
        answer = self.ask("/v1/completions", {**chosen, **asked, **own})
        try:
            found = answer["choices"][0]["logprobs"]
            if "content" in found:
                top = found["content"][0]["top_logprobs"]
                return {each["id"]: each["logprob"] for each in top}
            texts = found["top_logprobs"][0].items()
        except (KeyError, TypeError, IndexError):
            raise StudyError(f"{self.url} gives no log-probabilities: can't be decided") from None
        known = {text: ids.get(text, text.removeprefix("token_id:")) for text, _ in texts}
        return {int(known[text]): p for text, p in texts if str(known[text]).isdecimal()}


@dataclass(frozen=True)
class Factor:
    """``factor``, and the ``low`` and ``high`` end of its 95 % interval, as shares of gamma.

    ``tokens``: how many log-probabilities were fitted. Root mean squares in nats: ``offset``, of
    the server's base minus PEFT's; ``change``, by the adapter on the server; ``left`` by the fit.
    """

    factor: float
    low: float
    high: float
    tokens: int
    offset: float
    change: float
    left: float

    def verdict(self, adapter: PeftAdapter) -> str:
        near = f"the interval is {self.low:.3g} to {self.high:.3g} of gamma"
        bases = f"the server's base differs from PEFT's by {self.offset:.2g} nats"
        found = f"{self.factor:.3g} of gamma ({self._reading(adapter)})"
        if self.left > max(UNEVEN * self.change, 2 * self.offset, EXACT):
            share = self.left / self.change
            found = f"no single factor: {self.factor:.3g} of gamma leaves {share:.0%} of the change"
        elif self.high - self.low > WIDE * max(self.factor, WIDE):
            return (
                f"The factor can't be decided: {near}; {bases} (quantised?), and the adapter "
                f"changes log-probabilities by {self.change:.2g}."
            )
        return f"Served at {found}; {near}, from {self.tokens} log-probabilities; {bases}."

    def _reading(self, adapter: PeftAdapter) -> str:
        known, rules = {1.0: "as PEFT", 0.0: "the adapter is not applied"}, ["/ r", "/ sqrt r"]
        ranks = {pair.A_RD.shape[-2] for pair in adapter.pairs.values()}
        if len(ranks) == 1:
            is_rslora = adapter.scaling == "rslora"
            other, own = rules if is_rslora else reversed(rules)
            ratio = math.sqrt(ranks.pop()) ** (-1 if is_rslora else 1)
            known.setdefault(ratio, f"alpha {other} instead of alpha {own}")
        nearest = min(known, key=lambda one: abs(one - self.factor))
        is_near = abs(nearest - self.factor) < WIDE / 4 * max(nearest, WIDE)
        return known[nearest] if is_near else "no known reading of the adapter"


def ask(
    folder: Path, adapter: PeftAdapter, url: str, base: str | None, served: str | None, remote: bool
) -> Factor:
    base = base or adapter.config.get("base_model_name_or_path")
    if not base:
        raise StudyError(f"{folder} names no base: give it with --base (a folder or a hub name)")
    if not any(pair.B_OR.any() for pair in adapter.pairs.values()):
        raise StudyError(f"{folder} changes nothing (B = 0): give a trained adapter")
    server, source = Server(url, served, remote), base_of(base)
    with failing("--url needs PEFT", install("peft")):
        from peft import PeftModel, helpers
    loaded = source.load(torch.device("cpu"), torch.float32, None)
    with failing(f"{folder} is not for {base}", "give its base with --base"):
        model = PeftModel.from_pretrained(loaded, folder).eval()
    prompts, tokenizer = drawn(model), source.tokenizer()
    ids = {tokenizer.decode([n]): n for n in range(len(tokenizer))}
    without, adapted = (
        [server.log_probabilities(prompt, chosen, ids) for prompt in prompts.tolist()]
        for chosen in (server.without, server.adapted)
    )
    other = f"{url} serves another model than {base}"
    if max(map(max, without + adapted)) >= model.get_input_embeddings().num_embeddings:
        raise StudyError(f"{other}: it has more tokens")
    scaled = partial(helpers.rescale_adapter_scale, model)
    found = fit(model, scaled, prompts, without, adapted)
    if not found.offset < OTHER_MODEL:
        raise StudyError(f"{other}: their log-probabilities differ by {found.offset:.3g} nats")
    return found


def drawn(model: Any) -> np.ndarray:
    """The fixed prompts, ``[PROMPTS, LENGTH]``."""
    size = int(model.get_input_embeddings().num_embeddings)
    return np.random.default_rng(0).integers(size // 100, size * 9 // 10, (PROMPTS, LENGTH))


Answers = list[dict[int, float]]
"""Log-probabilities by prompt and token."""
Scaled = Callable[[float], AbstractContextManager[None]]
"""A context in which the adapter is multiplied by a factor."""


def fit(
    model: Any, scaled: Scaled, prompts: np.ndarray, without: Answers, adapted: Answers
) -> Factor:
    """The prompts are the sample of the interval: errors after one prompt are correlated."""

    @cache
    @torch.no_grad()
    def local(factor: float) -> np.ndarray:
        with scaled(factor):
            logits = model(torch.as_tensor(prompts)).logits[:, -1]
        return logits.double().log_softmax(-1).numpy()

    def left(factor: float) -> np.ndarray:
        return (local(factor) - local(0.0))[at, tokens] - change

    offsets = [p - local(0.0)[n, token] for n, of in enumerate(without) for token, p in of.items()]
    both = [(n, token) for n, of in enumerate(adapted) for token in of if token in without[n]]
    if len(both) < PROMPTS:
        why = f"only {len(both)} tokens are probable both with the adapter and without it"
        raise StudyError(f"the factor can't be decided: {why}")
    at, tokens = np.array(both).T
    change = np.array([adapted[n][token] - without[n][token] for n, token in both])
    start = min(range(len(STARTS)), key=lambda n: float(np.square(left(STARTS[n])).sum()))
    bounds = STARTS[max(start - 1, 0)], STARTS[min(start + 1, len(STARTS) - 1)]
    best = minimize_scalar(
        lambda factor: np.square(left(factor)).sum(), bounds=bounds, options={"xatol": 1e-5}
    )
    factor, step = float(best.x), max(0.01 * best.x, 1e-3)
    slope = (left(factor + step) - left(factor - step)) / (2 * step)
    scores = np.bincount(at, slope * left(factor), PROMPTS)
    spread = math.sqrt(PROMPTS / (PROMPTS - 1) * np.square(scores).sum())
    half = student.ppf(0.975, PROMPTS - 1) * spread / np.square(slope).sum()
    sizes = (float(np.sqrt(np.mean(np.square(x)))) for x in (offsets, change, left(factor)))
    return Factor(factor, max(factor - half, 0.0), factor + half, len(both), *sizes)
