"""Every mixture of experts of the installed transformers: found there, built tiny, and what `load` makes of it.

`python tests/realmodels/every_family.py` writes docs/families.md.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [each for each in (str(ROOT), str(ROOT / "tests" / "realmodels")) if each not in sys.path]

import transformers  # noqa: E402
from small_models import network_of, save  # noqa: E402
from transformers import (  # noqa: E402
    CONFIG_MAPPING,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402
from transformers.utils import logging  # noqa: E402

from realmodels.load import load  # noqa: E402
from realmodels.model import Model  # noqa: E402
from theory.errors import InputError  # noqa: E402

VOCABULARY, CONTEXT = 300, 64
PAGE = ROOT / "docs" / "families.md"
# Why a family may be refused. Another reason fails the test, and so does one that no family has.
REASONS = ("no fused experts",)
# Drafts for speculative decoding: they read the cache of another model, and have no default config.
PARTS = ("gemma4_assistant",)
# What no rule of SMALL says: types whose defaults have layers of one kind, and sizes that depend on each other.
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "cohere2_moe": {"num_shared_experts": 1},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16}},
    "dots3_note": {"vision_config": {"adapter_out_dim": 32}, "audio_config": {"adapter_out_dim": 32}},
    "flint": {"mlp_only_layers": [0]},
    "granitemoe_swa": {"shared_intermediate_size": 24},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "granitemoeshared": {"shared_intermediate_size": 24},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mimo_v2_flash": {"head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 4},
}
# Values by what a field's name matches, the first match counts. Other fields keep their default.
SMALL: Mapping[str, Any] = {
    r"(eos|pad)_token_id$": 0,
    r"vocab_size": VOCABULARY,
    r"^(max_position_embeddings|model_max_length)$": CONTEXT,
    r"shared_experts$": 1,
    r"^zero_expert_num$": 2,
    r"^(num_experts|n_routed_experts|num_local_experts|moe_num_experts)$": 4,
    r"experts_per_tok|moe_topk|moe_k$|top_k_experts": 2,
    r"^(n_groups?|topk_group|num_expert_group|o_groups|mamba_n_groups)$": 1,
    r"rope_head_dim": 8,
    r"qk_head_dim": 16,
    r"qk_nope_head_dim": 8,
    r"head_dim|kv_channels|d_head$": 16,
    r"^hidden_size_per_layer_input$|state": 8,
    r"shared_intermediate_size|intermediate_size|ffn_hidden_size": 24,
    r"^hidden_size$|embed_dim": 32,
    r"router_hidden_size": 16,
    r"rank$": 8,
    r"sliding_window$|sliding_window_size|chunk_size$|index_topk$|rel_extent": 16,
    r"^(linear|mamba)_.*heads": 4,
    r"^indexer_budget$": 16,
    r"^indexer_compress_ratio$|attn_layer_period": 2,
    r"^attn_layer_offset$": 0,
    r"^loop_layer_index_end$": 2,
    r"^loop_layer_index_start$|^n_layers_per_attn_res_block$": 1,
    r"indexer_kv_heads": 1,
    r"heads": 2,
    r"^first_k_dense_replace$|^num_dense_layers$": 1,
    r"^enable_moe_block$|^is_moe$": True,
    r"^num_nextn": 0,
}


# The same for parts that read no text.
OTHER_PARTS: Mapping[str, Any] = {
    r"image_size": 28,
    r"patch_size": 14,
    r"^depth$|layers$": 1,
    r"heads": 2,
    r"head_dim": 16,
    r"embed_dim|hidden_size|intermediate_size|d_model|_dim$": 32,
    r"position_embedding_size|num_position_embeddings": 16,
}


def mixtures() -> list[str]:
    """The model types of causal language models whose text part has a number of experts."""
    found = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if kind in PARTS:
            continue
        config = CONFIG_MAPPING[kind]().get_text_config(decoder=True)
        if any("experts" in field for field in config.to_dict()):
            found.append(kind)
    return found


def tiny(kind: str) -> PreTrainedConfig:
    """A config of the type with few small layers, one of each kind."""
    default = CONFIG_MAPPING[kind]()
    text = default.get_text_config(decoder=True)
    small = _small(text)
    if text is not default:
        name = next(name for name in default.sub_configs if getattr(default, name) is text)
        small = {name: {**small, "model_type": text.model_type}}
    return CONFIG_MAPPING[kind](**{**small, **FIELDS.get(kind, {})})


def multimodal(kind: str) -> PreTrainedModel:
    """The tiny model of a type with a text part and others, as the class makes it that loads all of it."""
    make: Any = CONFIG_MAPPING[kind]
    default = make()
    text = default.get_text_config(decoder=True)
    parts = {name: part for name in default.sub_configs if (part := getattr(default, name, None)) is not None}
    if "vision_config" in default.sub_configs and "vision_config" not in parts:
        parts["vision_config"] = CONFIG_MAPPING[f"{kind}_vision"]()
    small = {
        name: {
            **(_small(part) if part is text else _shrunk(part.to_dict(), OTHER_PARTS)),
            "model_type": part.model_type,
        }
        for name, part in parts.items()
    }
    return _quietly(lambda: AutoModelForMultimodalLM.from_config(make(**small)).eval())


def _small(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a small text part: one layer for each kind of layers of the default."""
    fields = config.to_dict()
    small = _shrunk(fields)
    if fields.get("bos_token_id") is not None:
        small["bos_token_id"] = None
    if (
        "qk_rope_head_dim" in fields and fields.get("head_dim") == fields["qk_rope_head_dim"]
    ):  # one and the same
        small["head_dim"] = small["qk_rope_head_dim"]
    depth = "num_hidden_layers" if "num_hidden_layers" in fields else "num_layers"
    count = fields.get(depth, 0)
    lists = {
        name: value
        for name, value in fields.items()
        if isinstance(value, list) and len(value) == count and len(set(map(str, value))) < count
    }
    own = {int(number): value for number, value in (fields.get("per_layer_config") or {}).items()}
    layers: dict[str, int] = {}  # the number of the first of each kind
    for number in range(count):
        layers.setdefault(str([*(each[number] for each in lists.values()), own.get(number)]), number)
    numbers = list(layers.values()) if len(layers) != 1 else [0, 0]
    if depth in fields:
        small[depth] = max(2, len(numbers))
    small |= {name: [each[number] for number in numbers] for name, each in lists.items()}
    if own:
        small["per_layer_config"] = {
            str(new): _shrunk(own[old]) for new, old in enumerate(numbers) if old in own
        }
    return small


