"""A base that says one fixed text: characters of byte tokens, special tokens as stop strings, templates over parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ("<s>", "</s>", "<|im_end|>", "<|call|>")
SAID = ("😀你한é", "<|call|>", "ab", "<|im_end|>", "cd")
PARTS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endfor %}"
)


def _tokenizer() -> Any:
    """As Llama 2's: SentencePiece's BPE with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    strip = decoders.Strip(content=" ", left=1)
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    fast.add_special_tokens(list(SPECIAL))
    return fast


def _save_model(directory: Path, chain: Sequence[int], end: int, size: int) -> None:
    """Save a Llama in which nothing but the last token counts: each of `chain` leads to the next, the last to `end`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size, hidden_size=512, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=size - 4, eos_token_id=end,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        torch.manual_seed(0)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        embedding = torch.randn(size, 512)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for now, following in zip(chain, [*chain[1:], end], strict=True):
            model.lm_head.weight[following] += embedding[now]
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    directory, fast = tmp_path_factory.mktemp("base"), _tokenizer()
    said = [token for text in SAID for token in fast.encode(text).ids if fast.id_to_token(token) != "▁"]
    end = fast.token_to_id("</s>")
    _save_model(directory, [fast.token_to_id("q"), *said], end, fast.get_vocab_size())
    PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>").save_pretrained(directory)
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": PARTS_TEMPLATE}))
    pod = make_pod(directory)
    pod.mount_set(pod.set_of(1))
    pod.start()
    pod.wait_ready()
    return pod


def test_neighbouring_characters_of_byte_tokens_are_whole(pod: Any) -> None:
    assert pod.text("tiny", prompt="q", max_tokens=40) == "😀你한éabcd"


def test_a_stream_of_byte_tokens_is_the_same_text(pod: Any) -> None:
    with pod.stream("tiny", prompt="q", max_tokens=40) as response:
        lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: {")]
    assert "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"]) == "😀你한éabcd"


@pytest.mark.parametrize(("stop", "text"), [("<|im_end|>", "😀你한éab"), ("éa", "😀你한"), ("<|call|>", "😀你한é")])
def test_a_stop_string_may_be_a_special_token_or_lie_across_one(pod: Any, stop: str, text: str) -> None:
    choice = pod.complete("tiny", "q", max_tokens=40, temperature=0, stop=[stop]).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize("content", ["hello", [{"type": "text", "text": "hello"}]], ids=["text", "parts"])
def test_a_template_over_parts_shows_the_text_of_a_message(pod: Any, content: Any) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    usage = pod.post("/v1/chat/completions", body).json["usage"]
    assert usage["prompt_tokens"] == len(_tokenizer().encode("user:hello").ids)
