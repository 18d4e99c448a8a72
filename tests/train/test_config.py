import json
import re
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rfp.runtime import ConfigError
from rfp.train.config import RFPix2pixModel, nets, schema, table, to_json
from rfp.train.net_config import ConvSaliencyNet, DiTConfig, ResNetSaliencyNet, UNetConfig
from rfp.train.reading import DEV, PRESETS, load_config, parse_json, presets, validate
from rfp.train.resolving import idle

ISSUE_2 = """
{"type": "RFPix2pixModel", "max_size": 128, "sample_batch_size": 8, "train_batch_size": 48, "train_minibatch_size": 24,
 "train_images": 6000000, "learning_rate": 0.0002, "num_inference_steps": 12, "timestep_sampling": "logit-normal",
 "saliency_learning_rate": 0.00005, "saliency_accuracy_threshold": 0.995, "saliency_warmup_threshold": 0.90,
 "saliency_blend_fraction": 0.0, "saliency_label_smoothing": 0.1,
 "saliency_augmentations": ["color_jitter", "grayscale", "hflip", "random_erasing"],
 "structure_pairing": false, "structure_candidates": 8,
 "velocity_net": {"type": "UNet", "model_channels": 128, "ch_mult": [1, 2, 4, 8, 8], "normalization": "GroupNorm32",
                  "activation": "SiLU", "num_res_blocks": 2, "zero_res_blocks": false, "attention_resolutions": [],
                  "num_attention_heads": 8},
 "saliency_net": {"type": "ResNetSaliencyNet", "backbone": "resnet50", "num_classes": 2, "pretrained": true,
                  "latent_channels": 512}}
"""


def complaint(values):
    with pytest.raises(ConfigError) as e:
        validate(values, "here")
    return str(e.value)


def test_the_example_of_issue_2_is_understood_and_comes_back():
    config = validate(parse_json(ISSUE_2, "issue 2"))
    full = to_json(config)
    for key, value in json.loads(ISSUE_2).items():
        if isinstance(value, dict):
            assert {k: full[key][k] for k in value} == value
        else:
            assert full[key] == value
    assert validate(json.loads(json.dumps(full))) == config
    others = [key for key in RFPix2pixModel.model_fields if key not in json.loads(ISSUE_2)]
    assert all(getattr(config, key) == getattr(RFPix2pixModel(), key) for key in others)
    assert config.velocity_net.multiple == 16 and config.steps == 125_000


def test_all_mistakes_come_at_once_each_with_its_path_and_the_nearest_key():
    text = complaint(
        {
            "max_sise": 128,
            "train_batch_size": "48",
            "learning_rate": -1,
            "timestep_sampling": "logit_normal",
            "saliency_augmentations": ["hflip", "vflip"],
            "structure_pairing": 1,
            "velocity_net": {"ch_mult": [1, "two", 0], "model_chanels": 64, "activation": "Swish", "patch_size": 3},
            "saliency_net": {"type": "ConvSaliencyNet", "latent": 8, "channels": [8, 1.5]},
        }
    )
    for line in (
        "here: 13 mistakes",
        "max_sise: unknown key; did you mean max_size?",
        "train_batch_size: input should be a valid integer, found '48'",
        "learning_rate: input should be greater than 0, found -1",
        "timestep_sampling: 'logit_normal' is not one of logit-normal, uniform; did you mean logit-normal?",
        "saliency_augmentations[1]: 'vflip' is not one of",
        "structure_pairing: input should be a valid boolean, found 1",
        "velocity_net.ch_mult[1]: input should be a valid integer, found 'two'",
        "velocity_net.ch_mult[2]: input should be greater than or equal to 1, found 0",
        "velocity_net.model_chanels: unknown key; did you mean model_channels?",
        "velocity_net.activation: 'Swish' is not one of SiLU, GELU, ReLU",
        "saliency_net.latent: unknown key; did you mean latent_channels?",
        "saliency_net.channels[1]: input should be a valid integer, found 1.5",
        "velocity_net.patch_size: 3 is not one of 1, 2, 4",
    ):
        assert line in text, text


