"""``study serve-check``: by what servers multiply a PEFT adapter. Some ignore keys of its file.

``--url`` asks a running server. It gives log-probabilities of the token after a few fixed prompts,
with the adapter and without it. PEFT on this machine gives the same ones with any multiple of
gamma. The factor is the multiple whose changes, with minus without the adapter, fit the server's
best in least squares.
"""

import csv
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from socket import SHUT_RDWR
from threading import Timer
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from study.config import ModelConfig
from study.errors import StudyError, one_line
from study.models.messages import failing
from study.models.sources import UnloadedModel, find_model
from study.training.peft_format import PeftAdapter
from study.vocabulary.extras import install
from study.vocabulary.peft_fields import BESIDE
from study.vocabulary.sources import MODELS

SERVERS = list(csv.DictReader(Path(__file__).with_name("servers.csv").read_text().splitlines()))
"""What servers read. ``reads``: keys of ``adapter_config.json`` that change the factor;
``rank_pattern`` if it divides by the tensors' rank. ``unknown``: keys of which nothing is known.
``refuses``: keys with which it loads no adapter. ``most_rank``: the largest rank that it loads.
``whole``: whether ``lora_alpha`` must be written without a point. ``since``: the source."""
REFUSES = "refuses"


def served(adapter: PeftAdapter) -> pd.DataFrame:
    """A row for each server and group of kinds of layers of one rank and gamma. ``factor``: the
    server's; NaN if it is not known or if the adapter is refused."""
    config = adapter.config
    kinds: dict[tuple[int, float], dict[str, None]] = {}
    for layer, pair in adapter.pairs.items():
        kinds.setdefault((pair.A_RD.shape[-2], pair.gamma), {})[layer.rpartition(".")[2]] = None
    rows = []
    used = [key for key, value in config.items() if value and value != "none"]
    for server in SERVERS:
        refused = _refused(server, adapter, used)
        unknown = [key for key in used if key in (*server["unknown"].split(), *BESIDE)]
        for (rank, gamma), names in kinds.items():
            factor, result = _factor(server["reads"].split(), adapter, rank, gamma), "as PEFT"
            if refused:
                factor, result = math.nan, f"{REFUSES} {refused}"
            elif unknown:
                factor, result = math.nan, f"not known with {unknown[0]}"
            elif not math.isclose(factor, gamma, rel_tol=1e-6):
                times = max(gamma / factor, factor / gamma)
                result = f"{times:.3g} times too {'weak' if factor < gamma else 'strong'}"
            row = {"server": server["server"], "layers": ", ".join(names), "gamma": gamma}
            rows.append(row | {"factor": factor, "result": result})
    return pd.DataFrame(rows)


def _refused(server: Mapping[str, str], adapter: PeftAdapter, used: list[str]) -> str | None:
    """What of the adapter the server refuses. ``used``: the keys of its configuration that act."""
    rank = max(adapter.config["r"], *(pair.A_RD.shape[-2] for pair in adapter.pairs.values()))
    alpha = adapter.config["lora_alpha"]
    if keys := [key for key in used if key in server["refuses"].split()]:
        return keys[0]
    if server["most_rank"] and rank > int(server["most_rank"]):
        return f"ranks above {server['most_rank']}"
    return f"lora_alpha={alpha}" if server["whole"] and isinstance(alpha, float) else None


def _factor(reads: list[str], adapter: PeftAdapter, rank: int, gamma: float) -> float:
    root, config = 0.5 if adapter.scaling == "rslora" else 1.0, adapter.config
    alpha = gamma * rank**root if "alpha_pattern" in reads else config["lora_alpha"]
    divisor = rank if "rank_pattern" in reads else config["r"]
    return float(alpha / divisor ** (root if "use_rslora" in reads else 1.0))


def verdict(rows: pd.DataFrame) -> str:
    """Which servers use other factors than PEFT, and which refuse the adapter."""
    wrong = list(rows.loc[(rows["factor"] / rows["gamma"] - 1).abs() > 1e-6, "server"])
    refused: dict[str, dict[str, None]] = {}
    for server, result in rows[["server", "result"]].itertuples(index=False):
        if result.startswith(f"{REFUSES} lora_alpha"):
            wrong.append(server)  # study fold writes a whole number
        elif result.startswith(REFUSES):
            refused.setdefault(result.removeprefix(f"{REFUSES} "), {})[server] = None
    said = "Servers multiply it as PEFT does, where that is known (study serve-check)."
    if wrong:
        named = ", ".join(dict.fromkeys(wrong))
        said = (
            f"Other factors than PEFT's: {named} (study serve-check). study fold removes the cause."
        )
    return " ".join(
        [said, *(f"{what}: refused by {', '.join(by)}." for what, by in refused.items())]
    )


