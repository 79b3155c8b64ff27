"""Networks of timm, torchvision and transformers, where they are installed: from_module gives what they are in eval."""

import warnings

import pytest
import torch
from helpers import F64
from models import laws
from models.laws import Row, ids, named, padding, reals
from torch import nn

import fmeta
from fmeta.core.tree import tree_map

SMALLEST = {  # of each family of timm, by its file; those that come later are looked for
    "beit": "beit_base_patch16_224", "byoanet": "halonet_h1", "byobnet": "test_byobnet", "cait": "cait_xxs24_224",
    "coat": "coat_tiny", "convit": "convit_tiny", "convmixer": "convmixer_768_32", "convnext": "test_convnext",
    "cpubone": "cpubone_nano", "crossvit": "crossvit_tiny_240", "csatv2": "csatv2", "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny", "davit": "davit_tiny", "deepseek_vit": "deepseek_vit_412m", "deit":
    "deit_tiny_patch16_224", "densenet": "densenet121", "dla": "dla46x_c", "dpn": "dpn48b", "edgenext":
    "edgenext_xx_small", "efficientformer": "efficientformer_l1", "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet", "efficientvim": "efficientvim_m1", "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0", "eva": "vit_tiny_patch16_dinov3_qkvb", "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8", "focalnet": "focalnet_tiny_srf", "gcvit": "gcvit_xxtiny", "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050", "hardcorenas": "hardcorenas_b", "hgnet": "hgnetv2_b0", "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny", "hrnet": "hrnet_w18_small", "iformer": "iformer_t", "inception_next":
    "inception_next_atto", "inception_resnet_v2": "ens_adv_inception_resnet_v2", "inception_v3": "adv_inception_v3",
    "inception_v4": "inception_v4", "lcnetv2": "lcnetv2_small", "levit": "levit_128s", "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout", "maxxvit": "test_coatnet", "metaformer": "poolformerv2_s12", "mlp_mixer":
    "gmlp_ti16_224", "mobilenetv3": "mobilenetv3_small_050", "mobilenetv5": "mobilenetv5_base", "mobilevit":
    "mobilevit_xxs", "mvitv2": "mvitv2_tiny", "naflexvit": "naflexvit_base_patch16_parfac_gap", "nasnet":
    "nasnetalarge", "nest": "jx_nest_tiny", "nextvit": "nextvit_small", "nfnet": "test_nfnet", "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large", "pvt_v2": "pvt_v2_b0", "qwen3_vit": "qwen3_vit_88m", "rdnet": "rdnet_tiny", "regnet":
    "regnetx_002", "repghost": "repghostnet_050", "repvit": "repvit_m1", "res2net": "res2next50", "resnest":
    "resnest14d", "resnet": "test_resnet", "resnetv2": "resnetv2_18", "rexnet": "rexnet_100", "selecsls": "selecsls42",
    "senet": "legacy_seresnet18", "sequencer": "sequencer2d_s", "shvit": "shvit_s1", "sknet": "skresnet18", "starnet":
    "starnet_s050", "swiftformer": "swiftformer_xs", "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256", "swin_transformer_v2_cr": "swinv2_cr_tiny_224", "tiny_vit":
    "tiny_vit_5m_224", "tnt": "tnt_s_legacy_patch16_224", "tresnet": "tresnet_m", "twins": "twins_svt_small", "vgg":
    "vgg11", "visformer": "visformer_tiny", "vision_transformer": "test_vit", "vision_transformer_hybrid":
    "vit_tiny_r_s16_p8_224", "vision_transformer_relpos": "test_vit_relpos", "vision_transformer_sam":
    "samvit_base_patch16_224", "vitamin": "vitamin_small_224", "volo": "volo_d1_224", "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception", "xception_aligned": "xception41p", "xcit": "xcit_nano_12_p8_224",
}  # fmt: skip
SHALLOW = ("deepseek_vit", "gemma4_vit")  # of hundreds of millions of parameters: two blocks of them
VISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _the_libraries_own_warnings():
    with warnings.catch_warnings(action="ignore"):
        yield


