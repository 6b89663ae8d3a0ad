"""Small models of the three libraries with every rate on, and their inputs, for sweeps and laws."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import warnings
from collections import defaultdict

import torch

RATE = 0.1


# transformers: the default configuration of each architecture, shrunk by the names of its entries.

_SIZES = {
    r"vocab_size$|.*vocab_size_or_config_json_file": 99,
    (
        r"(num|n)_(hidden_)?layers?|.*_layers$|n_layers?|num_.*_(layers|blocks)|"
        r".*num_hidden_layers|num_blocks|depth"
    ): 2,
    r".*num_key_value_heads|.*num_kv_heads": 2,
    r".*num_attention_heads|n_heads?|num_heads|.*_attention_heads|.*num_heads|.*_heads$": 2,
    r"hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|.*_hidden_size|hidden_dim|.*_embed_dim|"
    r"embedding_size|.*_embedding_size|"
    r"d_embed|width|model_dim|projection_dim|.*projection_dim|encoder_width|qk_channels|v_channels|"
    r"d_latents|conv_dim|.*hidden_dim|.*_dim_model": 32,
    (
        r"intermediate_size|.*ffn_dim|d_ff|d_inner|n_inner|ffn_hidden_size|.*intermediate_size|"
        r".*mlp_dim|.*_ffn_size|dim_feedforward|hidden_dim_ff"
    ): 64,
    r"head_dim|d_kv|d_head|attention_head_size|kv_channels|.*_head_dim|key_value_proj_dim": 16,
    (
        r"max_position_embeddings|n_positions|max_source_positions|max_target_positions|"
        r"max_seq_len|n_ctx"
    ): 128,
    r"image_size|img_size": 32,
    r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|.*num_experts": 4,
    r"num_experts_per_tok|moe_topk|moe_k|experts_per_token": 2,
    r"num_queries|num_latents|num_query_tokens|num_mel_bins_": 8,
    r"q_lora_rank|kv_lora_rank": 16,
    r"qk_nope_head_dim|qk_rope_head_dim|v_head_dim": 16,
}


_SPECIAL = {  # what the names do not tell
    "autoformer": {"prediction_length": 8, "context_length": 16},
    "informer": {"prediction_length": 8, "context_length": 16},
    "time_series_transformer": {"prediction_length": 8, "context_length": 16},
    "bit": {"num_groups": 4},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "esm": {"vocab_size": 99, "pad_token_id": 1, "mask_token_id": 32},
    "mobilebert": {
        "embedding_size": 32,
        "true_hidden_size": 32,
        "intra_bottleneck_size": 32,
        "use_bottleneck": False,
    },
    "swin": {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "donut-swin": {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "sam": {},
    "wav2vec2-bert": {"feature_projection_input_dim": 80},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1},
    "reformer": {"axial_pos_embds": False},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "xmod": {"default_language": "en_XX"},
    "vits": {"vocab_size": 99},
}


def _shrink(config, vocabulary=99):
    from transformers import PretrainedConfig

    _set(config, "use_cache", False)
    heads = getattr(config, "num_attention_heads", None)
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(config, name, None)
        many = re.match(
            (
                r"qwen2_vl|qwen2_5_vl|qwen2_5_omni|glm4v(?!_moe)|glm46v|glm_image|glm_ocr|"
                r"glmga|paddleocr_vl"
            ),
            str(config.model_type),
        )
        if isinstance(rope, dict) and ("mrope_section" in rope or many) and isinstance(heads, int):
            _set(config, "head_dim", 16)
            rope["mrope_section"] = [2, 3, 3]

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _shrink(value)
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, (int, float)) and "drop" in name and 0 <= value < 1:
            _set(config, name, RATE)
        elif name.endswith("_token_id") or name.endswith("_token_index") or name.endswith("_idx"):
            if isinstance(value, int) and value >= vocabulary:
                _set(config, name, 3 + len(name) % 50)
        elif isinstance(value, int):
            for pattern, size in _SIZES.items():
                if re.fullmatch(pattern, name) and value > size:
                    _set(config, name, size)
                    break
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
            if name in ("depths", "num_blocks", "layers", "num_layers", "stage_num_blocks"):
                _set(config, name, type(value)(1 for _ in value))
            elif name in (
                "hidden_sizes",
                "embed_dims",
                "encoder_hidden_sizes",
                "decoder_hidden_sizes",
                "embed_dim",
                "stage_out_channels",
            ):
                _set(
                    config,
                    name,
                    type(value)(16 * 2**i if name != "x" else 16 for i in range(len(value))),
                )
            elif name in ("num_attention_heads", "num_heads"):
                _set(config, name, type(value)(2 for _ in value))
            elif name == "conv_dim":
                _set(config, name, type(value)(32 for _ in value))
    return config


def _set(config, name, value):
    with contextlib.suppress(Exception):  # a property, or checked against another entry
        setattr(config, name, value)


def transformers_names():
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


def transformers_model(model_type):
    """A model and the keyword inputs of a forward that works, or an exception."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    config = _shrink(getattr(transformers, CONFIG_MAPPING_NAMES[model_type])())
    for name, value in _SPECIAL.get(model_type, {}).items():
        _set(config, name, value)
    names = MODEL_MAPPING_NAMES[model_type]
    cls = getattr(transformers, names[0] if isinstance(names, (tuple, list)) else names)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
    if size > 30_000_000:
        raise ValueError(f"{size:,} parameters: the configuration does not shrink")
    torch.manual_seed(0)
    model = cls(config)
    for module in model.modules():  # no data-dependent initialisation, no layer that starts as zero
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                with torch.no_grad():
                    if not torch.isfinite(parameter).all() or (parameter == 0).all():
                        parameter.normal_(0.0, 0.02)
    return model, _inputs(model, config)


