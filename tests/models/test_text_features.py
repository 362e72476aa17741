"""Phrases are read once: the memory gives what reading gives, for every prompt, and never outlives the weights."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from hf_grounding_dino.layers.text_encoder import encode_text
from hf_grounding_dino.models import text_features
from hf_grounding_dino.models.text_features import TextFeatureCache, TextNetwork, split_phrases
from hf_grounding_dino.processing.prompts import sub_sentence_attention

SPECIAL = (tiny.CLS, tiny.SEP, tiny.DOT, tiny.QUESTION)


@pytest.fixture(scope="module")
def untouched() -> Any:
    return tiny.tiny_model().model


@pytest.fixture
def model(untouched: Any) -> Any:
    return copy.deepcopy(untouched)


@pytest.fixture(scope="module")
def network(untouched: Any) -> TextNetwork:
    return TextNetwork(untouched.text_backbone, untouched.text_projection, SPECIAL)


def ids(*rows: list[int]) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [tiny.PAD] * (length - len(row)) for row in rows])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tokens at every run of a text encoder; a hook would turn the memory off."""
    seen: list[int] = []

    def counted(encoder: Any, input_ids: Tensor, *rest: Any) -> Tensor:
        seen.append(input_ids.numel())
        return encode_text(encoder, input_ids, *rest)

    monkeypatch.setattr(text_features, "encode_text", counted)
    return seen


PROMPT = [tiny.CLS, 7, 8, tiny.DOT, 9, tiny.DOT, 7, 8, tiny.DOT, tiny.SEP]
ODD = {
    "two delimiters in a row": [tiny.CLS, 7, tiny.DOT, tiny.DOT, 8, tiny.DOT, tiny.SEP],
    "unclosed end": [tiny.CLS, 7, tiny.DOT, 8, 9, 8],
    "nothing special": [7, 8, 9],
    "no start": [7, tiny.DOT, 8, 9, tiny.QUESTION],
    "padding inside": [tiny.CLS, 7, tiny.PAD, 8, tiny.DOT, tiny.SEP, tiny.PAD],
    "padding before": [tiny.PAD, tiny.PAD, tiny.CLS, 7, tiny.DOT, tiny.SEP],
    "one token": [tiny.DOT],
}


@pytest.mark.parametrize("row", ODD.values(), ids=ODD)
def test_groups_are_what_sees_each_other(row: list[int]) -> None:
    """Two tokens are of one group exactly where one may attend to the other; positions count within the group."""
    may_attend, positions = sub_sentence_attention(torch.tensor([row]), SPECIAL)
    groups = split_phrases(row, SPECIAL)
    assert [token for group in groups for token in group] == row
    number = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    assert torch.equal(may_attend[0], number[:, None] == number)
    assert positions[0].tolist() == [place for group in groups for place in range(len(group))]


@torch.no_grad()
def test_remembered_equals_read(network: TextNetwork) -> None:
    """All odd prompts in one batch, then each alone from the memory: equal to reading to 1e-5."""
    memory = TextFeatureCache()
    batch = ids(*ODD.values(), PROMPT)
    torch.testing.assert_close(memory.features(network, batch, None), network.read(batch), atol=1e-5, rtol=0)
    for row in (*ODD.values(), PROMPT):
        one = torch.tensor([row])
        torch.testing.assert_close(memory.features(network, one, None), network.read(one), atol=1e-5, rtol=0)


TOKENS = st.sampled_from([*SPECIAL, tiny.PAD, 7, 8, 9])
SHARED = TextFeatureCache(capacity=30)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 14).flatmap(lambda n: st.lists(st.lists(TOKENS, min_size=n, max_size=n), min_size=1, max_size=3)))
@torch.no_grad()
def test_any_sequence(network: TextNetwork, rows: list[list[int]]) -> None:
    """Whatever the ids, and whatever a memory of 30 tokens kept and forgot before."""
    batch = torch.tensor(rows)
    torch.testing.assert_close(SHARED.features(network, batch, None), network.read(batch), atol=1e-5, rtol=0)
    assert sum(map(len, SHARED._phrases)) == SHARED._tokens <= 30