def experienced(net):
    """With statistics that have seen data, and without layers of zeros, which would hide what is before them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for p in net.parameters():
            if not p.any():
                p.normal_(0.0, 0.02)
    return net.eval()


def pictures(net, size):
    """The smallest that a network takes, and what it makes of them."""
    for side in (64, 96, 128, 160, size):
        x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
        try:
            return x, net(x)
        except (RuntimeError, AssertionError, ValueError) as error:
            last = error
    raise last


def near(found, expected):
    assert float(expected.abs().max()) > 0.0
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@torch.no_grad()
def frozen_is_eval(net, size):
    """For the network by itself, and for two tasks, the second with weights of its own."""
    x, expected = pictures(experienced(net), size)
    model = fmeta.from_module(net, norm="frozen")
    params = model.init(fmeta.key(0))
    near(model.apply(params, x), expected)
    other = {n: 0.9 * p for n, p in params.items()}
    found = fmeta.over_tasks(model.apply, shared=())(
        tree_map(lambda a, b: torch.stack([a, b]), params, other), torch.stack([x, x])
    )
    near(found[0], expected)
    near(found[1], model.apply(other, x))


def of_timm(timm, family, name):
    options = {"depth": 2} if family in SHALLOW else {}
    return timm.create_model(name, **options)


@pytest.mark.parametrize("family", SMALLEST)
def test_the_smallest_network_of_a_timm_family_is_itself(timm, family):
    name = SMALLEST[family]
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    net = of_timm(timm, family, name)
    frozen_is_eval(net, (net.pretrained_cfg.get("input_size") or (3, 224, 224))[-1])


def test_families_that_timm_has_since_are_themselves(timm):
    for family in sorted(set(timm.list_modules()) - set(SMALLEST)):
        sizes = {}
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        net = timm.create_model(min(sizes, key=sizes.get))
        frozen_is_eval(net, (net.pretrained_cfg.get("input_size") or (3, 224, 224))[-1])


@pytest.mark.parametrize("name", VISION)
def test_a_network_of_torchvision_is_itself(torchvision, name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    frozen_is_eval(torchvision.models.get_model(name, **options), 224)


# ---- the whole law, for networks that are small enough -----------------------------------------------


def timm_row(name, **options):
    """Dropout and stochastic depth at one rate."""

    def build(timm, rate):
        net = timm.create_model(name, num_classes=3, drop_rate=rate, drop_path_rate=rate, **options)
        return experienced(net.double())

    return build


TIMM = {
    "test_vit": timm_row("test_vit", img_size=32),
    "test_convnext": timm_row("test_convnext"),
    "test_resnet": timm_row("test_resnet"),
    "test_efficientnet": timm_row("test_efficientnet"),
}


class Last(nn.Module):
    """The features that an encoder of transformers ends in."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, **inputs):
        return self.encoder(**inputs).last_hidden_state


SIZES = {  # of a tiny network, by the names that transformers has for them
    "vocab_size": 11, "type_vocab_size": 2, "max_position_embeddings": 16, "position_buckets": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "hidden_size": 8, "dim": 8, "d_model": 8, "embedding_size": 6, "input_embedding_size": 6,
    "output_embedding_size": 6, "num_hidden_layers": 2, "n_layers": 2, "num_layers": 2, "num_attention_heads": 2,
    "n_heads": 2, "num_heads": 2, "intermediate_size": 12, "hidden_dim": 12, "d_ff": 12, "d_kv": 4,
    "pos_embed_rescale": None, "image_size": 8, "patch_size": 4, "num_channels": 2, "num_stages": 2,
    "hidden_sizes": [4, 8], "depths": [1, 1],
}  # fmt: skip
ATTENTION = ("attention_dropout", "attention_probs_dropout_prob")
RATES = (
    "dropout", "dropout_rate", "hidden_dropout", "hidden_dropout_prob", "embedding_dropout", "mlp_dropout",
    "drop_path_rate", *ATTENTION,
)  # fmt: skip