def _shrunk(fields: Mapping[str, Any], rules: Mapping[str, Any] = SMALL) -> dict[str, Any]:
    """Smaller values for those fields that have a rule and are larger, or not set."""
    small: dict[str, Any] = {}
    for name, value in fields.items():
        new = next((new for pattern, new in rules.items() if re.search(pattern, name)), None)
        if new is None or isinstance(value, list | dict) or isinstance(value, bool) != isinstance(new, bool):
            continue
        if value is None or isinstance(value, bool) or value > new:
            small[name] = new
    return small


def network(kind: str) -> PreTrainedModel:
    """The tiny model of a type, with random weights."""
    return _quietly(lambda: network_of(tiny(kind)))


def _quietly(make: Callable[[], Any]) -> Any:
    """What `make` makes, without transformers' warnings about tiny configs."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return make()
    finally:
        logging.set_verbosity(verbosity)


def row(kind: str, model: Model | InputError) -> str:
    """What the page says about a type: how its experts are laid out, and of what kinds its parameters are."""
    if isinstance(model, InputError):
        reason = next((each for each in REASONS if each in str(model)), str(model))
        return f"| `{kind}` | refused | {reason} | | |"
    layers = model.map.moe_layers
    layout = layers[0].layout
    experts = ["list of modules" if layers[0].linears else "gated" if layout.gated else "ungated"]
    facts = {
        "transposed": layout.transposed,
        "interleaved": layout.interleaved,
        "with biases": layout.biased,
        "further ones without weights": layout.identities,
        "weighted before": layout.weighted_inputs,
    }
    experts += [fact for fact, holds in facts.items() if holds]
    placeable = [kind.replace("_", " ") for kind in model.map.dense_kinds]
    names = {re.sub(r"\d+", "*", name.split(".layers.")[-1]) for name in model.map.never_analog["other"]}
    other = [f"`{name}`" for name in sorted(names)]
    indexers = ["indexers"] if model.map.never_analog["indexers"] else []
    return f"| `{kind}` | works | {', '.join(experts)} | {', '.join(placeable)} | {', '.join([*indexers, *other])} |"


def page(rows: list[str]) -> str:
    works = sum("| works |" in each for each in rows)
    return f"""\
# Mixtures of experts of transformers {transformers.__version__}

Written by `python tests/realmodels/every_family.py`, from what it builds: a tiny random model of every model type of
`AutoModelForCausalLM` whose config has a number of experts. {works} of {len(rows)} work; the others are refused when
they are loaded, with one line. [A test](../tests/realmodels/test_every_family.py) holds that what works is exact.

- Experts: how they are laid out. MaxNNScore of a gated expert is the product over gate, up and down; of an ungated one
  that over up and down.
- Placeable: the kinds of linear layers beside the experts, as `placement.analog_modules` names them. A mixer is a Mamba
  or linear-attention block. `dense ffn` is what is none of the others.
- Never analog: besides embeddings, norms, biases and routers. Indexers choose what sparse attention reads. The
  names are those of parameters in a layer: convolutions, states, and what is no plain linear layer. The report of
  `deploy` has them with their numbers of parameters.

| model type | | experts | placeable | never analog |
|---|---|---|---|---|
""" + "".join(f"{each}\n" for each in rows)


def main() -> None:
    rows = []
    for kind in mixtures():
        with tempfile.TemporaryDirectory() as folder:
            model: Model | InputError
            try:
                model = load(save(network(kind), Path(folder)))
            except InputError as error:
                model = error
        rows.append(row(kind, model))
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
