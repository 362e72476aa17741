"""Law 4: every option works in all its values, or is refused at construction with a message that names it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

import hf_grounding_dino as own
import tiny
from hf_grounding_dino.layers import deformable_attention as deformable

families = pytest.mark.parametrize("family", tiny.FAMILIES)
REFUSALS = (ValueError, StrictDataclassError)

RESNET = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic",
    out_features=["stage2", "stage3", "stage4"],
)  # fmt: skip
DISTILBERT = transformers.DistilBertConfig(
    vocab_size=1100, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64, dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip
ROBERTA = transformers.RobertaConfig(
    vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=66, type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip

# How each option shows: two values, and where the difference must be seen.
OUTPUT: dict[str, tuple[Any, Any]] = {  # the same weights, or as many of them as fit, give other boxes
    "text_config": (tiny.tiny_options()["text_config"], DISTILBERT),
    "backbone_config": (tiny.tiny_options()["backbone_config"], RESNET),
    "encoder_layers": (2, 1),
    "encoder_ffn_dim": (64, 32),
    "encoder_attention_heads": (4, 2),
    "decoder_layers": (3, 2),
    "decoder_ffn_dim": (64, 32),
    "decoder_attention_heads": (4, 2),
    "activation_function": ("relu", "gelu"),
    "d_model": (32, 64),
    "position_embedding_type": ("sine", "learned"),
    "num_feature_levels": (4, 3),
    "encoder_n_points": (2, 3),
    "decoder_n_points": (2, 3),
    "embedding_init_target": (True, False),
    "positional_embedding_temperature": (20, 10000),
    "layer_norm_eps": (1e-5, 0.5),
    "phrase_boundary_token_ids": ((101, 102, 1012, 1029), (101, 102)),
    "logit_epsilon": (1e-5, 0.4),
    "logit_epsilon_heads": (1e-5, 0.4),
}
HEADS = {"decoder_bbox_embed_share": "bbox_embed", "decoder_cls_embed_share": "class_embed"}  # one head or three
SHAPE: dict[str, tuple[Any, Any]] = {"num_queries": (20, 10), "max_text_len": (256, 100)}  # another shape of logits
TRAINING: dict[str, tuple[Any, Any]] = {  # nothing in eval, something in train
    "dropout": (0.0, 0.5),
    "attention_dropout": (0.0, 0.5),
    "activation_dropout": (0.0, 0.5),
    "text_enhancer_dropout": (0.0, 0.5),
    "fusion_droppath": (0.0, 0.5),
    "fusion_dropout": (0.0, 0.5),
}
LOSS: dict[str, tuple[Any, Any]] = {  # the same outputs, another loss; with `loss_preset="custom"` where needed
    "loss_preset": ("paper", "mmdet"),
    "class_cost": (1.0, 1000.0),
    "bbox_cost": (5.0, 1000.0),
    "giou_cost": (2.0, 1000.0),
    "class_loss_coefficient": (2.0, 3.0),
    "bbox_loss_coefficient": (5.0, 3.0),
    "giou_loss_coefficient": (2.0, 3.0),
    "focal_alpha": (0.25, 0.5),
}
REFUSED: dict[str, Any] = {  # one value works, this one is refused by name
    "two_stage": False,
    "query_dim": 2,
    "tie_word_embeddings": False,
    "two_stage_bbox_embed_share": True,
}
OWN_TEST = {"auxiliary_loss", "disable_custom_kernels", "init_std", "is_encoder_decoder"}

MORE_REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("position_embedding_type", {"position_embedding_type": "rotary"}),
    ("d_model", {"d_model": 40}),
    ("d_model", {"d_model": 32, "encoder_attention_heads": 6}),
    ("d_model", {"d_model": 32, "decoder_attention_heads": 5}),
    ("encoder_attention_heads", {"encoder_attention_heads": 1}),
    ("encoder_ffn_dim", {"encoder_ffn_dim": 50}),
    ("num_feature_levels", {"num_feature_levels": 2}),
    ("num_feature_levels", {"num_feature_levels": 0}),
    ("loss_preset", {"loss_preset": "detr"}),
    ("phrase_boundary_token_ids", {"phrase_boundary_token_ids": (101,)}),
    ("activation_function", {"activation_function": "nonsense"}),
    ("num_queries", {"num_queries": 0}),
    ("decoder_layers", {"decoder_layers": 0}),
    ("encoder_n_points", {"encoder_n_points": 0}),
    ("encoder_layers", {"encoder_layers": -1}),
    ("encoder_ffn_dim", {"encoder_ffn_dim": 0}),
    ("decoder_ffn_dim", {"decoder_ffn_dim": 0}),
    ("positional_embedding_temperature", {"positional_embedding_temperature": 0}),
    ("layer_norm_eps", {"layer_norm_eps": 0.0}),
    ("focal_alpha", {"focal_alpha": 7.0}),
    ("focal_alpha", {"focal_alpha": float("nan")}),
    ("giou_cost", {"giou_cost": -1.0, "loss_preset": "custom"}),
    ("class_loss_coefficient", {"class_loss_coefficient": -1.0, "loss_preset": "custom"}),
    ("dropout", {"dropout": 1.5}),
    ("attention_dropout", {"attention_dropout": -0.1}),
    ("fusion_droppath", {"fusion_droppath": 1.5}),
    ("num_queries", {"num_queries": "many"}),
    ("logit_epsilon", {"logit_epsilon": 0.0}),
    ("logit_epsilon", {"logit_epsilon": float("nan")}),
    ("logit_epsilon_heads", {"logit_epsilon_heads": 0.5}),
]
"""Not here: values that do not make a network. `encoder_layers=0` makes one."""


def fields(family: tiny.Family) -> set[str]:
    """The options of a configuration class beyond those of every model."""
    return set(tiny.OWN_CONFIG[family].__dataclass_fields__) - set(transformers.PretrainedConfig.__dataclass_fields__)


def inputs() -> dict[str, Tensor]:
    """Two images of unequal sizes and prompts."""
    return tiny.together([tiny.one(tiny.noise_image(91, 74)), tiny.one(tiny.noise_image(72, 100), [9], [4, 5])])


def each(options: Iterable[str]) -> Any:
    """Every option with one of the two types, in turns where both have it: they are one network."""
    cases = []
    for i, name in enumerate(options):
        family, other = tiny.FAMILIES[i % 2], tiny.FAMILIES[1 - i % 2]
        cases.append((family if name in fields(family) else other, name))
    return pytest.mark.parametrize(("family", "name"), cases)


def labels() -> list[dict[str, Tensor]]:
    """Boxes for `inputs`."""
    return [tiny.boxes_label(0, 5, 3), tiny.boxes_label(1, 4, 2)]


def pair(family: tiny.Family, name: str, values: tuple[Any, Any], **more: Any) -> tuple[Any, Any]:
    """Two models that differ in one option; parameters of one name and shape are equal."""
    a, b = (tiny.tiny_model(family, **{name: value}, **more) for value in values)
    assert getattr(a.config, name) is not getattr(b.config, name)
    source = a.state_dict()
    target = b.state_dict()
    b.load_state_dict({n: source[n] if n in source and source[n].shape == v.shape else v for n, v in target.items()})
    return a, b


@families
def test_every_option_is_covered(family: tiny.Family) -> None:
    """A new option must enter one of the tables here, which say where it shows, or be refused."""
    covered = {*OUTPUT, *HEADS, *SHAPE, *TRAINING, *LOSS, *REFUSED, *OWN_TEST}
    assert fields(family) - covered == set()
    both = {name for config in tiny.OWN_CONFIG.values() for name in config.__dataclass_fields__}
    assert covered - both == set()


@each(OUTPUT)
def test_option_changes_the_boxes(family: tiny.Family, name: str) -> None:
    """Both values run, and with equal weights give unequal boxes; the second trains whatever requires a gradient."""
    a, b = pair(family, name, OUTPUT[name])
    # The first phrase exists whatever ends a phrase.
    targets = [{"boxes": label["boxes"], "class_labels": label["class_labels"] * 0} for label in labels()]
    first, second = a(**inputs()), b.train()(**inputs(), labels=targets)
    assert first.pred_boxes.isfinite().all()
    assert second.pred_boxes.isfinite().all()
    assert not torch.allclose(first.pred_boxes, second.pred_boxes, atol=1e-4)
    second.loss.backward()
    learning = [(n, p.grad) for n, p in b.named_parameters() if p.requires_grad]
    assert [n for n, gradient in learning if gradient is None or not gradient.isfinite().all()] == []


@each(HEADS)
def test_option_shares_heads(family: tiny.Family, name: str) -> None:
    """True: three decoder layers and one head. False: three heads, and the last one's parameter counts."""
    for value, count in ((True, 1), (False, 3)):
        model = tiny.tiny_model(family, **{name: value})
        firsts = [next(head.parameters()) for head in getattr(model, HEADS[name])]
        assert len({id(p) for p in firsts}) == count
        with torch.no_grad():
            before = model(**inputs())
            for parameter in getattr(model, HEADS[name])[2].parameters():
                parameter.add_(0.5)
            after = model(**inputs())
        moved = "pred_boxes" if name == "decoder_bbox_embed_share" else "logits"
        assert not getattr(before, moved).equal(getattr(after, moved))
        first, second = before.intermediate_reference_points[:, 0], after.intermediate_reference_points[:, 0]
        assert first.equal(second) == (value is False or name == "decoder_cls_embed_share")


