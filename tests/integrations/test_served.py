"""``study serve-check --url``: the factor of llama.cpp, and a line for what can't be decided."""

import copy
import json
import math
import re
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from study.errors import StudyError
from study.integrations import serving
from study.integrations.serving import served
from study.models import tiny
from study.training.peft_format import read_adapter
from tests.models.small import mixtral

peft = pytest.importorskip("peft")
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def adapted(base, folder, **options):
    """An adapter of PEFT whose effect is as large as the base's."""
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    config = peft.LoraConfig(**options)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    torch.manual_seed(config.r)
    for path, weight in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(weight, std=0.02 if config.use_rslora else 0.02 * config.r**0.5)
    model.save_pretrained(folder)
    return folder


def asked(works, base, folder, server):
    """The factor that the command finds, as a share of gamma, and its sentence."""
    ran = works("serve-check", folder, "--url", server.listening_address, "--base", base)
    said = " ".join(ran.out.split())
    found = re.search(r"Served at [a-z :]*([\d.e-]+) of gamma", said)
    return float(found[1]) if found else math.nan, said


TOO_WEAK = "alpha / r instead of alpha / sqrt r"
MANY = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 64, "down_proj": 4}}
KINDS = {
    "LoRA": ({"r": 64}, 1.0, "(as PEFT)"),
    **{f"rsLoRA {r}": ({"r": r, "use_rslora": True}, r**-0.5, f"({TOO_WEAK})") for r in (4, 64)},
    "alphas": (MANY, math.nan, "no single factor"),
    "experts": (
        {"r": 16, "use_rslora": True, "target_modules": [], "target_parameters": EXPERTS},
        0.25,
        f"({TOO_WEAK})",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_of_llama_cpp(kind, tmp_path, works):
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package)
    from tests.integrations import llama_cpp

    options, share, words = KINDS[kind]
    model = tiny.build()
    if kind == "experts":
        config = mixtral()
        config.initializer_range = 0.2
        model = AutoModelForCausalLM.from_config(config)
    model.eval().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    base = llama_cpp.write_base(tmp_path / "base.gguf", model)
    own = adapted(model, tmp_path / "own", **{"lora_alpha": 16, **options})
    works("fold", str(own), str(tmp_path / "folded"))
    rows = served(read_adapter(own)).set_index("server").loc[["llama.cpp"]]
    if kind != "experts":  # of which the table says nothing
        assert (rows["factor"] / rows["gamma"]).nunique() == (3 if kind == "alphas" else 1)
    for folder, expected, said in ((own, share, words), (tmp_path / "folded", 1, "(as PEFT)")):
        server = llama_cpp.serve(base, llama_cpp.write_adapter(folder, model))
        factor, found = asked(works, str(tmp_path / "model"), folder, server)
        assert said in found
        assert math.isnan(expected) or factor == pytest.approx(expected, rel=0.02), found


@pytest.fixture
def server():
    """A small OpenAI-compatible server. Its dict ``answers`` has the JSON by path; a function gets
    the request. Lists of models and of log-probabilities are as vLLM writes them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            answer = found.answers.get(self.path)
            if callable(answer):
                answer = answer(json.loads(self.rfile.read(size)))
            self.send_response(200 if answer else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_POST

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    models = {"data": [{"id": "base"}, {"id": "mine", "parent": "base"}]}
    address = f"http://127.0.0.1:{http.server_port}"
    found = SimpleNamespace(listening_address=address, answers={"/v1/models": models})
    Thread(target=http.serve_forever, daemon=True).start()
    yield found
    http.shutdown()
    http.server_close()


def answering(base, folder, factor, noise=0.0):
    """The answers of a server that multiplies by ``factor`` of gamma, and whose log-probabilities
    have errors."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    generator = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def answer(request):
        used = factor if request["model"] == "mine" else 0.0
        with peft.helpers.rescale_adapter_scale(model, used):
            logits = model(torch.tensor([request["prompt"]])).logits[0, -1]
        p = logits.log_softmax(-1)
        p += noise * torch.randn(p.shape, generator=generator)
        top = {f"token_id:{n}": float(p[n]) for n in p.topk(request["logprobs"]).indices}
        return {"choices": [{"logprobs": {"top_logprobs": [top]}}]}

    return answer


@pytest.mark.parametrize(
    ("factor", "noise", "words"),
    [
        (0.25, 0.0, "Served at 0.25 of gamma (alpha / r instead of alpha / sqrt r)"),
        (4.0, 0.0, "Served at 4 of gamma (no known reading of the adapter)"),
        (1.0, 0.02, "of gamma (as PEFT)"),
        (0.0, 0.0, "(the adapter is not applied)"),
        (0.25, 0.3, "The factor can't be decided: the interval is"),
    ],
)
def test_the_factor_of_other_servers(factor, noise, words, tmp_path, works, server):
    folder = adapted(tiny.build(), tmp_path / "own", r=16, lora_alpha=8, use_rslora=True)
    server.answers["/v1/completions"] = answering(tiny.build(), folder, factor, noise)
    assert words in asked(works, "tiny", folder, server)[1]


def test_what_cannot_be_asked_gets_one_line(tmp_path, refused, server):
    folder = adapted(tiny.build(), tmp_path / "own", r=16, use_rslora=True)
    other = tiny.build()
    torch.nn.init.normal_(other.lm_head.weight)

    def line(*words, **answers):
        server.answers |= {f"/v1/{path}": answer for path, answer in answers.items()}
        return str(refused("serve-check", folder, "--url", server.listening_address, *words))

    assert "names no base: give it with --base" in line()
    tiny_base = ("--base", "tiny")
    assert "HTTP Error 404" in line(*tiny_base)
    assert "no log-probabilities" in line(*tiny_base, completions={"choices": [{"text": "x"}]})
    assert "no log-probabilities" in line(*tiny_base, completions={"choices": [{"logprobs": None}]})
    answers = answering(other, folder, 1.0)
    assert "serves another model than tiny" in line(*tiny_base, completions=answers)
    assert "has base without an adapter" in line(*tiny_base, models={"data": [{"id": "base"}]})
    server.listening_address = "http://127.0.0.1:9"
    assert "no OpenAI-compatible server answers at http://127.0.0.1:9" in line(*tiny_base)
    server.listening_address = "http://192.0.2.1"
    assert "is not on this machine: give --remote" in line(*tiny_base)


HOSTILE = {
    "no positions": {"choices": [{"logprobs": {"top_logprobs": []}}]},
    "no tokens": {"choices": [{"logprobs": {"top_logprobs": [{}]}}]},
    "no choices": {"choices": []},
    "a list": [1, 2],
    "a text": {"choices": [{"logprobs": {"top_logprobs": [{"a": "much"}]}}]},
    "an embedding": {"object": "list", "data": [{"embedding": [0.1]}]},
    "above 0": {"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": 3.0}]}}]},
    "a negative id": {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"id": -1}]}]}}]},
    "a huge id": {"choices": [{"logprobs": {"top_logprobs": [{"token_id:999999": -1.0}]}}]},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_odd_answer_gets_one_line(what, tmp_path, refused, server):
    folder = adapted(tiny.build(), tmp_path / "own", r=4)
    server.answers["/v1/completions"] = HOSTILE[what]
    words = ("serve-check", folder, "--url", server.listening_address, "--base", "tiny")
    assert server.listening_address in str(refused(*words))


