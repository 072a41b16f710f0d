"""A Llama-type model as one GGUF file, as llama.cpp reads it: settings, byte-level BPE tokenizer, weights in
float16 (norms in float32). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import Refused

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

    words = require_llama(config, tokenizer)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    settings(writer, config)
    vocabulary(writer, words, tokenizer, config)
    tied = config.tie_word_embeddings
    for tensor, value in weights.items():
        if not (tied and tensor == "lm_head.weight"):
            array = permuted(tensor, value, config).float().numpy()
            writer.add_tensor(renamed(tensor), array if array.ndim == 1 else array.astype("float16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def require_llama(config: Any, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's own description. Raises Refused where the model cannot be written."""
    if config is None or getattr(config, "model_type", "") != "llama":
        kind = getattr(config, "model_type", "another")
        raise Refused(f"GGUF is made of Llama-type models; this one is of the type «{kind}».", param="form")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise Refused("GGUF is made of Llama-type models without biases; this one has some.", param="form")
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default":
        raise Refused("This model scales its positions, which the GGUF export does not write.", param="form")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(backend.to_str()) if backend is not None else {}
    plain = told.get("model", {}).get("type") == "BPE" and "ByteLevel" in json.dumps(
        told.get("pre_tokenizer")
    )
    if not plain or told.get("normalizer"):
        raise Refused(
            "GGUF is made of models with a byte-level BPE tokenizer; this one has another.", param="form"
        )
    if not told["model"]["merges"]:
        raise Refused(
            "GGUF needs a tokenizer that merges bytes to tokens; this one has no merges.", param="form"
        )
    return told


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


def vocabulary(writer: Any, told: dict[str, Any], tokenizer: Any, config: Any) -> None:
    """The tokenizer: tokens, their kinds, merges, special ids, the chat template."""
    import gguf

    added = {one["id"]: one for one in told["added_tokens"]}
    known = {number: word for word, number in tokenizer.get_vocab().items()}
    tokens = [known.get(number, f"[PAD{number}]") for number in range(config.vocab_size)]
    kinds = [
        gguf.TokenType.UNUSED
        if number not in known
        else gguf.TokenType.NORMAL
        if number not in added
        else gguf.TokenType.CONTROL
        if added[number]["special"]
        else gguf.TokenType.USER_DEFINED
        for number in range(config.vocab_size)
    ]
    merges = [one if isinstance(one, str) else " ".join(one) for one in told["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if '"Digits"' in json.dumps(told["pre_tokenizer"]) else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


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