@each(SHAPE)
def test_option_changes_the_shape(family: tiny.Family, name: str) -> None:
    """Logits are (2, num_queries, max_text_len)."""
    for model, value in zip(pair(family, name, SHAPE[name]), SHAPE[name], strict=True):
        with torch.no_grad():
            expected = {"num_queries": 20, "max_text_len": 256} | {name: value}
            assert model(**inputs()).logits.shape == (2, *expected.values())


@each(TRAINING)
def test_option_changes_training_alone(family: tiny.Family, name: str) -> None:
    """In eval 0 and 0.5 give equal boxes; in train 0.5 gives other boxes, and other ones each time."""
    a, b = pair(family, name, TRAINING[name])
    with torch.no_grad():
        assert a(**inputs()).pred_boxes.equal(b(**inputs()).pred_boxes)
        exact = a.train()(**inputs()).pred_boxes
        torch.manual_seed(0)
        dropped = [b.train()(**inputs()).pred_boxes for _ in range(2)]
    assert not dropped[0].equal(exact)
    assert not dropped[0].equal(dropped[1])


@each(LOSS)
def test_option_changes_the_loss_alone(family: tiny.Family, name: str) -> None:
    """Equal boxes, unequal losses."""
    more = {} if name in ("loss_preset", "focal_alpha") else {"loss_preset": "custom"}
    a, b = pair(family, name, LOSS[name], **more)
    with torch.no_grad():
        first, second = a(**inputs(), labels=labels()), b(**inputs(), labels=labels())
    assert first.pred_boxes.equal(second.pred_boxes)
    assert first.loss.isfinite()
    assert second.loss.isfinite()
    assert not first.loss.equal(second.loss)


