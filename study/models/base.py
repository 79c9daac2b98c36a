"""The frozen base that adapters are trained on: a causal language model cut in two, before and after its head.

Training wants logits only where there is a target, so the model is run up to its last norm and its head is applied to
the hidden states of those tokens alone: for a vocabulary of 49152 that is most of the activation memory.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from study.config import PRECISIONS, ModelConfig
from study.errors import StudyError, unknown
from study.models import hf, quantised, tiny
from study.models.card import ModelCard, checkpoint_of, describe

_DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True))
_TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
}  # of the largest logit: the two ways differ in rounding only


def nothing(_: Tensor) -> AbstractContextManager[None]:
    """Around a pass with which nothing is done."""
    return nullcontext()


@dataclass
class FrozenBase:
    """A causal language model of transformers, in eval mode, with no parameter that asks for a gradient.

    ``around_pass`` is entered around every :meth:`hidden_states` with its tokens (:mod:`study.models.prefix`).

    ``T`` tokens, ``d`` features of the hidden states, ``V`` tokens in the vocabulary, ``N`` chosen tokens.
    """

    model: nn.Module
    card: ModelCard
    around_pass: Callable[[Tensor], AbstractContextManager[None]] = nothing

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """How many tokens there are logits for."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)  # type: ignore[operator, union-attr]

    def hidden_states(self, input_ids_BT: Tensor) -> Tensor:
        """What the head sees, ``[B, T, d]``: causal, every token real (no mask), positions from 0.

        The tokens may be on the CPU, whatever the base is on.
        """
        with self.around_pass(input_ids_BT):
            ids = input_ids_BT.to(self.device)
            return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The head on some tokens' hidden states, ``[N, V]``, with all that the family does after it.

        Families soft-cap, scale or shift their logits (Gemma 2, Cohere, Granite, ...). Instead of knowing them all, the
        model's own forward is run with a trunk that hands back the hidden states it is given.
        """
        head = copy.copy(
            self.model
        )  # shallow, microseconds: the same submodules in a dict of its own
        head._modules = {**head._modules, head.base_model_prefix: _HandBack()}  # type: ignore[dict-item]
        return head(inputs_embeds=hidden_ND[None]).logits[0]

    def continue_greedily(
        self,
        input_ids_BL: Tensor,
        real_BL: Tensor,
        tokens: int,
        eos_token_id: int | None,
        padding_id: int,
    ) -> Tensor:
        """The likeliest next token, again and again, ``[B, n]``: n is ``tokens``, or less where every row has ended.

        Rows of ``L`` tokens, padded on the left; behind its eos a row goes on with padding. Costs a forward pass over
        the rows and one per token, with keys and values cached.
        """
        greedy = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=eos_token_id,
            pad_token_id=padding_id,
        )
        whole_BL = self.model.generate(  # type: ignore[operator]
            input_ids=input_ids_BL, attention_mask=real_BL.long(), generation_config=greedy
        )
        return whole_BL[:, input_ids_BL.shape[1] :]


class _HandBack(nn.Module):
    """Stands in for a model's trunk: its output is its input."""

    @property
    def decoder(self) -> "_HandBack":
        """OPT's head is fed by the decoder inside its trunk."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_TrunkOutput":
        return _TrunkOutput((inputs_embeds,))


class _TrunkOutput(tuple[Tensor]):
    """A trunk's output as every family reads it: by index, by name, and ``None`` for what it doesn't hold."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def load_base(config: ModelConfig, device: torch.device, precision: str) -> FrozenBase:
    """Load the model that ``config`` names onto ``device`` with its weights in ``precision`` (``float32`` or ``bf16``).

    With ``config.quant_bits`` the weights of its block linears are held in that many bits and multiplied in
    ``precision`` (:mod:`study.models.quantised`). Takes the memory of the weights and, for SmolLM2 in float32, about a
    second. torch's global random state is left as it was. Raises :class:`StudyError` as
    :func:`study.models.describe` does, and where the weights don't fit the model, aren't numbers, or the model can't
    be run as a :class:`FrozenBase`.
    """
    if precision not in _DTYPES:
        raise unknown("precision", precision, PRECISIONS)
    card, dtype = describe(config), _DTYPES[precision]
    checkpoint = checkpoint_of(config)
    if checkpoint is None:
        model = tiny.load(device, dtype, config.quant_bits)
    else:
        model = hf.load_model(checkpoint, device, dtype, config.quant_bits)
    model = model.eval().requires_grad_(False)
    model.config.use_cache = False
    model.generation_config = (
        GenerationConfig()
    )  # a checkpoint's own may penalise repetition, which is not greedy
    if config.quant_bits is not None:
        quantised.settle(model, dtype)
    base = FrozenBase(model, card)
    # bitsandbytes' own products are fp16 at best on CUDA: two ways to the same logits agree no better than in bf16.
    _check(base, device, _TOLERANCE[dtype if config.quant_bits is None else torch.bfloat16])
    return base


@torch.no_grad()
def _check(base: FrozenBase, device: torch.device, relative: float) -> None:
    """Run two short sequences with a common first half, once whole and once in two parts.

    ``relative`` is what numbers may differ by, of the largest logit. Raises :class:`StudyError` unless both ways give
    the same numbers and no token sees a later one.
    """
    family, model = f"model {base.card.name!r} ({type(base.model).__name__})", base.model
    half = max(1, min(4, base.card.max_length // 2))
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids_BT = torch.randint(
        vocabulary, (2, 2 * half), generator=torch.Generator().manual_seed(0)
    ).to(device)
    ids_BT[1, :half] = ids_BT[0, :half]
    try:
        whole_BTV = model(input_ids=ids_BT, use_cache=False).logits
        parts_BTV = base.logits(base.hidden_states(ids_BT).flatten(0, 1)).view_as(whole_BTV)
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError) as error:
        raise StudyError(
            f"{family} fails on a short sequence of tokens: choose another causal LM ({hf.one_line(error)})"
        ) from None
    if whole_BTV.isnan().any():
        raise StudyError(
            f"{family} gives logits that are not numbers: its weight file is damaged; fetch or save it again"
        )
    tolerance = relative * float(whole_BTV.abs().max())
    if not torch.allclose(parts_BTV, whole_BTV, rtol=0.0, atol=tolerance):
        raise StudyError(
            f"{family} computes its logits in a way this toolkit can't follow: choose another causal LM"
        )
    if not torch.allclose(whole_BTV[0, :half], whole_BTV[1, :half], rtol=0.0, atol=tolerance):
        raise StudyError(
            f"{family} lets a token see later ones: choose a causal LM (a BERT needs is_decoder in its config.json)"
        )