def test_what_does_not_fit_together_comes_beside_what_is_wrong_by_itself():
    text = complaint(
        {
            "max_sise": 128,
            "train_batch_size": 4,
            "train_minibatch_size": 8,
            "structure_pairing": True,
            "coupling": "random",
            "flow_loss_weight": -1,
            "saliency_loss_weight": 0,
            "max_size": 100,
            "velocity_net": {"attention_resolutions": [3], "activation": "Swish"},
            "codec": {"type": "VAE", "l1_weight": 0, "train_batch_size": 8},
        }
    )
    assert text.splitlines()[1:] == [
        "  flow_loss_weight: input should be greater than or equal to 0, found -1",
        "  codec.train_minibatch_size is larger than train_batch_size",
        "  codec.l1_weight and perceptual_weight are both 0: nothing to learn from",
        "  velocity_net.activation: 'Swish' is not one of SiLU, GELU, ReLU",
        "  max_sise: unknown key; did you mean max_size?",
        "  velocity_net.attention_resolutions [3]: this net has the downsampling factors [1, 2, 4, 8]",
        "  train_minibatch_size is larger than train_batch_size",
        "  coupling random contradicts structure_pairing true: leave out one of the two",
    ], text  # not: the size, which nobody can judge before the net is right; nor the weights, of which one is wrong
    assert text.startswith("here: 8 mistakes")


def test_a_mistake_is_not_compared_by_the_default_that_stands_in_for_it():
    assert "1 mistake\n" in complaint({"train_batch_size": "48", "train_minibatch_size": 512})
    assert "1 mistake\n" in complaint({"velocity_net": {"ch_mult": "x", "attention_resolutions": [64]}})
    assert "1 mistake\n" in complaint({"max_size": 24, "velocity_net": "UNet"})


def test_a_key_belongs_to_the_net_of_its_type():
    text = complaint({"saliency_net": {"type": "ConvSaliencyNet", "backbone": "resnet18"}})
    assert "saliency_net.backbone: unknown key" in text
    assert complaint({"ConvSaliencyNet": 1, "UNet": 2}).count("unknown key") == 2


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (
            {"type": "ConvSaliency"},
            "'ConvSaliency' is not one of ResNetSaliencyNet, ConvSaliencyNet; did you mean Conv",
        ),
        ({"channels": [8]}, "saliency_net.type: missing; one of ConvSaliencyNet, ResNetSaliencyNet"),
        ({"type": 3}, "saliency_net.type: '3' is not one of"),
        (None, "saliency_net: "),
        ("resnet50", "saliency_net: "),
    ],
)
def test_a_classifier_of_no_known_type_is_refused(net, said):
    assert said in complaint({"saliency_net": net})


def test_the_velocity_net_is_a_unet_unless_it_says_otherwise():
    assert isinstance(validate({"velocity_net": {"model_channels": 16}}).velocity_net, UNetConfig)
    config = validate({"velocity_net": {"type": "DiT", "depth": 3, "mlp_ratio": 3}})
    assert isinstance(config.velocity_net, DiTConfig) and config.velocity_net.depth == 3
    assert validate(to_json(config)) == config
    text = complaint({"velocity_net": {"type": "DIT"}})
    assert "velocity_net.type: 'DIT' is not one of UNet, DiT; did you mean DiT?" in text
    text = complaint({"velocity_net": {"type": "DiT", "ch_mult": [1], "hidden_sise": 8}})
    assert "velocity_net.ch_mult: unknown key" in text and "hidden_sise: unknown key; did you mean hidden_size" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_size": 100}, "max_size 100 is not a multiple of the velocity net's 8"),
        ({"train_minibatch_size": 49}, "train_minibatch_size is larger than train_batch_size"),
        ({"flow_loss_weight": 0, "saliency_loss_weight": 0}, "nothing to learn from"),
        ({"velocity_net": {"attention_resolutions": [3, 8]}}, "attention_resolutions [3]: this net has the"),
        ({"velocity_net": {"attention_resolutions": [8], "num_attention_heads": 7}}, "7 does not divide the 256"),
        ({"velocity_net": {"fine_channels": 8}}, "with patch_size 1 all is done in whole pixels already"),
        ({"velocity_net": {"type": "DiT", "hidden_size": 64}}, "num_attention_heads 6 does not divide hidden_size 64"),
        ({"velocity_net": {"type": "DiT", "hidden_size": 66}}, "hidden_size 66 is not a multiple of 4"),
        (
            {"velocity_net": {"type": "DiT", "patch_size": 12}},
            "max_size 128 is not a multiple of the velocity net's 12",
        ),
        ({"structure_pairing": True, "coupling": "random"}, "coupling random contradicts structure_pairing true"),
        ({"structure_pairing": True, "coupling": "minibatch_ot"}, "contradicts structure_pairing true"),
        ({"coupling": "ot"}, "coupling: 'ot' is not one of random, structure, minibatch_ot"),
        (
            {"coupling": "structure", "structure_embedder": "backbone", "saliency_net": {"type": "ConvSaliencyNet"}},
            "structure_embedder backbone needs a saliency_net with pretrained weights",
        ),
        (
            {
                "structure_pairing": True,
                "structure_embedder": "backbone",
                "saliency_net": {"type": "ResNetSaliencyNet", "pretrained": False},
            },
            "structure_embedder backbone needs a saliency_net with pretrained weights",
        ),
        ({"structure_weights": "a.pth"}, "structure_weights is for dinov2_*, not for structure_embedder hog"),
        ({"structure_weights": "a.pth", "structure_embedder": "backbone"}, "; give saliency_net.weights"),
        ({"learning_rate": float("nan")}, "learning_rate: input should be"),
        ({"velocity_net": {"model_channels": 10**9}}, "velocity_net.model_channels: input should be less"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, said):
    assert said in complaint(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bridge_noise": 0.2, "coupling": "paired", "distill_steps": 1}, "bridge_noise"),
        ({"flow_loss_huber": 0.2, "coupling": "paired", "distill_steps": 1}, "flow_loss_huber"),
        ({"distill_perceptual_weight": 0.1, "distill_perceptual_weights": "w.pt"}, "distill_perceptual_weight"),
        ({"distill_perceptual_weights": "w.pt"}, "distill_perceptual_weights"),
        ({"codec": {"type": "VAE", "perceptual_weights": "w.pt"}}, "codec.perceptual_weights"),
        ({"eval_features": "w.pt"}, "eval_features"),
    ],
)
def test_what_a_config_says_to_no_effect_is_told(values, said):
    (line,) = idle(validate(values))
    assert line.startswith(f"without effect here, {said}: ")
    useful = {"eval_every": 5, "eval_features": "w.pt", "bridge_noise": 0.2, "flow_loss_huber": 0.2}
    assert idle(validate(useful)) == idle(validate({"coupling": "paired", "distill_steps": 1})) == []