@families
def test_each_epsilon_has_its_place(family: tiny.Family) -> None:
    """One bounds the boxes from layer to layer, the other those that the heads give: a change of one moves that alone.

    A bias of 9 on a box's width leaves it at 1 - 1e-4 or nearer to 1, so that an epsilon of 1e-3 is felt.
    """
    outputs = {}
    for name in (None, "logit_epsilon", "logit_epsilon_heads"):
        epsilons = {"logit_epsilon": 1e-4, "logit_epsilon_heads": 1e-4} | ({} if name is None else {name: 1e-3})
        model = tiny.tiny_model(family, **epsilons)
        with torch.no_grad():
            for head in (model.model.encoder_output_bbox_embed, model.bbox_embed[0]):
                head.layers[-1].bias[2] += 9
            outputs[name] = model(**inputs())
    plain = outputs.pop(None)
    for name, output in outputs.items():
        same = output.intermediate_reference_points.equal(plain.intermediate_reference_points)
        assert same == (name == "logit_epsilon_heads")
        assert not output.pred_boxes.equal(plain.pred_boxes)


@families
def test_auxiliary_loss(family: tiny.Family) -> None:
    """True returns the layers before the last, with labels; the loss is the same either way."""
    a, b = pair(family, "auxiliary_loss", (False, True))
    first, second = a(**inputs(), labels=labels()), b(**inputs(), labels=labels())
    assert first.auxiliary_outputs is None
    assert [set(layer) for layer in second.auxiliary_outputs] == [{"logits", "pred_boxes"}] * 2
    assert first.loss.equal(second.loss)


