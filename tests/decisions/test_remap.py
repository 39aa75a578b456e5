"""Names that drifted are mapped only where one way takes all of them to modules that they fit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from graft_runtime.adapters.layout import BaseLayout, LinearShape
from graft_runtime.adapters.remap import plain_names, remap
from graft_runtime.adapters.tensors import TensorSpan

SPAN = TensorSpan("F32", (2, 2), 0, 16)
LAYERS = [f"layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "v_proj")]


def under(prefix: str, paths: list[str]) -> list[str]:
    return [f"{prefix}.{path}" for path in paths]


def layout_of(*paths: str, wrapper: str = "model", former: Mapping[str, str] | None = None) -> BaseLayout:
    shapes = {path: LinearShape(8 if "visual" not in path else 4, 8) for path in paths}
    return BaseLayout("acme/base", shapes, {"": "Model"}, wrapper=wrapper, former=former or {})


LLAMA = layout_of(*under("model", LAYERS), "lm_head")
VISION = layout_of(
    *under("model.language_model", LAYERS),
    *under("model.visual", LAYERS),
    "lm_head",
    former={"visual": "model.visual", "model": "model.language_model", "language_model.model": "model.language_model"},
)


def always(names: Mapping[str, str]) -> bool:
    return True


def fits_text(names: Mapping[str, str]) -> bool:
    """As the shapes of a text model would have it."""
    return not any("visual" in path for path in names.values())


@pytest.mark.parametrize(
    ("paths", "layout", "expected"),
    [
        (LAYERS, LLAMA, under("model", LAYERS)),  # trained on AutoModel
        (under("language_model.model", LAYERS), LLAMA, under("model", LAYERS)),  # the text part of a larger model
        (under("model.language_model", LAYERS), LLAMA, under("model", LAYERS)),
        (
            [*under("language_model.model", LAYERS), "language_model.lm_head"],
            LLAMA,
            [*under("model", LAYERS), "lm_head"],
        ),
        ([*under("model.language_model", LAYERS), "lm_head"], LLAMA, [*under("model", LAYERS), "lm_head"]),
        (under("model", LAYERS), layout_of(*LAYERS), LAYERS),  # and the other way round
        (under("model", LAYERS), VISION, under("model.language_model", LAYERS)),  # Transformers 4
        (under("language_model.model", LAYERS), VISION, under("model.language_model", LAYERS)),
        (under("visual", LAYERS), VISION, under("model.visual", LAYERS)),
        ([*under("model", LAYERS), "lm_head"], VISION, [*under("model.language_model", LAYERS), "lm_head"]),
        (["embed_out"], layout_of("lm_head", former={"embed_out": "lm_head"}), ["lm_head"]),
        (["h.0.attn.c_attn"], layout_of("transformer.h.0.attn.c_attn"), ["transformer.h.0.attn.c_attn"]),
        (["encoder.layer.0.q"], layout_of("bert.encoder.layer.0.q", wrapper="bert"), ["bert.encoder.layer.0.q"]),
        (["bert.encoder.layer.0.q"], layout_of("encoder.layer.0.q", wrapper="bert"), ["encoder.layer.0.q"]),
        (
            under("model", ["layers.0.block_sparse_moe.gate", "layers.0.self_attn.q_proj"]),
            layout_of(
                "model.layers.0.mlp.gate",
                "model.layers.0.self_attn.q_proj",
                former={"model.layers.0.block_sparse_moe": "model.layers.0.mlp"},
            ),
            ["model.layers.0.mlp.gate", "model.layers.0.self_attn.q_proj"],
        ),
        (
            ["layers.0.block_sparse_moe.gate"],  # both at once
            layout_of("model.layers.0.mlp.gate", former={"layers.0.block_sparse_moe": "layers.0.mlp"}),
            ["model.layers.0.mlp.gate"],
        ),
    ],
)  # fmt: skip
def test_modules_that_moved_are_found(paths: list[str], layout: BaseLayout, expected: list[str]) -> None:
    found = remap(paths, layout, fits_text if layout is VISION and "visual" not in paths[0] else always)
    assert found is not None
    assert [found.names[path] for path in paths] == expected
    assert found.told


@pytest.mark.parametrize(
    ("paths", "layout"),
    [
        (under("model", LAYERS), LLAMA),  # where they are
        (under("model", [*LAYERS, "layers.2.self_attn.q_proj"]), LLAMA),  # a deeper base
        (["layers.2.self_attn.q_proj"], LLAMA),
        (under("decoder", LAYERS), LLAMA),  # another part of a model, not a wrapper
        (LAYERS, layout_of(*under("encoder", LAYERS))),
        (LAYERS, layout_of(*under("vision_tower", LAYERS))),
        (["q_proj"], LLAMA),  # several of that name
        (["model.layers.0.q_proj"], LLAMA),
        ([*LAYERS, "score"], LLAMA),  # one of them is nowhere
        ([*LAYERS, "model.layers.0.self_attn.q_proj"], LLAMA),  # two would be one
        (LAYERS, layout_of(*under("model", LAYERS), *under("language_model", LAYERS))),  # two ways
        ([""], layout_of("lm_head")),
    ],
)
def test_what_is_not_sure_is_left_alone(paths: list[str], layout: BaseLayout) -> None:
    assert remap(paths, layout, always) is None


def test_shapes_decide_between_two_ways() -> None:
    layout = layout_of(*under("model", LAYERS), *under("language_model", LAYERS))
    found = remap(LAYERS, layout, lambda names: names[LAYERS[0]].startswith("language_model"))
    assert found is not None
    assert list(found.names.values()) == under("language_model", LAYERS)
    assert remap(LAYERS, layout, lambda names: False) is None


Q = "model.layers.0.self_attn.q_proj"
PLAIN = [f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"], PLAIN),
        ([name.replace(".weight", ".default.weight") for name in PLAIN], PLAIN),
        ([f"{Q}.lora_A.sql.weight", f"{Q}.lora_B.sql.weight"], PLAIN),
        (["_orig_mod." + name for name in PLAIN], PLAIN),
        (["module." + name for name in PLAIN], PLAIN),
        (["module._orig_mod." + name.replace(".weight", ".default.weight") for name in PLAIN], PLAIN),
        ([name.replace("layers.0.", "layers.0._fsdp_wrapped_module.") for name in PLAIN], PLAIN),
        (
            [f"base_model.model.{Q}.lora_magnitude_vector.x.weight", "base_model.model.emb.lora_embedding_A.x"],
            [f"base_model.model.{Q}.lora_magnitude_vector", "base_model.model.emb.lora_embedding_A"],
        ),
        (
            ["base_model.model.score.modules_to_save.default.weight", PLAIN[0].replace(".weight", ".default.weight")],
            ["base_model.model.score.weight", PLAIN[0]],
        ),
        (
            ["base_model.model.score.modules_to_save.default.out_proj.bias"],
            ["base_model.model.score.out_proj.bias"],
        ),
        (
            ["base_model.model.emb.token_adapter.trainable_tokens_delta.default"],
            ["base_model.model.emb.token_adapter.trainable_tokens_delta"],
        ),
    ],
)  # fmt: skip
def test_names_of_a_raw_state_dict(names: list[str], expected: list[str]) -> None:
    spans = {name: TensorSpan("F32", (2, 2), index, index) for index, name in enumerate(names)}
    plain, told = plain_names(spans)
    assert list(plain) == expected
    assert [span.begin for span in plain.values()] == list(range(len(names)))
    assert told


@pytest.mark.parametrize(
    "names",
    [
        PLAIN,
        ["prompt_embeddings"],
        ["base_model.vera_A", "base_model.model.q.vera_lambda_b"],
        [PLAIN[0], f"{Q}.lora_B.weight"],  # only some lack the prefix
        [f"{Q}.lora_A.one.weight", "base_model.model.q.lora_A.two.weight"],  # two adapters
        [PLAIN[0], PLAIN[0].replace(".weight", ".default.weight")],  # both would be one
        ["module.q.weight", "base_model.model.q.lora_A.weight"],
        ["lora_unet_down_blocks_0.lora_down.weight"],
    ],
)
def test_names_that_stay(names: list[str]) -> None:
    assert plain_names(dict.fromkeys(names, SPAN)) == (dict.fromkeys(names, SPAN), None)