@pytest.mark.parametrize(
    "values",
    [
        {"bridge_noise": 0.2, "flow_loss_huber": 0.2},
        {
            "coupling": "paired",
            "saliency_loss_weight": 0,
            "distill_steps": 1,
            "distill_perceptual_weight": 0.1,
            "distill_perceptual_weights": "w.pt",
        },
        {"codec": {"type": "VAE", "perceptual_weight": 0.1, "perceptual_weights": "w.pt"}},
        {"eval_features": "w.pt", "eval_every": 100},
    ],
)
def test_what_has_an_effect_is_not_said_to_have_none(values):
    assert idle(validate(values)) == []


@pytest.mark.parametrize(
    ("values", "coupling"),
    [
        ({}, "structure"),
        ({"structure_pairing": False}, "random"),
        ({"structure_pairing": True}, "structure"),
        ({"coupling": "random"}, "random"),
        ({"coupling": "structure"}, "structure"),
        ({"coupling": "structure", "structure_pairing": True}, "structure"),
        ({"coupling": None, "structure_pairing": False}, "random"),
        ({"coupling": "minibatch_ot"}, "minibatch_ot"),
    ],
)
def test_the_coupling_is_what_either_key_says(values, coupling):
    config = validate(values)
    assert config.pairs_by == coupling and validate(to_json(config)) == config