def _inputs(model, config):
    """The first inputs that a forward takes."""
    parameters = inspect.signature(model.forward).parameters
    ids = torch.randint(5, 60, (2, 12))
    image = (
        getattr(config, "image_size", None)
        or getattr(getattr(config, "vision_config", None), "image_size", None)
        or 64
    )
    image = image if isinstance(image, int) else image[0]
    channels = (
        getattr(config, "num_channels", 3)
        if isinstance(getattr(config, "num_channels", 3), int)
        else 3
    )
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
    candidates = []
    pixels = [
        (2, channels, image, image),
        (2, channels, 64, 64),
        (2, channels, 224, 224),
        (2, getattr(config, "num_frames", 8), channels, image, image),
    ]
    audio = [(2, 4000), (2, 16000)]
    features = [
        (2, bins, 2 * getattr(config, "max_source_positions", 64)),
        (2, 64, bins),
        (2, 1, 1024, 128),
        (2, bins, 3000),
    ]
    text = {"input_ids": ids}
    if "decoder_input_ids" in parameters:
        text["decoder_input_ids"] = ids
    if "input_ids" in parameters:
        candidates.append(text)
        if "attention_mask" in parameters:
            candidates.append(text | {"attention_mask": torch.ones_like(ids)})
        if "bbox" in parameters:
            candidates.append(text | {"bbox": torch.zeros(2, 12, 4, dtype=torch.long)})
    if "pixel_values" in parameters:
        for shape in pixels:
            candidates.append({"pixel_values": torch.randn(shape)})
            if "input_ids" in parameters:
                candidates.append(text | {"pixel_values": torch.randn(shape)})
    if "input_values" in parameters:
        candidates += [
            {"input_values": torch.randn(shape)} for shape in [*audio, (2, 1, 4000), (2, 1024, 128)]
        ]
        candidates += [
            {"input_values": torch.randn(2, 16000), "decoder_input_ids": ids},
            {"input_values": torch.randn(2, 16000), "decoder_input_values": torch.randn(2, 10, 80)},
        ]
    if "input_features" in parameters:
        for shape in features:
            candidates.append({"input_features": torch.randn(shape)})
            if "decoder_input_ids" in parameters:
                candidates.append({"input_features": torch.randn(shape), "decoder_input_ids": ids})
            if "input_ids" in parameters:
                candidates.append(text | {"input_features": torch.randn(shape)})
    if "past_values" in parameters:
        length = getattr(config, "context_length", 64)
        width = getattr(config, "num_input_channels", getattr(config, "input_size", 1))
        candidates += [
            {"past_values": torch.randn(2, length, width)},
            {"past_values": torch.randn(2, length)},
        ]
    if "inputs" in parameters:
        candidates += [
            {"inputs": torch.randn(2, 12, getattr(config, "d_model", 32))},
            {"inputs": ids},
        ]
    if "inputs_embeds" in parameters:
        candidates.append({"inputs_embeds": torch.randn(2, 12, getattr(config, "hidden_size", 32))})
    if "hidden_states" in parameters:
        candidates.append({"hidden_states": torch.randn(2, 12, getattr(config, "hidden_size", 32))})
    if "grid_thw" in parameters:
        patch = getattr(config, "patch_size", 14)
        width = (
            getattr(config, "in_channels", getattr(config, "in_chans", channels))
            * getattr(config, "temporal_patch_size", 1)
            * patch**2
        )
        for names in (width, channels * patch**2):
            candidates.append(
                {
                    next(iter(parameters)): torch.randn(16, names),
                    "grid_thw": torch.tensor([[1, 4, 4]]),
                }
            )
    if "pixel_values_videos" in parameters:
        candidates.append(
            {
                "pixel_values_videos": torch.randn(
                    2, getattr(config, "frames_per_clip", 8), channels, image, image
                )
            }
        )
    error = None
    model.train()
    for candidate in candidates:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                model(**candidate)
        except Exception as failed:
            error = error or failed
        else:
            return candidate
    raise error or ValueError(f"no known input among {list(parameters)}")


