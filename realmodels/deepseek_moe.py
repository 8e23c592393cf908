"""What is the original DeepSeekMoE (`model_type: deepseek`), as native classes that transformers' Auto classes know?

transformers has DeepSeek-V2 and later, but not the first model [Dai et al., arXiv 2401.06066], whose checkpoints bring
code that transformers 5 cannot run. The model is a Llama whose FFN is a mixture from layer `first_k_dense_replace` on.
Each token uses `num_experts_per_tok` of the `n_routed_experts` routed experts, with the softmax of the router's scores
as weights. Every token uses the `n_shared_experts` shared experts, which are one FFN together. Experts are held in
fused parameters, as in all of transformers 5; checkpoints are read and written with the original names of tensors.
Auxiliary losses of training are left out.
"""

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers import initialization as init
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2MLP
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.utils.output_capturing import OutputRecorder


@strict
class DeepseekConfig(LlamaConfig):
    """A configuration with the names and defaults of deepseek-moe-16b-base."""

    model_type = "deepseek"
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944  # width of a dense layer
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    n_routed_experts: int = 64
    n_shared_experts: int | None = 2
    num_experts_per_tok: int = 6
    moe_intermediate_size: int = 1408  # width of one expert, routed or shared
    first_k_dense_replace: int = 1  # the first layers, this many, are dense
    moe_layer_freq: int = 1  # the remaining layers have experts where this divides their number
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func is {self.scoring_func!r}: DeepSeekMoE knows softmax only")
        if not 1 <= self.num_experts_per_tok <= self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}: give 1 to {self.n_routed_experts}, the experts"
            )

    def has_experts(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


class DeepseekMoE(nn.Module):
    """Routed experts plus shared experts."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Qwen2MoeTopKRouter(config)
        # As in the original, where the weight of an only expert is its probability.
        self.gate.norm_topk_prob = config.norm_topk_prob and config.num_experts_per_tok > 1
        self.experts = DeepseekV2Experts(config)
        width = (config.n_shared_experts or 0) * config.moe_intermediate_size
        self.shared_experts = None
        if width:
            self.shared_experts = DeepseekV2MLP(config, intermediate_size=width)  # type: ignore[arg-type]

    def forward(self, hidden_states: Float[Tensor, "batch length hidden"]) -> Tensor:
        rows = hidden_states.flatten(0, 1)
        _, weights, chosen = self.gate(rows)
        result = self.experts(rows, chosen, weights).view_as(hidden_states)
        return result if self.shared_experts is None else result + self.shared_experts(hidden_states)


class DeepseekDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: DeepseekConfig, layer: int) -> None:
        super().__init__(config, layer)
        if config.has_experts(layer):
            self.mlp = DeepseekMoE(config)  # type: ignore[assignment]


class _Pretrained(LlamaPreTrainedModel):
    config: DeepseekConfig
    config_class = DeepseekConfig
    _no_split_modules = ["DeepseekDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(Qwen2MoeTopKRouter, index=0),
        "hidden_states": DeepseekDecoderLayer,
        "attentions": LlamaAttention,
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for its decorator in this file, but the decorator is where DeepseekV2Experts is
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Qwen2MoeTopKRouter | DeepseekV2Experts):
            for parameter in module.parameters():
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class DeepseekModel(_Pretrained, LlamaModel):
    def __init__(self, config: DeepseekConfig) -> None:
        super(LlamaModel, self).__init__(config)  # LlamaModel's own would first make all layers dense
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            DeepseekDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekForCausalLM(_Pretrained, LlamaForCausalLM):
    def __init__(self, config: DeepseekConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(DeepseekConfig.model_type, DeepseekConfig)
AutoModel.register(DeepseekConfig, DeepseekModel)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM)
# One tensor for each expert's projection in the checkpoint, as OLMoE's and Qwen2-MoE's.
register_checkpoint_conversion_mapping(
    DeepseekConfig.model_type, get_checkpoint_conversion_mapping("qwen2_moe")
)