def test_a_server_that_sends_a_byte_now_and_then_gets_no_more_time(monkeypatch):
    """The limit is of all requests together, and not of the time between two bytes."""
    monkeypatch.setattr(serving, "SECONDS", 1)

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Thread(target=http.serve_forever, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(StudyError, match="not within 1 s of requests"):
        serving.Server(f"http://127.0.0.1:{http.server_port}", None, remote=False)
    assert time.monotonic() - began < 5
    http.shutdown()
    http.server_close()


def test_a_redirect_is_not_followed():
    """It may lead to another machine, which --remote has not allowed."""
    seen = []

    class Moved(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Moved)
    Thread(target=http.serve_forever, daemon=True).start()
    with pytest.raises(StudyError, match="it redirects, which is not followed"):
        serving.Server(f"http://127.0.0.1:{http.server_port}", None, remote=False)
    assert seen == ["/v1/models"]
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize(
    ("options", "server", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "vLLM", "refuses modules_to_save"),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp", "refuses modules_to_save"),
        ({"lora_bias": True}, "llama.cpp", "refuses lora_bias"),
        ({"r": 513}, "vLLM", "refuses ranks above 512"),
        ({}, "vLLM", "as PEFT"),
    ],
)
def test_what_a_server_refuses_has_no_factor(options, server, words, tmp_path):
    own = adapted(tiny.build(), tmp_path / "own", **{"r": 4, **options})
    row = served(read_adapter(own, with_others=True)).set_index("server").loc[[server]].iloc[0]
    assert row["result"] == words
    assert math.isnan(row["factor"]) == ("refuses" in words)