# timm: the smallest model of each module, with every rate that it takes.

_TIMM_RATES = (
    "drop_rate",
    "drop_path_rate",
    "attn_drop_rate",
    "proj_drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "drop_block_rate",
    "head_drop_rate",
    "mlp_drop_rate",
    "block_drop_rate",
    "dropout",
)


_TIMM_SMALLEST = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano
    crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deepseek_vit_412m
    deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
    ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hieradet_small
    hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
    lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mobilenetv3_small_050
    mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
    nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100
    samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet
    test_coatnet test_convnext test_mambaout test_nfnet test_resnet test_vit test_vit_relpos
    tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11
    visformer_tiny vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41p
    xcit_nano_12_p8_224
"""


def timm_smallest(module, names):
    """The smallest model of a module: as measured, or, for a new module, the first called small."""
    measured = [name for name in names if name in _TIMM_SMALLEST.split()]
    small = [
        name
        for name in names
        if any(word in name for word in ("test_", "pico", "atto", "nano", "tiny", "small", "18"))
    ]
    return (measured or small or names)[0]


# Models that refuse images of 96 pixels.
_TIMM_OTHER_SIZE = {
    "crossvit_tiny_240": 240,
    "deepseek_vit_412m": 98,
    "efficientformer_l1": 224,
    "halonet_h1": 256,
    "levit_128s": 224,
}


def timm_size(name):
    """The side of a model's images: 96 pixels, or more where it refuses that."""
    return _TIMM_OTHER_SIZE.get(name, 96)


def timm_modules():
    import timm
    from timm.models._registry import _model_to_module

    modules = defaultdict(list)
    for name in timm.list_models():
        modules[_model_to_module[name]].append(name)
    return dict(sorted(modules.items()))


def timm_model(name):
    """A model with every rate that its builder takes, and an input."""
    import timm

    size = timm_size(name)
    rates = dict.fromkeys(_TIMM_RATES, RATE)
    if "samvit" in name:  # it adds a position to each patch after dropping some
        del rates["patch_drop_rate"]
    options = rates | {"img_size": size}
    while True:
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, **options)
            break
        except TypeError as error:
            unknown = [word for word in re.findall(r"'(\w+)'", str(error)) if word in options]
            if not unknown:
                raise
            for word in unknown:
                del options[word]
    if _parameters(model) * size**2 > 40_000_000 * 224**2:
        model = model.to("meta")
    images = torch.randn(2, 3, size, size, device=next(model.parameters()).device)
    return model, images, {rate: options[rate] for rate in rates if rate in options}


# torchvision: the registered models, with every rate that they take.

_TORCHVISION_RATES = (
    "dropout",
    "stochastic_depth_prob",
    "attention_dropout",
    "drop_rate",
    "drop_connect_rate",
)