@families
def test_disable_custom_kernels(family: tiny.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """True goes past the dispatch to the plain definition; both give equal boxes within 1e-5."""
    a, b = pair(family, "disable_custom_kernels", (False, True))
    dispatched: list[bool] = []
    function = deformable.multi_scale_deformable_attention

    def count(*args: Any) -> Tensor:
        dispatched.append(True)
        return function(*args)

    monkeypatch.setattr(deformable, "multi_scale_deformable_attention", count)
    with torch.no_grad():
        first = a(**inputs()).pred_boxes
        calls = len(dispatched)
        second = b(**inputs()).pred_boxes
    assert calls == 5
    assert len(dispatched) == calls
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@families
def test_init_std(family: tiny.Family) -> None:
    """Ten times the deviation changes what a new model starts from."""
    starts = []
    for value in (0.02, 0.2):
        torch.manual_seed(0)
        starts.append(own.GroundingDinoForObjectDetection(tiny.tiny_config(family, init_std=value)).state_dict())
    assert any(not starts[0][n].equal(starts[1][n]) for n in starts[0])


@families
def test_is_encoder_decoder(family: tiny.Family) -> None:
    """A mark for other libraries, which changes nothing: both values run and give equal boxes."""
    a, b = pair(family, "is_encoder_decoder", (True, False))
    with torch.no_grad():
        assert a(**inputs()).pred_boxes.equal(b(**inputs()).pred_boxes)


@families
@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions", "return_dict"])
def test_options_of_every_model(family: tiny.Family, name: str) -> None:
    """Set in the configuration they do what they do as arguments."""
    model, other = tiny.tiny_model(family), tiny.tiny_model(family, **{name: name != "return_dict"})
    with torch.no_grad():
        by_argument, by_config = model(**inputs(), **{name: name != "return_dict"}), other(**inputs())
    assert type(by_argument) is type(by_config)
    assert len(by_argument) == len(by_config)
    if name != "return_dict":
        assert list(by_argument) == list(by_config)


# --- refusals ----------------------------------------------------------------------------------------------------


@each(REFUSED)
def test_option_is_refused(family: tiny.Family, name: str) -> None:
    """The message names the option."""
    with pytest.raises(REFUSALS, match=name):
        tiny.tiny_config(family, **{name: REFUSED[name]})


@pytest.mark.parametrize(("name", "changes"), MORE_REFUSALS, ids=[str(c) for _, c in MORE_REFUSALS])
def test_value_is_refused(name: str, changes: dict[str, Any]) -> None:
    """At construction of the configuration or of the model, with a message that names the option."""
    for family in tiny.FAMILIES:
        with pytest.raises((*REFUSALS, TypeError), match=name):
            own.GroundingDinoForObjectDetection(tiny.tiny_config(family, **changes))


@each(["two_stage", "query_dim"])
def test_stock_config_with_a_refused_option(family: tiny.Family, name: str) -> None:
    """The model refuses a stock configuration in the same words."""
    config = tiny.STOCK_CONFIG[family](**tiny.tiny_options(**{name: REFUSED[name]}))
    with pytest.raises(REFUSALS, match=name):
        own.GroundingDinoForObjectDetection(config)


@families
def test_refused_option_is_not_saved(family: tiny.Family, tmp_path: Path) -> None:
    """An option set to a refused value after construction is refused before it is written."""
    config = tiny.tiny_config(family)
    with pytest.raises(REFUSALS, match="query_dim"):
        config.query_dim = 2
        config.save_pretrained(tmp_path)


def test_learned_positions_refuse_large_maps() -> None:
    """Learned positions reach 50 cells: 408 px at stride 8 are 51, which the message says with the option's name."""
    model = tiny.tiny_model("grounding-dino", position_embedding_type="learned")
    with torch.no_grad():
        assert model(**tiny.one(tiny.noise_image(72, 400))).pred_boxes.isfinite().all()
        with pytest.raises(ValueError, match=r"position_embedding_type.*51"):
            model(**tiny.one(tiny.noise_image(72, 408)))


@pytest.mark.parametrize("other", [transformers.OwlViTConfig, transformers.BertConfig])
@pytest.mark.parametrize("cls", [own.GroundingDinoForObjectDetection, own.MMGroundingDinoForObjectDetection])
def test_another_family_is_refused(cls: Any, other: Any, tmp_path: Path) -> None:
    """By its name, as a configuration and as a repo."""
    config = other()
    with pytest.raises(ValueError, match=config.model_type):
        cls(config)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=config.model_type):
        cls.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=config.model_type):
        own.GroundingDinoConfig.from_pretrained(tmp_path)


# --- on disk and between engines ---------------------------------------------------------------------------------


def as_read(config: Any) -> dict[str, Any]:
    """What a configuration says, without the version that wrote it."""
    return {k: v for k, v in config.to_dict().items() if k not in ("transformers_version", "_name_or_path")}


