"""The features of a prompt's words before any image, and a cache of the phrases that were read.

Before the fusion a phrase sees nothing but itself, so its features are the same in every prompt and can be kept.
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers.cpu_linear import is_hooked
from ..layers.text_encoder import encode_text
from ..processing.prompts import sub_sentence_attention

TokenIds = tuple[int, ...]

_REMEMBERED_TOKENS = 2**17
_ROW_TOKENS = 256
_ROWS_AT_A_TIME = 16
_FILLER = 0


class TextNetwork(NamedTuple):
    """What turns token ids into features: the encoder, the projection after it, and the ids that end a phrase."""

    encoder: nn.Module
    projection: nn.Module
    special_token_ids: tuple[int, ...]

    def modules(self) -> Iterable[nn.Module]:
        """Every module of both networks."""
        return chain(self.encoder.modules(), self.projection.modules())

    def weights(self) -> Iterable[Tensor]:
        """Every parameter and buffer of both."""
        return chain.from_iterable(chain(m.parameters(), m.buffers()) for m in (self.encoder, self.projection))

    def read(self, input_ids_BT: Tensor, token_type_ids_BT: Tensor | None = None) -> Tensor:
        """Projected last hidden states `(B, T, D)`.

        Raises:
            ValueError: a phrase is longer than the encoder has positions for.
        """
        may_attend_BTT, position_ids_BT = sub_sentence_attention(input_ids_BT, self.special_token_ids)
        states = encode_text(self.encoder, input_ids_BT, token_type_ids_BT, position_ids_BT, may_attend_BTT[:, None])
        features: Tensor = self.projection(states)
        return features


def split_phrases(input_ids: Sequence[int], special_token_ids: Sequence[int]) -> list[TokenIds]:
    """The groups of tokens that see each other and nothing else, in order; joined they are the prompt again.

    The rule of `prompts.sub_sentence_attention`: a group ends with a special token, and each token after the last
    special one is a group by itself.
    """
    groups, start = [], 0
    for end, token in enumerate(input_ids, 1):
        if token in special_token_ids:
            groups.append(tuple(input_ids[start:end]))
            start = end
    return groups + [(token,) for token in input_ids[start:]]


def read_phrases(network: TextNetwork, phrases: Iterable[TokenIds], device: torch.device) -> dict[TokenIds, Tensor]:
    """The features `(tokens, D)` of each phrase, from prompts that are made up of them."""
    rows = _join_phrases(phrases, network.special_token_ids)
    features: dict[TokenIds, Tensor] = {}
    for first in range(0, len(rows), _ROWS_AT_A_TIME):
        some = rows[first : first + _ROWS_AT_A_TIME]
        ids = [list(chain.from_iterable(row)) for row in some]
        length = max(map(len, ids))
        padded = torch.tensor([row + [_FILLER] * (length - len(row)) for row in ids], device=device)
        for row, features_TD in zip(some, network.read(padded), strict=True):
            sizes = [*map(len, row)]
            features |= zip(row, features_TD[: sum(sizes)].split(sizes), strict=True)
    return features


def _join_phrases(phrases: Iterable[TokenIds], special_token_ids: Sequence[int]) -> list[list[TokenIds]]:
    """Rows of up to 256 tokens. Open phrases, single tokens, come last: nothing special may follow them in a row."""
    rows: list[list[TokenIds]] = []
    room = 0
    for phrase in sorted(phrases, key=lambda ids: ids[-1] not in special_token_ids):
        if len(phrase) > room:
            rows.append([])
            room = _ROW_TOKENS
        rows[-1].append(phrase)
        room -= len(phrase)
    return rows


class TextFeatureCache:
    """The features of the latest phrases, for as long as the weights stay. Safe to share between threads.

    It serves calls that record no gradient, with the encoder in eval mode, unhooked and uncompiled, on one device. It
    starts anew when a parameter is replaced, written to, frozen, moved or cast, when the encoder trains, and with each
    call of the model's `train` and `eval`. It tells by each parameter's identity, address and version: writing past
    these (`parameter.data.copy_(x)`) needs `clear()`. A copy, by `copy` or `pickle`, starts empty.
    """

    def __init__(self, capacity: int = _REMEMBERED_TOKENS) -> None:
        """Keep phrases of `capacity` tokens in all; what was not used for longest is forgotten."""
        self.capacity = capacity
        self._lock = threading.Lock()
        self._phrases: OrderedDict[TokenIds, Tensor] = OrderedDict()
        self._tokens = 0
        self._state: Hashable = None

    def __reduce__(self) -> tuple[type[TextFeatureCache], tuple[int]]:
        """Copy the capacity alone."""
        return type(self), (self.capacity,)

    def __len__(self) -> int:
        """How many phrases are kept."""
        return len(self._phrases)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._forget()

    def features(self, network: TextNetwork, input_ids_BT: Tensor, token_type_ids_BT: Tensor | None) -> Tensor:
        """What `network.read` gives, `(B, T, D)`, reading only phrases that are not kept.

        Raises:
            ValueError: a phrase is longer than the encoder has positions for.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return network.read(input_ids_BT, token_type_ids_BT)
        if _changes_between_calls(network):
            self.clear()
            return network.read(input_ids_BT, token_type_ids_BT)
        if torch.is_grad_enabled() or not _is_plain(network, input_ids_BT, token_type_ids_BT):
            return network.read(input_ids_BT, token_type_ids_BT)
        state = _state_of(network)
        rows = [split_phrases(row, network.special_token_ids) for row in input_ids_BT.tolist()]
        features = self._recall(state, dict.fromkeys(chain.from_iterable(rows)))
        missing = [phrase for phrase, kept in features.items() if kept is None]
        read = read_phrases(network, missing, input_ids_BT.device)
        self._keep(state, read)
        known = {phrase: read[phrase] if kept is None else kept for phrase, kept in features.items()}
        return torch.cat([known[phrase] for row in rows for phrase in row]).unflatten(0, input_ids_BT.shape)

    def _recall(self, state: Hashable, phrases: Iterable[TokenIds]) -> dict[TokenIds, Tensor | None]:
        with self._lock:
            if state != self._state:
                self._forget()
                self._state = state
            kept = {phrase: self._phrases.get(phrase) for phrase in phrases}
            for phrase in kept:
                if phrase in self._phrases:
                    self._phrases.move_to_end(phrase)
            return kept

    def _keep(self, state: Hashable, features: Mapping[TokenIds, Tensor]) -> None:
        with self._lock:
            if state != self._state:
                return
            for phrase, features_TD in features.items():
                if phrase not in self._phrases:
                    self._phrases[phrase] = features_TD.clone()  # the row it is a part of need not live on
                    self._tokens += len(phrase)
            while self._tokens > self.capacity:
                self._tokens -= len(self._phrases.popitem(last=False)[0])

    def _forget(self) -> None:
        self._phrases.clear()
        self._tokens = 0
        self._state = None


