"""A recurrent language model: embedding, LSTM, output layer (Hochreiter & Schmidhuber 1997,
https://doi.org/10.1162/neco.1997.9.8.1735), as a model of transformers: it loads, saves and generates as those do.

transformers knows no such architecture, so `register` makes it known in this process; a folder's
config.json names it and holds no code. The card of a checkpoint prints `PLAIN`, which needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MODEL_TYPE = "burnish_lstm"
PLAIN = '''\
import json
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast


class LSTM(torch.nn.Module):
    def __init__(self, vocab_size, hidden_size, num_hidden_layers, **_):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, hidden_size)
        self.lstm = torch.nn.LSTM(hidden_size, hidden_size, num_hidden_layers, batch_first=True)
        self.head = torch.nn.Linear(hidden_size, vocab_size)

    def forward(self, ids, state=None):
        """Logits of the token after each of `ids` [rows, length], and the state to go on from."""
        hidden, state = self.lstm(self.embedding(ids), state)
        return self.head(hidden), state


folder = "path/to/this/folder"
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
model = LSTM(**json.load(open(f"{folder}/config.json"))).eval()
model.load_state_dict(load_file(f"{folder}/model.safetensors"))

ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits, state = model(ids)
    for _ in range(50):
        token = logits[:, -1].softmax(-1).multinomial(1)
        print(tokenizer.decode(token[0]), end="", flush=True)
        logits, state = model(token, state)
'''


@lru_cache(maxsize=1)
def register() -> tuple[type[Any], type[Any]]:
    """(config class, model class), known to transformers' Auto classes from now on."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config, model = config_class(), model_class(config_class())
    AutoConfig.register(MODEL_TYPE, config)
    AutoModelForCausalLM.register(config, model)
    return config, model


@lru_cache(maxsize=1)
def config_class() -> type[Any]:
    """What config.json says of an LSTM."""
    from transformers import PreTrainedConfig

    class LSTMConfig(PreTrainedConfig):
        model_type = MODEL_TYPE
        vocab_size: int = 2048
        hidden_size: int = 192
        num_hidden_layers: int = 1
        max_position_embeddings: int | None = None  # it reads on and on
        tie_word_embeddings: bool = False

    return LSTMConfig


def model_class(config: type[Any]) -> type[Any]:
    """The network, with the state of its cells in the place of transformers' caches."""
    from torch import nn
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.utils import ModelOutput

    @dataclass
    class Output(ModelOutput):
        loss: Any = None
        logits: Any = None
        state: Any = None

    class LSTMForCausalLM(PreTrainedModel, GenerationMixin):
        config_class = config
        _is_stateful = True
        _supports_sdpa = True  # there is no attention: any way to compute it will do

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            width = config.hidden_size
            self.embedding = nn.Embedding(config.vocab_size, width)
            self.lstm = nn.LSTM(width, width, config.num_hidden_layers, batch_first=True)
            self.head = nn.Linear(width, config.vocab_size)
            self.post_init()

        def forward(
            self,
            input_ids: Any,
            attention_mask: Any = None,
            state: Any = None,
            use_cache: bool | None = None,
            **_: Any,
        ) -> Any:
            """Logits [rows, length, words]. Padding on the left, which the mask tells, is not read."""
            read = self.embedding(input_ids)
            if state is None and attention_mask is not None and not bool(attention_mask[:, 0].all()):
                hidden, state = read_padded(self.lstm, read, attention_mask)
            else:
                hidden, state = self.lstm(read, state)
            return Output(logits=self.head(hidden), state=state if use_cache else None)

        def get_input_embeddings(self) -> Any:
            return self.embedding

        def get_output_embeddings(self) -> Any:
            return self.head

        def set_attn_implementation(self, *_: Any, **__: Any) -> None:
            """There is no attention."""

        def _reorder_cache(self, state: Any, beams: Any) -> Any:
            return tuple(part.index_select(1, beams) for part in state)

        @classmethod
        def _supports_default_dynamic_cache(cls) -> bool:
            return False  # its cache is `state`

    return LSTMForCausalLM


def read_padded(lstm: Any, read: Any, mask: Any) -> tuple[Any, Any]:
    """(hidden states, state) of rows that are padded on the left: each row is read from its first token on.

    `read` [rows, length, width], `mask` [rows, length]; hidden states of padding are zero.
    """
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    length = mask.shape[1]
    lengths = mask.sum(1)
    places = torch.arange(length, device=mask.device)
    moved = (places + (length - lengths)[:, None]) % length  # where the token comes from that stands here
    row = torch.arange(len(mask), device=mask.device)[:, None]
    packed = pack_padded_sequence(read[row, moved], lengths.cpu(), batch_first=True, enforce_sorted=False)
    hidden, state = lstm(packed)
    hidden, _ = pad_packed_sequence(hidden, batch_first=True, total_length=length)
    return hidden[row, (places - (length - lengths)[:, None]) % length], state
