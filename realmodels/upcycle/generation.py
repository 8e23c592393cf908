"""What does the dense model itself write? Its text, at temperature 1, is what the mixture of experts is healed on.

All rows of a round are at the same position, so that no attention is masked, and a prompt is read as text is written,
token by token: as long as there is a prompt left, its token replaces the one that was sampled. After an end-of-text
token the next prompt follows in the same block. On a GPU a step is a CUDA graph, one for each length of the cache.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt16
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from realmodels.pretrain.tokens import END_OF_TEXT, write_json
from realmodels.upcycle.prompts import BEGINNINGS, REQUESTS, TOPICS
from realmodels.upcycle.recipe import FILE, Recipe
from theory.errors import InputError

CACHE_STEP: Final = 64  # the cache is read in lengths that are multiples of this
PROMPTS_PER_ROW: Final = 32  # if a row needs more, it begins again with its first
WARM_UP: Final = 3  # steps before a CUDA graph is captured


class Prompts(NamedTuple):
    """Prompts as tokens.

    tokens: (prompts, longest), int64, padded with 0. lengths: (prompts,). requests: how many of them, from the first
    on, are requests; the others are beginnings.
    """

    tokens: Tensor
    lengths: Tensor
    requests: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Prompts":
        """Every topic in every form. Beginnings follow an end-of-text token, as documents do."""
        if tokenizer.chat_template is None:
            raise InputError(
                "the dense model's tokenizer has no chat template: give a model that was instructed"
            )
        requests = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": form.format(topic)}], tokenize=False, add_generation_prompt=True
            )
            for topic in TOPICS
            for form in REQUESTS
        ]
        bare = [
            END_OF_TEXT + text[:1].upper() + text[1:]
            for topic in TOPICS
            for form in BEGINNINGS
            for text in [form.format(topic)]
        ]
        encoded = tokenizer([*requests, *bare], add_special_tokens=False)["input_ids"]
        return cls.padded(encoded, len(requests))

    @classmethod
    def padded(cls, encoded: Sequence[Sequence[int]], requests: int) -> "Prompts":
        lengths = torch.tensor([len(each) for each in encoded])
        tokens = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.long)
        for row, each in zip(tokens, encoded, strict=True):
            row[: len(each)] = torch.tensor(each)
        return cls(tokens, lengths, requests)

    def order(self, recipe: Recipe, number: int) -> Int[Tensor, "rows prompts"]:
        """Which prompts the rows of a round read, one after the other."""
        generator = np.random.default_rng((recipe.seed, number))
        shape = (recipe.rows, PROMPTS_PER_ROW)
        bare = generator.random(shape) < recipe.bare
        request = generator.integers(self.requests, size=shape)
        beginning = generator.integers(self.requests, len(self.tokens), size=shape)
        return torch.from_numpy(np.where(bare, beginning, request))


class Decoder:
    """One step of a Llama for rows that are all at one position, with the keys and values of earlier positions."""

    def __init__(self, model: LlamaForCausalLM, rows: int, context: int) -> None:
        self.model: Any = model
        config: Any = model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width, self.activation = config.head_dim, model.model.layers[0].mlp.act_fn
        shape = (config.num_hidden_layers, 2, rows, self.groups, context, self.width)
        self.cache = torch.zeros(shape, dtype=model.dtype, device=model.device)
        # What is between two attentions becomes a few kernels.
        on_gpu = model.device.type == "cuda"
        self.enter: Callable[..., Any] = torch.compile(self._enter) if on_gpu else self._enter
        self.leave: Callable[..., Any] = torch.compile(self._leave) if on_gpu else self._leave
        self.weights = [self._fused(layer) for layer in model.model.layers]

    @staticmethod
    def _fused(layer: Any) -> tuple[Tensor, ...]:
        attention, ffn = layer.self_attn, layer.mlp
        return (
            layer.input_layernorm.weight.detach(),
            torch.cat(
                [each.weight.detach() for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
            ),
            attention.o_proj.weight.detach(),
            layer.post_attention_layernorm.weight.detach(),
            torch.cat([ffn.gate_proj.weight.detach(), ffn.up_proj.weight.detach()]),
            ffn.down_proj.weight.detach(),
        )

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.model.config.rms_norm_eps)

    def _enter(
        self, hidden: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (rows, groups, heads per group, width), keys and values (rows, groups, 1, width)."""
        heads = F.linear(self._norm(hidden, norm), qkv).unflatten(1, (-1, 1, self.width))
        query, key, value = heads.split([self.heads, self.groups, self.groups], 1)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        return query.reshape(len(hidden), self.groups, -1, self.width), key, value

    def _leave(
        self, hidden: Tensor, mixed: Tensor, output: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        hidden = hidden + F.linear(mixed.flatten(1), output)
        gate, up = F.linear(self._norm(hidden, norm), gate_up).chunk(2, -1)
        return hidden + F.linear(self.activation(gate) * up, down)

    def __call__(self, token: Int[Tensor, " rows"], position: Int[Tensor, "1"], length: int) -> Tensor:
        """Logits (rows, vocabulary). The position is below `length`, which is how much of the cache is read."""
        model = self.model.model
        hidden = model.embed_tokens(token)
        cos, sin = model.rotary_emb(hidden[:1], position[None])
        seen = torch.arange(length, device=token.device) <= position
        mask = torch.zeros(length, dtype=hidden.dtype, device=token.device).masked_fill(~seen, -torch.inf)
        mask = mask.expand(1, 1, self.heads // self.groups, length)
        for (norm, qkv, output, norm_2, gate_up, down), (keys, values) in zip(
            self.weights, self.cache, strict=True
        ):
            query, key, value = self.enter(hidden, norm, qkv, cos, sin)
            keys.index_copy_(2, position, key)
            values.index_copy_(2, position, value)
            with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                mixed = F.scaled_dot_product_attention(
                    query, keys[:, :, :length], values[:, :, :length], attn_mask=mask
                )
            hidden = self.leave(hidden, mixed, output, norm_2, gate_up, down)
        return self.model.lm_head(self._norm(hidden, model.norm.weight))


class Writer:
    """Writes rounds of blocks with a model. Same recipe, round and card: same tokens."""

    @torch.no_grad()
    def __init__(
        self, model: LlamaForCausalLM, prompts: Prompts, ends: Sequence[int], recipe: Recipe
    ) -> None:
        self.recipe, self.device, self.own_prompts = recipe, model.device, prompts
        self.prompts, self.lengths = prompts.tokens.to(self.device), prompts.lengths.to(self.device)
        self.ends = torch.tensor(ends, device=self.device)
        self.decoder = Decoder(model, recipe.rows, recipe.context)
        self.generator = torch.Generator(self.device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=self.device)

        self.order = zeros(recipe.rows, PROMPTS_PER_ROW)
        self.prompt, self.offset = zeros(recipe.rows), zeros(recipe.rows)  # where each row is in its prompts
        self.token, self.position = zeros(recipe.rows), zeros(1)
        self.written = zeros(recipe.rows, recipe.context)
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.steps = {
            length: self._step(length)
            for length in range(CACHE_STEP, recipe.context + CACHE_STEP, CACHE_STEP)
        }

    def _step(self, length: int) -> Callable[[], None]:
        """What computes a step with a cache of this length."""
        length = min(length, self.recipe.context)
        if self.device.type != "cuda":
            return lambda: self._advance(length)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._advance(length)
                self.position.zero_()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, pool=self.pool):
            self._advance(length)
        return graph.replay

    def _advance(self, length: int) -> None:
        """Write the next token of each row."""
        logits = self.decoder(self.token, self.position, length)
        # The largest of logits + Gumbel noise is a sample of the softmax.
        noise = torch.empty_like(logits, dtype=torch.float32).exponential_(generator=self.generator).log_()
        sampled = (logits.float() - noise).argmax(-1)
        prompt = self.order.gather(1, self.prompt[:, None] % PROMPTS_PER_ROW)[:, 0]
        given = self.offset < self.lengths[prompt]
        read = self.prompts[prompt, self.offset.clamp(max=self.prompts.shape[1] - 1)]
        self.token.copy_(torch.where(given, read, sampled))
        ended = ~given & (sampled[:, None] == self.ends).any(1)
        self.offset.copy_(torch.where(ended, 0, self.offset + 1))
        self.prompt += ended
        self.position += 1
        self.written.index_copy_(1, self.position, self.token[:, None])

    @torch.no_grad()
    def round(self, number: int) -> UInt16[np.ndarray, "rows context"]:
        self.generator.manual_seed(
            int(np.random.SeedSequence((self.recipe.seed, number)).generate_state(1)[0])
        )
        self.order.copy_(self.own_prompts.order(self.recipe, number))
        self.token.copy_(self.prompts[self.order[:, 0], 0])
        self.written[:, 0] = self.token
        self.prompt.zero_()
        self.offset.fill_(1)
        self.position.zero_()
        for position in range(self.recipe.context - 1):
            self.steps[position // CACHE_STEP * CACHE_STEP + CACHE_STEP]()
        return self.written.cpu().numpy().astype(np.uint16)


def generate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    out: Path,
    rank: int = 0,
    size: int = 1,
) -> None:
    """Write all rounds to OUT, one file each; those that are there are kept.

    rank, size: of `size` processes, which each write their share of the missing rounds, this is number `rank`.
    """
    if model.config.vocab_size > np.iinfo(np.uint16).max + 1:
        raise InputError(f"the dense model has {model.config.vocab_size} tokens: give one with at most 65536")
    out.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(rank, recipe.rounds, size) if not block_file(out, number).exists()]
    if not missing:
        return
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)}
    writer = Writer(model, Prompts.of(tokenizer), sorted(ends), recipe)
    start = time.perf_counter()
    for number in tqdm(missing, unit="round"):
        blocks = writer.round(number)
        unfinished = out / f"unfinished-{rank}"
        with unfinished.open("wb") as file:
            np.save(file, blocks)
        unfinished.replace(block_file(out, number))
    seconds = time.perf_counter() - start
    speed = len(missing) * recipe.rows * recipe.context / seconds
    if rank == 0:
        write_json(out / FILE, {"recipe": asdict(recipe), "hash": recipe.hash(), "tokens_per_second": speed})
    written = len(missing) * recipe.rows * recipe.context
    print(json.dumps({"tokens": written, "seconds": seconds, "tokens_per_second": speed}), flush=True)


def block_file(folder: Path, number: int) -> Path:
    return folder / f"blocks-{number:04}.npy"


def read_blocks(folders: Sequence[Path], context: int) -> UInt16[np.ndarray, "blocks context"]:
    """All blocks of folders that `generate` or `encode_texts` wrote, in order."""
    found = [np.load(file) for folder in folders for file in sorted(folder.glob("blocks-*.npy"))]
    if not found:
        raise InputError(f"{', '.join(map(str, folders))}: there are no blocks: generate them first")
    for blocks in found:
        if blocks.dtype != np.uint16 or blocks.shape[1:] != (context,):
            raise InputError(
                f"blocks are {blocks.shape} of {blocks.dtype}: recipe.context is {context}, so generate them anew"
            )
    return np.concatenate(found)


def cut(stream: UInt16[np.ndarray, " tokens"], context: int) -> UInt16[np.ndarray, "blocks context"]:
    """A stream as blocks; an incomplete last one is left out."""
    if len(stream) < context:
        raise InputError(f"the text has {len(stream)} tokens: give at least {context}")
    return stream[: len(stream) // context * context].reshape(-1, context)