PROMPTS, LENGTH, TOP = 8, 16, 20
"""Prompts, tokens of each, and log-probabilities after each. vLLM gives at most 20."""
SECONDS, BYTES = 120, 1 << 20
"""The most of all requests together, and of one answer."""
LOWEST = -1000.0
"""Servers write a lower number in place of minus infinity."""
STARTS = [0.0, *2.0 ** np.arange(-5, 9)]
"""Factors around which the best one is searched."""
OTHER_MODEL, WIDE, UNEVEN, EXACT = 1.0, 0.2, 0.02, 1e-3
"""A difference of the bases in nats, a width of the interval and a share of the change that is
left: above them the bases differ, the factor is not decided, and the layers differ. A rest below
the last, in nats, is of rounding."""


def base_of(base: str) -> UnloadedModel:
    own_path = base not in MODELS or MODELS[base].reads_path
    return find_model(ModelConfig(name="hf", path=base) if own_path else ModelConfig(name=base))


# The answers of servers.

LogProbability = Annotated[float, Field(le=0.01, allow_inf_nan=False)]
"""Rounding may make it positive."""


class Model(BaseModel):
    """``parent``: the base of an adapter, in vLLM."""

    id: str
    parent: str | None = None


class Models(BaseModel):
    """``/v1/models``"""

    data: Annotated[list[Model], Field(min_length=1)]


class Loaded(BaseModel):
    """An adapter of llama.cpp's ``/lora-adapters``."""

    id: int


class Token(BaseModel):
    id: Annotated[int, Field(ge=0, lt=2**31)]
    logprob: LogProbability


class Position(BaseModel):
    top_logprobs: list[Token]


class LogProbabilities(BaseModel):
    """Of each new token: llama.cpp has ``content``, vLLM ``top_logprobs`` by text."""

    content: list[Position] | None = None
    top_logprobs: list[dict[str, LogProbability]] | None = None


class Choice(BaseModel):
    logprobs: LogProbabilities


class Completion(BaseModel):
    """``/v1/completions``"""

    choices: Annotated[list[Choice], Field(min_length=1)]


Kind = TypeVar("Kind")