@families
def test_json_round_trip(family: tiny.Family, tmp_path: Path) -> None:
    """Every field, those of this package too, comes back with its value, through either class's name."""
    config = tiny.tiny_config(
        family, loss_preset="custom", class_cost=3.0, class_loss_coefficient=0.5, num_queries=7, dropout=0.25,
        phrase_boundary_token_ids=[5, 6, 7], decoder_bbox_embed_share=False, auxiliary_loss=True,
        logit_epsilon=2e-3, logit_epsilon_heads=3e-3,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for cls in (own.GroundingDinoConfig, own.MMGroundingDinoConfig):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is tiny.OWN_CONFIG[family]
        assert as_read(loaded) == as_read(config)
        assert loaded.loss_weights == config.loss_weights
    assert as_read(tiny.OWN_CONFIG[family].from_dict(config.to_dict())) == as_read(config)


@families
def test_configs_are_read_by_the_other_engine(family: tiny.Family, tmp_path: Path) -> None:
    """Stock's fields keep their values from ours to stock and from stock to ours."""
    changes = {"num_queries": 7, "decoder_layers": 2, "fusion_droppath": 0.25, "decoder_bbox_embed_share": False}
    ours, stock = tiny.tiny_config(family, **changes), tiny.STOCK_CONFIG[family](**tiny.tiny_options(**changes))
    ours.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    as_stock = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    as_ours = tiny.OWN_CONFIG[family].from_pretrained(tmp_path / "stock")
    assert type(as_stock) is tiny.STOCK_CONFIG[family]
    for name in tiny.STOCK_FIELDS[family] - {"transformers_version", "_name_or_path"}:
        a, b = getattr(as_stock, name), getattr(stock, name)
        c, d = getattr(as_ours, name), getattr(ours, name)
        if name.endswith("_config"):
            a, b, c, d = (as_read(x) for x in (a, b, c, d))
        assert a == b, name
        assert c == d, name


@families
def test_stock_config_constructs_a_model(family: tiny.Family) -> None:
    """The constructor takes stock's configuration object, leaves it alone, and keeps every value."""
    stock = tiny.STOCK_CONFIG[family](**tiny.tiny_options(num_queries=7))
    before = stock.to_dict()
    model = own.GroundingDinoForObjectDetection(stock)
    assert stock.to_dict() == before
    assert type(model.config) is tiny.OWN_CONFIG[family]
    assert model.config.num_queries == 7
    with torch.no_grad():
        assert model.eval()(**inputs()).logits.shape == (2, 7, 256)


def test_default_configs_construct_on_meta() -> None:
    """The defaults are the published tiny model's: 900 queries, width 256, 6 + 6 layers, Swin-T and BERT-base."""
    for cls in (own.GroundingDinoConfig, own.MMGroundingDinoConfig):
        with torch.device("meta"):
            model = own.GroundingDinoForObjectDetection(cls())
        assert (model.config.num_queries, model.config.d_model, model.config.decoder_layers) == (900, 256, 6)
        assert 150e6 < sum(p.numel() for p in model.parameters()) < 200e6


# --- other networks ----------------------------------------------------------------------------------------------


@families
def test_one_level_from_one_stage(family: tiny.Family) -> None:
    """`num_feature_levels=1` with one backbone stage, which crashes in stock, predicts and trains."""
    model = tiny.tiny_model(family, stages=(4,), num_feature_levels=1).train()
    output = model(**inputs(), labels=labels())
    assert output.pred_boxes.isfinite().all()
    output.loss.backward()
    assert model.model.level_embed.grad.any()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("grounding-dino", {"backbone_config": RESNET, "text_config": DISTILBERT}),
        ("mm-grounding-dino", {"backbone_config": RESNET, "text_config": ROBERTA}),
    ],
    ids=["resnet and distilbert", "resnet and roberta"],
)
def test_other_backbones_train(family: tiny.Family, changes: dict[str, Any], tmp_path: Path) -> None:
    """Each predicts, trains with a gradient wherever one is required, and survives the disk."""
    model = tiny.tiny_model(family, **changes).train()
    model(**inputs(), labels=labels()).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.eval().save_pretrained(tmp_path)
    loaded = own.GroundingDinoForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs()).pred_boxes, model(**inputs()).pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", [DISTILBERT, ROBERTA], ids=["distilbert", "roberta"])
def test_phrase_features_with_other_text_encoders(text: Any) -> None:
    """Law 6 for other encoders: a phrase's features before fusion are the same first and last in the prompt."""
    model = tiny.tiny_model("grounding-dino", text_config=text)
    seen: list[Tensor] = []
    model.model.text_projection.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    # With gradients, so that nothing comes from the memory of phrases.
    model(**tiny.one(tiny.noise_image(72, 80), [7, 8], [9], [10]))
    model(**tiny.one(tiny.noise_image(72, 80), [9], [10], [7, 8]))
    torch.testing.assert_close(seen[0][0, 1:4], seen[1][0, 5:8], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0][0, 4:6], seen[1][0, 1:3], atol=1e-5, rtol=0)
