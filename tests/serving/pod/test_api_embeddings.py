"""/v1/embeddings of a real pod: equal to sentence-transformers and PEFT, alone and mixed; and what is refused."""

from __future__ import annotations

import base64
import shutil
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from openai import BadRequestError, OpenAI
from openai.types import CreateEmbeddingResponse

from tests.support.openai_types import departures

TEXTS = ["great", "I will never come back here again.", "größe"]
MOST_TOKENS = 64


def embedder(base: Path, directory: Path) -> Path:
    """Save a base model with modules after it, as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    torch.manual_seed(3)
    plain = directory.with_name("plain")
    shutil.copytree(base, plain, ignore=shutil.ignore_patterns("chat_template.jinja"))
    modules = [Transformer(str(plain), max_seq_length=MOST_TOKENS), Pooling(32, "mean"), Dense(32, 12), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory), create_model_card=False)
    return directory


def vectors(base: Path, adapter: Path | None) -> list[list[float]]:
    """What sentence-transformers and PEFT make of each of TEXTS."""
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(base), device="cpu")
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model[0].model = PeftModel.from_pretrained(model[0].model, adapter).eval()
    made: list[list[float]] = [model.encode([text])[0].tolist() for text in TEXTS]
    return made


@pytest.fixture(scope="module")
def pod(make_pod: Any, make_base: Any, make_adapter: Any, tmp_path_factory: Any) -> Any:
    base = embedder(make_base("bert", "FEATURE_EXTRACTION"), tmp_path_factory.mktemp("embedder") / "base")
    modules = {"task": "FEATURE_EXTRACTION", "target_modules": ["query", "value"], "base": base}
    adapters = {name: make_adapter(name, **modules) for name in ("one", "two")}
    pod = make_pod(base=base)
    pod.mount_set(pod.set_of(1, *(pod.entry(name, path) for name, path in adapters.items())))
    pod.start()
    pod.wait_ready()
    pod.vectors = {"tiny": vectors(base, None)} | {name: vectors(base, path) for name, path in adapters.items()}
    return pod


def embed(pod: Any, model: str = "one", texts: Any = TEXTS, **more: Any) -> Any:
    return pod.post("/v1/embeddings", {"model": model, "input": texts} | more)


def read(reply: Any) -> list[list[float]]:
    assert reply.status == 200, reply.content
    assert [item["index"] for item in reply.json["data"]] == [*range(len(reply.json["data"]))]
    return [item["embedding"] for item in reply.json["data"]]


def near(expected: list[list[float]]) -> Any:
    return [pytest.approx(vector, abs=1e-5) for vector in expected]


def test_vectors_equal_sentence_transformers_and_peft_alone_and_mixed(pod: Any) -> None:
    assert len({str(expected) for expected in pod.vectors.values()}) == 3, "adapters must show"
    for model, expected in pod.vectors.items():
        reply = embed(pod, model)
        assert read(reply) == near(expected)
        digest = None if model == "tiny" else pod.report(model).digest
        assert (reply.json["model"], reply.headers.get("x-graft-adapter-digest")) == (model, digest)
    mixed = [*pod.vectors] * 8
    with ThreadPoolExecutor(len(mixed)) as threads:
        for model, reply in zip(mixed, threads.map(lambda model: embed(pod, model), mixed), strict=True):
            assert read(reply) == near(pod.vectors[model])


def test_openai_s_client_has_them_in_its_own_encoding(pod: Any) -> None:
    client = OpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="two", input=TEXTS)
    assert [item.embedding for item in answer.data] == near(pod.vectors["two"])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    cut = client.embeddings.create(model="two", input=TEXTS[0], dimensions=4, encoding_format="float").data[0].embedding
    scaled = torch.nn.functional.normalize(torch.tensor(pod.vectors["two"][0][:4]), dim=0).tolist()
    assert cut == pytest.approx(scaled, abs=1e-5)
    with pytest.raises(BadRequestError) as caught:
        client.embeddings.create(model="two", input="x " * MOST_TOKENS)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


def test_base64_holds_the_same_numbers(pod: Any) -> None:
    plain, packed = read(embed(pod)), read(embed(pod, encoding_format="base64"))
    for floats, text in zip(plain, packed, strict=True):
        assert list(struct.unpack(f"<{len(floats)}f", base64.b64decode(str(text)))) == pytest.approx(floats, abs=1e-6)


def test_texts_may_come_as_tokens_and_are_counted(pod: Any) -> None:
    tokens = [pod.post("/tokenize", {"model": "one", "prompt": text}).json["tokens"] for text in TEXTS]
    whole, single = embed(pod, texts=tokens), embed(pod, texts=tokens[0])
    assert read(whole) == near(read(embed(pod)))
    assert read(single) == near(read(whole)[:1])
    assert whole.json["usage"] == {"prompt_tokens": sum(map(len, tokens)), "total_tokens": sum(map(len, tokens))}
    metrics = pod.get("/metrics").content.decode()
    assert 'graft_requests_total{adapter="one",route="embeddings",status="200"}' in metrics


def test_as_many_texts_as_clients_send_at_once_are_answered(pod: Any) -> None:
    made = read(embed(pod, texts=TEXTS * 341, dimensions=2))
    assert len(made) == 1023
    assert made[-3:] == near(made[:3])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_answers_are_of_openai_s_schema_and_the_pod_s_own(pod: Any, encoding: str) -> None:
    reply = embed(pod, encoding_format=encoding)
    schemas = pod.ask("GET", "/openapi.json").json["components"]
    jsonschema.validate(reply.json, {"$ref": "#/components/schemas/EmbeddingList", "components": schemas})
    if encoding == "float":
        assert departures(CreateEmbeddingResponse, reply.content) == []


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ["x", ""]}, 400, "input"),
        ({"input": [[1], ["x"]]}, 400, "input[1][0]"),
        ({"input": [9999]}, 400, "input"),
        ({"input": [1] * (MOST_TOKENS + 1)}, 400, "input"),
        ({"input": ["x"] * 2049}, 400, "input"),
        ({"input": "x", "model": "none"}, 404, "model"),
        ({"input": "x", "dimensions": 13}, 400, "dimensions"),
        ({"input": "x", "dimensions": 0}, 400, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "x", "temperature": 1}, 400, "temperature"),
        ({}, 400, "input"),
    ],
)
def test_what_can_not_be_embedded_is_told_so(pod: Any, body: Any, status: int, param: str) -> None:
    reply = pod.post("/v1/embeddings", {"model": "one"} | body)
    assert (reply.status, reply.json["error"]["param"]) == (status, param), reply.content


def test_a_base_that_embeds_makes_no_text_and_classifies_none(pod: Any) -> None:
    assert pod.complete("one").json["error"]["code"] == "NotGenerative"
    refused = pod.post("/classify", {"model": "one", "input": "x"})
    assert (refused.status, refused.json["error"]["param"]) == (400, "model")


def test_scores_are_the_cosines_of_vectors(pod: Any) -> None:
    vectors = torch.tensor(pod.vectors["one"])
    expected = torch.nn.functional.cosine_similarity(vectors[:1], vectors).tolist()
    reply = pod.post("/score", {"model": "one", "text_1": TEXTS[0], "text_2": TEXTS})
    assert [item["score"] for item in reply.json["data"]] == pytest.approx(expected, abs=1e-5)
    best = pod.post("/rerank", {"model": "one", "query": TEXTS[0], "documents": TEXTS, "top_n": 1}).json["results"]
    assert [(item["index"], item["document"]) for item in best] == [(0, {"text": TEXTS[0]})]
