"""A Llama-type model as one GGUF file, as llama.cpp reads it: settings, byte-level BPE tokenizer, weights in
float16 (norms in float32). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shared.errors import Refused
from shared.recipe import Learner
from worker.engine import gguf_tokenizer

NAME = "model.gguf"
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write(path: Path, config: Any, tokenizer: Any, weights: dict[str, Any], name: str) -> None:
    """Write the file. `weights` are those of a plain transformers Llama. Raises Refused for anything else."""
    import gguf

    require_llama(config, tokenizer)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    settings(writer, config)
    gguf_tokenizer.add(writer, tokenizer, config.vocab_size)
    tied = config.tie_word_embeddings
    for tensor, value in weights.items():
        if not (tied and tensor == "lm_head.weight"):
            array = permuted(tensor, value, config).float().numpy()
            writer.add_tensor(renamed(tensor), array if array.ndim == 1 else array.astype("float16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def opened(folder: Path, learner: Learner) -> Learner:
    """The file as transformers reads it, which cuts texts as llama.cpp does under the name in the file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=NAME, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=NAME)
    gguf_tokenizer.restore(tokenizer, folder / NAME)
    return replace(learner, tokenizer=tokenizer, model=model.eval(), packs=None)


def rounded(model: Any) -> None:
    """Round the weights as the file does."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(weight.half())


def require_llama(config: Any, tokenizer: Any) -> None:
    """Refuses a model or tokenizer that cannot be written."""
    if config is None or getattr(config, "model_type", "") != "llama":
        kind = getattr(config, "model_type", "another")
        raise Refused(f"GGUF is made of Llama-type models; this one is of the type «{kind}».", param="form")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise Refused("GGUF is made of Llama-type models without biases; this one has some.", param="form")
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default":
        raise Refused("This model scales its positions, which the GGUF export does not write.", param="form")
    gguf_tokenizer.described(tokenizer)


def settings(writer: Any, config: Any) -> None:
    """The shape of the model."""
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_freq_base((config.rope_parameters or {}).get("rope_theta", 10_000.0))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(1)  # mostly float16


def renamed(tensor: str) -> str:
    """A tensor's name in the file."""
    if tensor in OUTSIDE:
        return OUTSIDE[tensor]
    number, rest = tensor.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{LAYER[rest.removesuffix('.weight')]}.weight"


def permuted(tensor: str, value: Any, config: Any) -> Any:
    """Queries and keys in the order in which llama.cpp rotates them: pairs side by side instead of halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[name] for name in heads if f".{name}." in tensor), None)
    if count is None:
        return value
    return value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