def torchvision_names():
    """The smallest torchvision model of every set of layer classes.

    The other models of a set have the same layers in other sizes or with other options. For
    example, ResNet-101 is a ResNet-50 with more blocks.
    """
    import torchvision

    smallest = {}
    # RegNets are slow to build. They are of two kinds, in many sizes.
    left_out = re.compile(r"regnet_._(?!400mf).*")
    for name in torchvision.models.list_models():
        if left_out.fullmatch(name):
            continue
        model = _torchvision_build(name, "meta")[0]
        layers = frozenset(type(module) for module in model.modules())
        size = _parameters(model)
        smallest[layers] = min(smallest.get(layers, (size, name)), (size, name))
    return sorted(name for _, name in smallest.values())


def torchvision_model(name):
    """A model with every rate that its builder takes, and what it takes.

    A large model is on the meta device.
    """
    needs_values = any(
        word in name for word in ("rcnn", "ssd", "retina", "fcos", "raft", "quantized")
    )
    device = "cpu" if needs_values else "meta"
    model, rates = _torchvision_build(name, device)
    if device == "meta" and _parameters(model) < 40_000_000:
        device = "cpu"
        torch.manual_seed(0)
        model, rates = _torchvision_build(name, device)
    return model.to(device), _torchvision_inputs(name, device), rates


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _torchvision_build(name, device):
    """The model on a device, and the rates that its builder takes."""
    import torchvision

    rates = dict.fromkeys(_TORCHVISION_RATES, RATE)
    options = {"weights": None}
    if any(word in name for word in ("resnet", "mobilenet", "vgg")):
        options["weights_backbone"] = None
    if any(word in name for word in ("rcnn", "retina", "fcos")):
        options |= {"min_size": 96, "max_size": 128}  # else images are resized to 800 pixels
    while True:
        try:
            # A RegNet reads values while it is built.
            with torch.device("cpu" if "regnet" in name else device):
                return torchvision.models.get_model(name, **options, **rates), rates
        except TypeError as error:
            unknown = re.search(
                r"unexpected keyword argument '(\w+)'|multiple values for keyword argument '(\w+)'",
                str(error),
            )
            word = (unknown[1] or unknown[2]) if unknown else None
            if word in rates:
                del rates[word]
            elif word in options:
                del options[word]
            else:
                raise


def _torchvision_inputs(name, device):
    def images(*shape):
        return torch.randn(shape, device=device)

    if "raft" in name:
        return images(1, 3, 128, 128), images(1, 3, 128, 128)
    if any(word in name for word in ("rcnn", "ssd", "retina", "fcos")):
        target = {"boxes": torch.tensor([[5.0, 5.0, 50.0, 50.0]]), "labels": torch.tensor([1])}
        if "mask" in name:
            target["masks"] = torch.ones(1, 96, 96, dtype=torch.uint8)
        if "keypoint" in name:
            target["keypoints"] = torch.full((1, 17, 3), 20.0)
        count = 2 if "ssd" in name else 1  # its batch norm needs two
        return [images(3, 96, 96) for _ in range(count)], [target] * count
    if any(word in name for word in ("r3d", "mc3", "r2plus1d", "s3d")):
        return images(2, 3, 14, 64, 64) if name != "s3d" else images(2, 3, 14, 224, 224)
    if "mvit" in name:
        return images(1, 3, 16, 224, 224)
    if "swin3d" in name:
        return images(1, 3, 4, 64, 64)
    if "inception" in name:
        return images(2, 3, 299, 299)
    return (
        images(2, 3, 224, 224)
        if any(w in name for w in ("vit", "lraspp", "alexnet", "squeezenet", "googlenet", "vgg"))
        else images(2, 3, 96, 96)
    )


# A few by hand, for the tests that need one.


def bert(cls="BertModel", depth=2, **options):
    import transformers

    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=16,
        **options,
    )
    torch.manual_seed(0)
    return getattr(transformers, cls)(config).train()


def gpt2(cls="GPT2Model"):
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, cls)(
        transformers.GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    ).train()


def distilbert():
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=60, max_position_embeddings=32, n_layers=2, n_heads=2, dim=16, hidden_dim=16
    )
    torch.manual_seed(0)
    return transformers.DistilBertModel(config).train()


def vit(cls="ViTModel"):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.2,
    )
    torch.manual_seed(0)
    return getattr(transformers, cls)(config).train()