def encoder(transformers, kind, rate=0.0, where=RATES):
    known = transformers.AutoConfig.for_model(kind).to_dict()
    rates = {n: rate if n in where else 0.0 for n in RATES}
    chosen = {n: v for n, v in (SIZES | rates).items() if n in known}
    config = transformers.AutoConfig.for_model(kind, **chosen)
    net = transformers.T5EncoderModel(config) if kind == "t5" else transformers.AutoModel.from_config(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 2:
                p.normal_(0.0, 0.4)  # attention that is far from even
    return experienced(Last(net).double())


def tokens(mask):
    return named(input_ids=lambda *at: 3 + ids(8, 5)(*at), attention_mask=mask)


def flags(*at):
    """[example, length], 1 where there is a token: what a tokenizer gives."""
    return (~padding(5)(*at)).long()


def added(*at):
    """[example, 1, length, length], added to the scores."""
    nothing = padding(5)(*at)[:, :, None, None, :]
    return torch.zeros_like(nothing, dtype=F64).masked_fill(nothing, -1e9).expand(-1, -1, 1, 5, 5)


PICTURES = named(pixel_values=reals(2, 8, 8))
ENCODERS = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "electra", "albert", "mpnet", "distilbert", "t5", "modernbert", "roformer",
         "convbert", "rembert", "clip_text_model"),
        tokens(added),
    ),
    **dict.fromkeys(("deberta", "deberta-v2"), tokens(flags)),
    "fnet": named(input_ids=ids(11, 5)),
    **dict.fromkeys(
        ("vit", "deit", "dinov2", "dinov3_vit", "ijepa", "clip_vision_model", "siglip_vision_model", "convnextv2",
         "resnet"),
        PICTURES,
    ),
}  # fmt: skip
LOOKING = ("bert", "roberta", "mpnet", "distilbert", "t5", "modernbert", "esm", "longformer")  # at a mask of flags
VALUES = (
    laws.over_tasks_it_gives_what_the_module_gives_in_eval,
    laws.meta_gradients_are_those_of_a_loop_over_the_module,
    laws.without_rates_its_noise_is_the_module_in_training,
)
NOISE = (laws.its_noise_comes_from_the_key, laws.its_noise_is_distributed_as_the_modules)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_transformers_is_itself(transformers, name):
    norm = "frozen" if name == "resnet" else None
    row = Row(lambda rate: encoder(transformers, name, rate), ENCODERS[name], norm, random=True)
    for part in VALUES if norm is None else VALUES[:2]:
        part(row)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "resnet"])
def test_the_noise_of_an_encoder_of_transformers_is_drawn(transformers, name):
    row = Row(lambda rate: encoder(transformers, name, rate), ENCODERS[name], random=True)
    for part in NOISE:
        part(row)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("t5", "fnet", "convnextv2", "resnet")])
def test_dropout_within_attention_is_drawn(transformers, name):
    row = Row(lambda rate: encoder(transformers, name, rate, ATTENTION), ENCODERS[name], random=True)
    laws.its_noise_comes_from_the_key(row)


@pytest.mark.parametrize("name", LOOKING)
def test_an_encoder_that_looks_at_its_mask_says_so(transformers, name):
    row = Row(lambda: encoder(transformers, name), tokens(flags), or_refused=("encoder",))
    laws.meta_gradients_are_those_of_a_loop_over_the_module(row)


@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm_is_itself_with_its_noise(timm, name):
    row = Row(lambda rate: TIMM[name](timm, rate), reals(3, 32, 32), "frozen", random=True)
    for part in (*VALUES[:2], *NOISE):
        part(row)
