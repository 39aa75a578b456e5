"""/score and /rerank of a cross-encoder: equal to sentence-transformers and PEFT, alone and mixed; what is refused."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tests.support.bases import load_for, save_tokenizer

QUERY = "what is it?"
TEXTS = ["great", "I will never come back here again.", "größe", "x"]
PAIRS = [(QUERY, text) for text in TEXTS]


def cross_encoder(base: Path, directory: Path) -> Path:
    """Save a model with one label, and a tokenizer that tells the two texts of a pair apart."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_for("SEQ_CLS", base, labels=1)
    torch.nn.init.normal_(model.classifier.weight, 0.0, 0.3)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    (directory / "chat_template.jinja").unlink()  # texts would go through it
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    first, last = (tokenizer.id_to_token(token) for token in (256, 257))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, 256), (last, 257)],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | types))
    return directory


def relevances(base: Path, adapter: Path | None) -> list[float]:
    """What sentence-transformers and PEFT make of each of PAIRS."""
    from peft import PeftModel
    from sentence_transformers import CrossEncoder

    model: Any = CrossEncoder(str(base), device="cpu")
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model[0].model = PeftModel.from_pretrained(model[0].model, adapter).eval()
    return [float(model.predict([pair])[0]) for pair in PAIRS]


@pytest.fixture(scope="module")
def pod(make_pod: Any, make_base: Any, make_adapter: Any, tmp_path_factory: Any) -> Any:
    base = cross_encoder(make_base("bert", "SEQ_CLS"), tmp_path_factory.mktemp("cross") / "base")
    modules = {"task": "SEQ_CLS", "target_modules": ["query", "value"], "base": base}
    adapters = {name: make_adapter(name, **modules) for name in ("one", "two")}
    pod = make_pod(base=base)
    pod.mount_set(pod.set_of(1, *(pod.entry(name, path) for name, path in adapters.items())))
    pod.start()
    pod.wait_ready()
    pod.scores = {"tiny": relevances(base, None)} | {name: relevances(base, path) for name, path in adapters.items()}
    return pod


def near(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=1e-5)


def score(pod: Any, model: str) -> Any:
    return pod.post("/score", {"model": model, "text_1": QUERY, "text_2": TEXTS})


def read(reply: Any) -> list[float]:
    assert reply.status == 200, reply.content
    return [item["score"] for item in reply.json["data"]]


def test_scores_equal_sentence_transformers_and_peft_alone_and_mixed(pod: Any) -> None:
    assert len({str(expected) for expected in pod.scores.values()}) == 3, "adapters must show"
    for model, expected in pod.scores.items():
        reply = score(pod, model)
        assert read(reply) == near(expected)
        digest = None if model == "tiny" else pod.report(model).digest
        assert (reply.json["model"], reply.headers.get("x-graft-adapter-digest")) == (model, digest)
    mixed = [*pod.scores] * 8
    with ThreadPoolExecutor(len(mixed)) as threads:
        for model, reply in zip(mixed, threads.map(lambda model: score(pod, model), mixed), strict=True):
            assert read(reply) == near(pod.scores[model])


def test_texts_are_held_against_one_or_in_pairs(pod: Any) -> None:
    pairs = pod.post("/v1/score", {"model": "one", "text_1": [QUERY] * len(TEXTS), "text_2": TEXTS})
    single = pod.post("/score", {"model": "one", "text_1": QUERY, "text_2": TEXTS[1]})
    turned = pod.post("/score", {"model": "one", "text_1": TEXTS[1], "text_2": QUERY})
    assert read(pairs) == near(pod.scores["one"])
    assert read(single) == near(pod.scores["one"][1:2])
    assert read(turned) != near(pod.scores["one"][1:2])
    assert single.json["usage"]["prompt_tokens"] == len(f"{QUERY}{TEXTS[1]}".encode()) + 3


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_back_the_best_first(pod: Any, path: str) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
    reply = pod.post(path, {"model": "two", "query": QUERY, "documents": documents})
    expected = sorted(enumerate(pod.scores["two"]), key=lambda item: -item[1])
    assert [item["index"] for item in reply.json["results"]] == [index for index, _ in expected]
    assert [item["relevance_score"] for item in reply.json["results"]] == near([each for _, each in expected])
    assert [item["document"]["text"] for item in reply.json["results"]] == [TEXTS[index] for index, _ in expected]
    few = pod.post(path, {"model": "two", "query": QUERY, "documents": TEXTS, "top_n": 2, "return_documents": False})
    assert [[*item] for item in few.json["results"]] == [["index", "relevance_score"]] * 2


def test_answers_are_of_the_pod_s_own_schema(pod: Any) -> None:
    components = pod.ask("GET", "/openapi.json").json["components"]
    body = {"model": "one", "query": QUERY, "documents": TEXTS}
    for name, reply in (
        ("ScoreList", score(pod, "one")),
        ("Ranking", pod.post("/rerank", body)),
        ("Ranking", pod.post("/rerank", body | {"return_documents": False})),
    ):
        jsonschema.validate(reply.json, {"$ref": f"#/components/schemas/{name}", "components": components})
    metrics = pod.get("/metrics").content.decode()
    assert 'graft_requests_total{adapter="one",route="rerank",status="200"}' in metrics


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/score", {"text_1": "a"}, 400, "text_2"),
        ("/score", {"text_1": "a", "text_2": []}, 400, "text_2"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 400, "text_1"),
        ("/score", {"text_1": "a", "text_2": [[1]]}, 400, "text_2[0]"),
        ("/score", {"text_1": "a", "text_2": "x" * 5000}, 400, "text_2"),
        ("/score", {"text_1": "a", "text_2": "b", "model": "none"}, 404, "model"),
        ("/rerank", {"query": "a"}, 400, "documents"),
        ("/rerank", {"query": "a", "documents": []}, 400, "documents"),
        ("/rerank", {"query": "a", "documents": ["x"] * 2049}, 400, "documents"),
        ("/rerank", {"query": "a", "documents": [{"text": "b", "image": "c"}]}, 400, "documents[0].image"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, 400, "top_n"),
        ("/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 3}, 400, "max_tokens_per_doc"),
    ],
)
def test_what_can_not_be_compared_is_told_so(pod: Any, path: str, body: Any, status: int, param: str) -> None:
    reply = pod.post(path, {"model": "one"} | body)
    assert (reply.status, reply.json["error"]["param"]) == (status, param), reply.content


def test_a_relevance_is_made_by_the_activation_of_the_checkpoint(tmp_path: Path) -> None:
    from graft_runtime.base.labels import read_labels

    expected: list[tuple[Any, Any, float]] = [({"activation_fn": "torch.nn.modules.linear.Identity"}, {}, 2.0)]
    nested = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    old = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    expected += [({}, nested, 2.0), ({}, old, 2.0), ({}, {}, 0.880797)]
    for own, config, relevance in expected:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(own))
        assert read_labels(tmp_path, "base").relevance([2.0], "tiny") == pytest.approx(relevance, abs=1e-6)