class Server:
    """An OpenAI-compatible server. ``without`` and ``adapted``: fields of requests for its base and
    for the adapter, ``served`` there."""

    def __init__(self, url: str, served: str | None, remote: bool) -> None:
        self.url, self.left = url.rstrip("/").removesuffix("/v1"), float(SECONDS)
        try:
            self.parts = urlsplit(self.url)
            is_url = self.parts.scheme in ("http", "https") and self.parts.port != 0
        except ValueError:  # of brackets or of a port
            is_url = False
        if not is_url or not self.parts.hostname:
            raise StudyError(f"--url={url} is no URL: give one such as http://localhost:8000")
        if self.parts.hostname not in ("localhost", "127.0.0.1", "::1") and not remote:
            raise StudyError(f"--url={url} is not on this machine: give --remote to ask it too")
        models = self.ask(Models, "list of models", "/v1/models").data
        parents = {one.id: one.parent for one in models}
        first = models[0].id
        name = served or next((name for name in parents if parents[name]), first)
        base = parents[name] if parents.get(name) in parents else first
        self.without: dict[str, Any] = {"model": base}
        self.adapted: dict[str, Any] = {"model": name}
        if name == base:  # llama.cpp's adapters have numbers, and are on by default
            try:
                loaded = self.ask(list[Loaded], "list of adapters", "/lora-adapters")
            except StudyError:
                raise StudyError(f"{url} has {base} without an adapter: load it there") from None
            self.without["lora"] = [{"id": one.id, "scale": 0.0} for one in loaded]

    def ask(
        self, kind: type[Kind], what: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Kind:
        """The server's answer as ``kind``, which is ``what`` in errors."""
        began = time.monotonic()
        try:
            status, content = self._request(path, body)
            if status != 200:
                moved = ": it redirects, which is not followed" if 300 <= status < 400 else ""
                raise HTTPException(f"HTTP Error {status}{moved}")
            return TypeAdapter(kind).validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            cause = f"{place}: {first['msg']}" if place else first["msg"]
            raise StudyError(f"{self.url}{path} gives no {what} ({cause})") from None
        except (OSError, ValueError, HTTPException) as error:
            is_late = self.left <= time.monotonic() - began
            cause = f"not within {SECONDS} s of requests" if is_late else one_line(error)
            why = f"no OpenAI-compatible server answers at {self.url}{path} ({cause})"
            raise StudyError(f"{why}: start it, or give another --url") from None
        finally:
            self.left -= time.monotonic() - began

    def _request(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        """Status and content of an answer. The connection is shut when no time is left: its own
        ``timeout`` begins again with each byte."""
        is_secure = self.parts.scheme == "https"
        port = self.parts.port or (443 if is_secure else 80)
        kind = HTTPSConnection if is_secure else HTTPConnection
        connection = kind(str(self.parts.hostname), port, timeout=max(self.left, 1e-3))
        until = time.monotonic() + self.left
        try:
            connection.connect()
            shut = Timer(max(until - time.monotonic(), 0.0), connection.sock.shutdown, [SHUT_RDWR])
            shut.start()
            try:
                data = None if body is None else json.dumps(body)
                method = "GET" if data is None else "POST"
                headers = {"Content-Type": "application/json"}
                connection.request(method, self.parts.path + path, data, headers)
                answer = connection.getresponse()
                content = answer.read(BYTES)
            finally:
                shut.cancel()
        finally:
            connection.close()
        if time.monotonic() > until:
            raise TimeoutError
        return answer.status, content

    def log_probabilities(
        self, prompt: list[int], chosen: Mapping[str, Any], ids: Mapping[str, int]
    ) -> dict[int, float]:
        """Of the :data:`TOP` most probable tokens, by id. ``ids``: of tokens by their text."""
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": TOP}
        # vLLM's; and llama.cpp's, whose cache of prompts mixes up adapters.
        own = {"return_tokens_as_token_ids": True, "cache_prompt": False}
        body = {**chosen, **asked, **own}
        answer = self.ask(Completion, "log-probabilities", "/v1/completions", body)
        of_tokens, found = answer.choices[0].logprobs, dict[int, float]()
        if of_tokens.content:
            found = {each.id: each.logprob for each in of_tokens.content[0].top_logprobs}
        elif of_tokens.top_logprobs:
            for text, p in of_tokens.top_logprobs[0].items():
                named = re.fullmatch(r"token_id:(\d{1,9})", text)
                if named or text in ids:
                    found[int(named[1]) if named else ids[text]] = p
        found = {token: p for token, p in found.items() if p > LOWEST}
        if not found:
            raise StudyError(f"{self.url} gives no log-probabilities of tokens that are known here")
        return found


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
        if self.change > 0 and self.left > max(UNEVEN * self.change, 2 * self.offset, EXACT):
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
    loaded: Any = source.load(torch.device("cpu"), torch.float32, None)
    prompts, tokens = drawn(loaded), loaded.get_input_embeddings().num_embeddings
    with failing(f"{folder} is not for {base}", "give its base with --base"):
        model = PeftModel.from_pretrained(loaded, folder).eval()
    tokenizer = source.tokenizer()
    ids = {tokenizer.decode([n]): n for n in range(len(tokenizer))}
    without, adapted = (
        [server.log_probabilities(prompt, chosen, ids) for prompt in prompts.tolist()]
        for chosen in (server.without, server.adapted)
    )
    other = f"{url} serves another model than {base}"
    if max(map(max, without + adapted)) >= tokens:
        raise StudyError(f"{other}: it has more tokens")

    def scaled(factor: float) -> AbstractContextManager[None]:
        """At 0 the base: weights next to A and B, such as saved modules, have no factor."""
        if factor == 0:
            return model.disable_adapter()
        return helpers.rescale_adapter_scale(model, factor)

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
    if not np.square(slope).sum() > 0:
        raise StudyError("the factor can't be decided: the adapter changes no log-probability here")
    scores = np.bincount(at, slope * left(factor), PROMPTS)
    spread = math.sqrt(PROMPTS / (PROMPTS - 1) * np.square(scores).sum())
    half = student.ppf(0.975, PROMPTS - 1) * spread / np.square(slope).sum()
    sizes = (float(np.sqrt(np.mean(np.square(x)))) for x in (offsets, change, left(factor)))
    return Factor(factor, max(factor - half, 0.0), factor + half, len(both), *sizes)
