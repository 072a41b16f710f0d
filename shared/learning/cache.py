"""What attention has read of the rows that are written, with room to grow: nothing is copied to add a token."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

ROOM = 64  # tokens that are made room for at once


def roomy(model: Any) -> Any:
    """An empty cache for `model.generate`; None where the model has another kind."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config(decoder=True)
    supported = getattr(model, "_supports_default_dynamic_cache", None)
    if model.config.is_encoder_decoder or supported is None or not supported():
        return None
    cache = DynamicCache(config=config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [roomy_layer()() for _ in cache.layers]
    return cache


@lru_cache(maxsize=1)
def roomy_layer() -> type[Any]:
    """The class of such a cache's layers."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """Keys and values [rows, heads, tokens, width], which are the first tokens of longer tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.stores: list[Any] = []

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            """Adds tokens; returns all keys and values."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            length, more = self.get_seq_length(), key_states.shape[-2]
            fresh = (key_states, value_states)
            if not self.stores or self.stores[0].shape[-2] < length + more:
                known = (self.keys, self.values) if length else None
                self.stores = [
                    grown(fresh[n], known[n] if known else None, length + more + ROOM) for n in (0, 1)
                ]
            for store, states in zip(self.stores, fresh, strict=True):
                store[..., length : length + more, :] = states
            self.keys, self.values = (store[..., : length + more, :] for store in self.stores)
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            """Keeps those rows alone."""
            super().batch_select_indices(indices)
            self.stores = []

    return RoomyLayer


def grown(like: Any, known: Any, room: int) -> Any:
    """A tensor with room for that many tokens, which begins with what is known."""
    rows, heads, _, width = like.shape
    store = like.new_empty((rows, heads, room, width))
    if known is not None:
        store[..., : known.shape[-2], :] = known
    return store
