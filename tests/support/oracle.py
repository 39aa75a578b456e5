"""What an answer must be, by Transformers and PEFT: one request at a time, greedily, in float32."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.support.quantised import mend

NEAR_TIE = 1e-4
"""An answer may differ from the oracle's only where its best two logits are closer than this."""


@dataclass(frozen=True)
class Answer:
    """What a model generates."""

    tokens: list[int]
    logits: torch.Tensor
    """float32 [tokens, vocabulary]: what each token was chosen from."""

    @property
    def margins(self) -> list[float]:
        """How far the best logit lies above the second at each token."""
        best = self.logits.topk(2, dim=-1).values
        return (best[:, 0] - best[:, 1]).tolist()


class Oracle:
    """A base and adapters on it.

    Args:
        base: directory of the checkpoint.
        task: the task of PEFT's that the base is loaded for, one that generates.
        by_token: whether prompts go through one token at a time, where tokens beside each other are rounded together.
        options: further arguments of `from_pretrained`.
    """

    def __init__(self, base: Path, task: str = "CAUSAL_LM", *, by_token: bool = False, **options: Any) -> None:
        auto: Any = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}[task]
        self._model: Any = auto.from_pretrained(base, dtype=torch.float32, **options).eval()
        mend(self._model)
        self._by_token = by_token
        self._follows = task == "CAUSAL_LM"
        """Whether an answer follows its prompt in one sequence; else one start token comes before it."""
        self._names: set[str] = set()
        self._known: dict[tuple[tuple[int, ...], str | None, float, int], Answer] = {}

    def load(self, adapter: Path, name: str | None = None) -> None:
        """Add an adapter, by default under the name of its directory."""
        name = name or adapter.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._names:
                self._model.load_adapter(adapter, adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, adapter, adapter_name=name).eval()
        self._names.add(name)

    def replace(self, adapter: Path, name: str) -> None:
        """Give an adapter that is loaded the weights of another of its shape: cheaper than to load that one."""
        found = set_peft_model_state_dict(self._model, load_file(adapter / "adapter_model.safetensors"), name)
        assert not found.unexpected_keys
        self._known.clear()

    def answer(self, prompt: Sequence[int], adapter: str | None, *, scale: float = 1.0, tokens: int = 24) -> Answer:
        """Generate this many tokens; the end token is one like others."""
        key = (tuple(prompt), adapter, scale, tokens)
        if key not in self._known:
            self._known[key] = self._generate(prompt, adapter, scale, tokens)
        return self._known[key]

    def check(self, answer: Sequence[int], prompt: Sequence[int], adapter: str | None, **how: Any) -> None:
        """Check that an answer, or the start of one, is right; what follows a near tie may differ."""
        expected = self.answer(prompt, adapter, **how)
        assert len(answer) <= len(expected.tokens)
        for mine, theirs, margin in zip(answer, expected.tokens, expected.margins, strict=False):
            if mine != theirs:
                assert margin < NEAR_TIE, (adapter, how, answer, expected.tokens)
                return

    @torch.no_grad()
    def _generate(self, prompt: Sequence[int], adapter: str | None, scale: float, tokens: int) -> Answer:
        how: Any = contextlib.nullcontext()
        if adapter is not None:
            self._model.set_adapter(adapter)
            if scale != 1:
                how = rescale_adapter_scale(self._model, scale)
        elif self._names:
            how = self._model.disable_adapter()
        with how:
            made = self._model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                past_key_values=self._past(prompt[:-1]) if self._by_token else None,
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        start = len(prompt) if self._follows else 1
        return Answer(made.sequences[0, start:].tolist(), torch.cat(made.logits))

    def _past(self, tokens: Sequence[int]) -> Any:
        past = None
        for token in tokens:
            past = self._model(input_ids=torch.tensor([[token]]), past_key_values=past, use_cache=True).past_key_values
        return past


@torch.inference_mode()
def greedy(model: Any, prompt: Sequence[int], count: int = 6) -> list[int]:
    """Return the next tokens by whole forward passes: the model's own cache is not what is compared."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]