def test_json_that_is_none_is_refused_with_its_place(tmp_path):
    for text, said in (
        ('{\n "max_size": 64,\n}', "line 3, column 1: not JSON"),
        ('{"max_size": 64, "max_size": 32}', "max_size: given twice"),
        ('{"velocity_net": {"ch_mult": [1], "ch_mult": [2]}}', "ch_mult: given twice"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "not a config"),
        ('{"max_size": ' + "9" * 5000 + "}", "not a config"),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ConfigError, match=re.escape(said)) as e:
            load_config(str(tmp_path / "c.json"))
        assert "c.json" in str(e.value)
    (tmp_path / "c.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(str(tmp_path / "c.json"))


def test_set_takes_paths_json_and_plain_strings(tmp_path):
    config = load_config(
        "tiny",
        [
            "velocity_net.model_channels=16",
            "velocity_net.ch_mult=[1, 2]",
            'saliency_net={"type": "ResNetSaliencyNet", "backbone": "resnet18"}',
            "saliency_net.backbone=resnet34",
            "saliency_net.weights=/a b/ü.pth",
            "structure_pairing=false",
            "learning_rate=1e-3",
        ],
    )
    assert config.velocity_net.model_channels == 16 and config.velocity_net.ch_mult == [1, 2]
    assert isinstance(config.saliency_net, ResNetSaliencyNet) and config.saliency_net.backbone == "resnet34"
    assert config.saliency_net.weights == "/a b/ü.pth" and not config.structure_pairing
    assert config.learning_rate == 1e-3


@pytest.mark.parametrize("order", [1, -1])
def test_a_net_that_set_gives_another_type_has_the_defaults_of_that_type(order):
    tiny = load_config("tiny", ["velocity_net.type=DiT", "velocity_net.hidden_size=96"][::order])
    assert tiny.velocity_net == DiTConfig(hidden_size=96)
    assert load_config("dit", ["velocity_net.type=UNet"]).velocity_net == UNetConfig()
    assert load_config("tiny", ["velocity_net.type=UNet"]) == load_config("tiny")
    assert load_config("latent", ["codec.type=Identity"]).codec.type == "Identity"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("velocity_net.model_chanels=16", "velocity_net.model_chanels: unknown key; did you mean model_channels?"),
        ("max_size", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("max_size.x=3", "max_size has no keys of its own"),
        ("velocity_net.ch_mult[0]=3", "unknown key; did you mean ch_mult?"),
        ("max_size=sixty", "max_size: input should be a valid integer, found 'sixty'"),
        ("max_size=" + "9" * 5000, "max_size: input should be a valid integer"),
        ("max_size=" + "[" * 100_000, "max_size: input should be a valid integer"),
        ("learning_rate=NaN", "learning_rate"),
    ],
)
def test_a_wrong_set_is_refused(assignment, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config("tiny", [assignment])


def test_dev_comes_before_set():
    config = load_config("tiny", ["log_every=7"], dev=True)
    assert config.log_every == 7 and config.train_batch_size == DEV["train_batch_size"]


def test_presets_validate_and_name_the_schema():
    assert "small" in presets() and "tiny" in presets() and "schema" not in presets()
    for name in presets():
        load_config(name)
        text = (PRESETS / f"{name}.json").read_text(encoding="utf-8")
        assert (PRESETS / json.loads(text)["$schema"]).is_file()
    for name, said in (
        ("smal", "did you mean small"),
        ("schema", "Presets: "),
        ("x" * 5000, "Presets: "),
        ("~nobody/x", "Presets"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(name)


def test_a_file_is_found_by_path_and_before_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"max_size": 32}')
    assert load_config("mine.json").max_size == 32


def test_the_schema_on_disk_is_the_models():
    assert json.loads((PRESETS / "schema.json").read_text(encoding="utf-8")) == schema()


def test_the_table_lists_every_key_with_its_default_and_meaning():
    rows = table().splitlines()
    assert nets()["velocity_net"] == {"UNet": UNetConfig, "DiT": DiTConfig}
    models = [("", RFPix2pixModel)]
    models += [(f"{key}.", model) for key, choices in nets().items() for model in choices.values()]
    for prefix, model in models:
        for name, field in model.model_fields.items():
            assert field.description or name == "type", name
            if name not in ("type", "schema_", *nets()):
                assert any(r.startswith(f"| `{prefix}{name}` | `") and field.description in r for r in rows), name
    assert all(row.count("|") == 4 for row in rows)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
keys = st.sampled_from(
    [
        "UNet",
        "DiT",
        "ConvSaliencyNet",
        "type",
        *UNetConfig.model_fields,
        *DiTConfig.model_fields,
        *ConvSaliencyNet.model_fields,
        *RFPix2pixModel.model_fields,
    ]
)
junk = st.dictionaries(
    keys | st.text(max_size=8), json_values | st.dictionaries(keys, json_values, max_size=4), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(junk)
def test_junk_is_refused_with_a_config_error_or_understood(values):
    try:
        config = validate(values)
    except ConfigError as e:
        assert "mistake" in str(e)
    else:
        assert validate(to_json(config)) == config


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.tuples(keys, json_values).map(lambda p: f"{p[0]}={p[1]}"))
def test_no_set_raises_anything_else(assignment):
    with suppress(ConfigError):
        load_config("tiny", [assignment])


def test_mistakes_in_set_come_with_all_the_others():
    with pytest.raises(ConfigError, match="4 mistakes") as e:
        load_config("tiny", ["max_size", "train_images=0", "learning_rate.x=1", "max_sise=64"])
    for said in ("expected KEY=VALUE", "train_images: ", "has no keys of its own", "did you mean max_size?"):
        assert said in str(e.value)