@torch.no_grad()
def test_many_phrases_take_several_runs(network: TextNetwork) -> None:
    """6,000 tokens, past the 64 positions of the encoder and past 16 rows of 256."""
    row = [tiny.CLS, *(t for i in range(2000) for t in (105 + i % 900, 300 + i // 900, tiny.DOT)), tiny.SEP]
    batch = torch.tensor([row])
    memory = TextFeatureCache()
    features = memory.features(network, batch, None)
    assert len(memory) == 2002
    for first in (1, 3001, 5998):
        part = torch.tensor([row[first : first + 3]])
        torch.testing.assert_close(features[:, first : first + 3], network.read(part), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_phrase_too_long_is_an_error(network: TextNetwork) -> None:
    with pytest.raises(ValueError, match="A phrase has 66 tokens, the text encoder reads 64"):
        TextFeatureCache().features(network, torch.tensor([[tiny.CLS, *[7] * 65, tiny.DOT, tiny.SEP]]), None)


@torch.no_grad()
def test_the_encoder_runs_once(model: Any, runs: list[int]) -> None:
    """Same labels in another order, another batch, other padding: no run. One new phrase: a run of that phrase."""
    image = tiny.noise_image(72, 80)
    first = model(**tiny.together([tiny.one(image, [7, 8], [9]), tiny.one(image, [9])]))
    assert len(runs) == 1
    model(**tiny.one(image, [9], [7, 8]))
    again = model(**tiny.together([tiny.one(image, [7, 8], [9]), tiny.one(image, [9])]))
    assert len(runs) == 1
    torch.testing.assert_close(again.last_hidden_state, first.last_hidden_state, atol=1e-5, rtol=0)
    model(**tiny.one(image, [9], [10, 11], [7, 8]))
    assert runs[1:] == [3]


def step(model: Any) -> None:
    """One step of an optimiser, in eval mode throughout."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.enable_grad():
        model(**tiny.one(tiny.noise_image(72, 80))).last_hidden_state.sum().backward()
    optimiser.step()


def reload(model: Any) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def write_past_the_version(model: Any) -> None:
    """No version tells of it; but who does so evaluates afterwards."""
    model.text_backbone.encoder.layer[1].output.dense.weight.data.mul_(1.5)
    model.eval()


def merge_adapters(model: Any) -> None:
    """Which `peft` adds to the weights past their version."""
    config = peft.LoraConfig(r=2, target_modules=["text_projection", "query"], init_lora_weights=False)
    peft.get_peft_model(model, config).merge_and_unload()


def write_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.text_projection.weight.mul_(1.5)


def replace_the_embeddings(model: Any) -> None:
    old = model.get_input_embeddings()
    new = torch.nn.Embedding(*old.weight.shape)
    model.set_input_embeddings(new)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "step": step,
    "load_state_dict": reload,
    "to and back": lambda model: model.to(torch.bfloat16).to(torch.float32),
    "to": lambda model: model.to(torch.float64),
    "data": write_past_the_version,
    "adapters": merge_adapters,
    "inference mode": write_in_inference_mode,
    "another embedding": replace_the_embeddings,
    "training": lambda model: model.train().eval(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_new_weights_are_read_anew(model: Any, runs: list[int], change: Callable[[Any], Any]) -> None:
    """The text after each change equals that of reading, with one more run of the encoder."""
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[1].detach()))
    inputs = tiny.one(tiny.noise_image(72, 80))
    for _ in range(2):
        model(**inputs)
    assert len(runs) == 1
    change(model)
    runs.clear()
    model(**inputs)
    assert len(runs) == 1
    network = TextNetwork(model.text_backbone, model.text_projection, SPECIAL)
    torch.testing.assert_close(seen[-1], network.read(inputs["input_ids"]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_autocast_has_its_own(network: TextNetwork) -> None:
    """What was read under autocast is not served without, and the other way round."""
    memory = TextFeatureCache()
    prompt = torch.tensor([PROMPT])
    for _ in range(2):
        assert memory.features(network, prompt, None).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert memory.features(network, prompt, None).dtype == torch.bfloat16


def test_gradients_flow_past_the_memory(network: TextNetwork) -> None:
    """After the phrase was remembered, a call with gradients still has them; so has a text encoder with dropout."""
    memory = TextFeatureCache()
    prompt = torch.tensor([PROMPT])
    with torch.no_grad():
        memory.features(network, prompt, None)
    assert memory.features(network, prompt, None).requires_grad
    assert len(memory) == 5 - 1


@torch.no_grad()
def test_dropout_is_not_remembered(model: Any) -> None:
    network = TextNetwork(model.text_backbone, model.text_projection, SPECIAL)
    memory, prompt = TextFeatureCache(), torch.tensor([PROMPT])
    memory.features(network, prompt, None)
    dropout = model.text_backbone.embeddings.dropout
    dropout.p = 0.5
    dropout.train()
    draws = [memory.features(network, prompt, None) for _ in range(2)]
    assert not torch.equal(*draws)
    assert len(memory) == 0


@torch.no_grad()
def test_token_types_are_read(network: TextNetwork) -> None:
    """A prompt with token types of its own is not answered from one without."""
    memory, prompt = TextFeatureCache(), torch.tensor([PROMPT])
    plain = memory.features(network, prompt, torch.zeros_like(prompt))
    typed = memory.features(network, prompt, torch.ones_like(prompt))
    assert not torch.allclose(typed, plain, atol=1e-3)
    torch.testing.assert_close(typed, network.read(prompt, torch.ones_like(prompt)))


class WithoutPositions(torch.nn.Module):
    """An encoder that takes no position ids: a phrase's features depend on where it stands."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask)


@torch.no_grad()
def test_encoders_that_count_for_themselves_are_read(network: TextNetwork) -> None:
    other = network._replace(encoder=WithoutPositions(network.encoder).eval())
    memory, prompt = TextFeatureCache(), torch.tensor([PROMPT])
    for _ in range(2):
        torch.testing.assert_close(memory.features(other, prompt, None), other.read(prompt))
    assert not len(memory)


@torch.no_grad()
def test_the_least_used_is_forgotten(network: TextNetwork) -> None:
    """Room for 6 tokens: [CLS] (1), [SEP] (1) and two phrases of 2. The third phrase drives out the one used before."""
    memory = TextFeatureCache(capacity=6)
    for token in (7, 8, 7, 9):
        memory.features(network, torch.tensor([[tiny.CLS, token, tiny.DOT, tiny.SEP]]), None)
    kept = {phrase[0] for phrase in memory._phrases if len(phrase) == 2}
    assert kept == {7, 9}


@torch.no_grad()
def test_it_is_no_part_of_the_model(model: Any) -> None:
    """Not in the state dict, not in a copy, not in a pickle; a kept phrase does not hold on to its whole batch."""
    model(**tiny.one(tiny.noise_image(72, 80)))
    assert len(model.text_feature_cache) == 5
    assert not [name for name in model.state_dict() if "memory" in name]
    assert len(copy.deepcopy(model).text_feature_cache) == 0
    assert len(pickle.loads(pickle.dumps(model.text_feature_cache))) == 0
    for features in model.text_feature_cache._phrases.values():
        assert features.untyped_storage().nbytes() == features.numel() * features.element_size()


def test_threads_share_it(network: TextNetwork) -> None:
    """Four threads over overlapping prompts, with a memory too small for all: each gets what reading gives."""
    memory, failures = TextFeatureCache(capacity=40), []
    prompts = [torch.tensor([[tiny.CLS, 10 + i % 7, 20 + i % 5, tiny.DOT, i, tiny.DOT, tiny.SEP]]) for i in range(24)]
    with torch.no_grad():
        expected = [network.read(prompt) for prompt in prompts]

    def work(offset: int) -> None:
        with torch.no_grad():
            for i in range(len(prompts)):
                which = (i * (2 * offset + 1)) % len(prompts)
                features = memory.features(network, prompts[which], None)
                if not torch.allclose(features, expected[which], atol=1e-5):
                    failures.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(map(len, memory._phrases)) == memory._tokens <= 40


def test_loaded_in_inference_mode(runs: list[int]) -> None:
    """Weights without a version could change unseen: nothing is kept of them."""
    with torch.inference_mode():
        model = tiny.tiny_model().model
        assert model.text_projection.weight.is_inference()
        inputs = tiny.one(tiny.noise_image(72, 80))
        before = model(**inputs).last_hidden_state
        assert len(model.text_feature_cache) == 0
        model.text_projection.weight.mul_(2)
        after = model(**inputs).last_hidden_state
    assert len(runs) == 2 and not torch.allclose(before, after, atol=1e-3)


@torch.no_grad()
def test_what_is_kept_is_known_without_reading_a_weight(model: Any) -> None:
    """A call that is answered from the memory alone runs as many operators for two text layers as for none."""
    network, prompt = TextNetwork(model.text_backbone, model.text_projection, SPECIAL), torch.tensor([PROMPT])
    memory, weights = TextFeatureCache(), {id(weight) for weight in network.weights()}
    memory.features(network, prompt, None)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert not [part for part in tree_leaves(args) if id(part) in weights], func
            return func(*args, **(kwargs or {}))

    with Watch():
        memory.features(network, prompt, None)


@torch.no_grad()
def test_graphs_have_no_memory(network: TextNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a graph is made the call reads and keeps nothing: ids have no values then."""
    memory, prompt = TextFeatureCache(), torch.tensor([PROMPT])
    memory.features(network, prompt, None)
    memory.clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(memory.features(network, prompt, None), network.read(prompt))
    assert len(memory) == 0