def _changes_between_calls(network: TextNetwork) -> bool:
    """Whether equal weights may give unequal features: dropout is on, or there are adapters that can be switched."""
    return any(module.training or hasattr(type(module), "adapter_layer_names") for module in network.modules())


def _is_plain(network: TextNetwork, input_ids_BT: Tensor, token_type_ids_BT: Tensor | None) -> bool:
    """Whether features depend on a phrase's ids alone: no hooks, ordinary weights that tell of changes, one device."""
    for weight in network.weights():
        ordinary = type(weight) in (Tensor, nn.Parameter) and not weight.is_inference()
        if not ordinary or weight.device != input_ids_BT.device:
            return False
    if input_ids_BT.is_meta or not input_ids_BT.numel() or any(map(is_hooked, network.modules())):
        return False
    takes_positions = "position_ids" in inspect.signature(network.encoder.forward).parameters
    return takes_positions and (token_type_ids_BT is None or not token_type_ids_BT.any())


def _state_of(network: TextNetwork) -> Hashable:
    """What tells the present weights, and the precision they are used in, from others, without reading one.

    An address is used again once its memory was freed: hence the identity of the tensor, whose version counts on.
    """
    weights = [weight for weight in network.weights() if weight.numel()]
    kinds = [(id(w), w.data_ptr(), w._version, w.dtype, w.device, w.requires_grad) for w in weights]
    device = weights[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (autocast, *kinds)
