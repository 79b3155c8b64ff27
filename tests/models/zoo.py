"""Modules as people build them: the table that the law "a module is itself" runs over."""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from helpers import F64
from models.laws import Call, Row, both, ids, named, padding, positive, reals
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


def behind(layer, inputs=4, width=6):
    """A layer, which may have no parameters, behind a linear one: `[example, width]`."""
    return nn.Sequential(nn.Linear(inputs, width), layer)


def convolved(layer, dims=2, channels=4):
    """A layer behind a convolution that keeps the size, of 2 channels."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(conv(2, channels, 3, padding=1), layer)


def used(module, *shape, times=3):
    """With running statistics of some batches."""
    module.double().train()
    for _ in range(times):
        module(1.0 + 2.0 * torch.randn(5, *shape, dtype=F64))
    return module


def moved(layer):
    """Scales and shifts that show."""
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def after_steps(module, *shape, times=30):
    return used(module, *shape, times=times)


ONCE = ("first_order()",)  # what an error says where torch has no second derivative
VECTOR, PICTURE, LINE, VOLUME, TOKENS = reals(4), reals(2, 6, 6), reals(2, 8), reals(2, 4, 4, 4), reals(5, 4)


# ---- layers of torch.nn ----------------------------------------------------------------------------


def linears():
    return {
        "Linear": Row(lambda: nn.Linear(4, 3), VECTOR),
        "Linear-no-bias": Row(lambda: nn.Linear(4, 3, bias=False), VECTOR),
        "Linear-on-sequences": Row(lambda: nn.Linear(4, 3), TOKENS),
        "Bilinear": Row(lambda: nn.Bilinear(4, 3, 2), both(reals(4), reals(3))),
        "Flatten-Unflatten": Row(
            lambda: nn.Sequential(
                nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 12), nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 2, 2)
            ),
            PICTURE,
        ),
        "Identity": Row(lambda: behind(nn.Identity()), VECTOR),
        "LazyLinear": Row(lambda: used(nn.LazyLinear(3), 4), VECTOR),
    }


def convolutions():
    return {
        "Conv1d": Row(lambda: nn.Conv1d(2, 3, 3, padding="same", dilation=2, padding_mode="circular"), LINE),
        "Conv2d": Row(lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), PICTURE),
        "Conv2d-groups": Row(lambda: nn.Conv2d(2, 4, (3, 2), groups=2, bias=False), PICTURE),
        "Conv2d-depthwise": Row(lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 3, 1)), PICTURE),
        "Conv2d-reflect": Row(lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), PICTURE),
        "Conv3d": Row(lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), VOLUME),
        "ConvTranspose1d": Row(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), LINE),
        "ConvTranspose2d": Row(lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, groups=2), PICTURE),
        "ConvTranspose3d": Row(lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2), VOLUME),
        "Unfold": Row(lambda: convolved(nn.Unfold(3, stride=2, padding=1)), PICTURE),
        "Fold": Row(lambda: nn.Sequential(nn.Linear(8, 9), nn.Fold((4, 4), 2)), reals(8, 8)),
        "ZeroPad2d": Row(lambda: convolved(nn.ZeroPad2d((1, 2, 0, 1))), PICTURE),
        "ConstantPad1d": Row(lambda: convolved(nn.ConstantPad1d(2, 0.7), 1), LINE),
        "ReflectionPad2d": Row(lambda: convolved(nn.ReflectionPad2d(2)), PICTURE),
        "ReplicationPad3d": Row(lambda: convolved(nn.ReplicationPad3d(1), 3), VOLUME),
        "CircularPad2d": Row(lambda: convolved(nn.CircularPad2d(1)), PICTURE),
        "PixelShuffle": Row(lambda: convolved(nn.PixelShuffle(2)), PICTURE),
        "PixelUnshuffle": Row(lambda: convolved(nn.PixelUnshuffle(2)), PICTURE),
        "ChannelShuffle": Row(lambda: convolved(nn.ChannelShuffle(2)), PICTURE),
        "Upsample-nearest": Row(lambda: convolved(nn.Upsample(scale_factor=2)), PICTURE),
        "Upsample-bilinear": Row(lambda: convolved(nn.Upsample((9, 7), mode="bilinear", align_corners=True)), PICTURE),
        "Upsample-bicubic": Row(lambda: convolved(nn.Upsample(scale_factor=1.5, mode="bicubic")), PICTURE),
        "Upsample-trilinear": Row(lambda: convolved(nn.Upsample(scale_factor=2, mode="trilinear"), 3), VOLUME),
        "Upsample-linear": Row(lambda: convolved(nn.Upsample(scale_factor=2, mode="linear"), 1), LINE),
    }


def poolings():
    layers = {
        "MaxPool1d": (nn.MaxPool1d(3, 2, 1), 1),
        "MaxPool2d": (nn.MaxPool2d(2), 2),
        "MaxPool2d-overlapping": (nn.MaxPool2d(3, 2, 1), 2),
        "MaxPool2d-dilated-ceil": (nn.MaxPool2d(2, 3, dilation=2, ceil_mode=True), 2),
        "MaxPool3d": (nn.MaxPool3d(2), 3),
        "AvgPool1d": (nn.AvgPool1d(3, 2, 1), 1),
        "AvgPool2d": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 2),
        "AvgPool3d": (nn.AvgPool3d(2, 2, ceil_mode=True), 3),
        "LPPool1d": (nn.Sequential(nn.Softplus(), nn.LPPool1d(3, 2)), 1),
        "LPPool2d": (nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 3, 2)), 2),
        "AdaptiveAvgPool1d": (nn.AdaptiveAvgPool1d(3), 1),
        "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((1, 4)), 2),
        "AdaptiveAvgPool3d": (nn.AdaptiveAvgPool3d(3), 3),
        "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(3), 1),
        "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((1, 4)), 2),
        "AdaptiveMaxPool3d": (nn.AdaptiveMaxPool3d(2), 3),
    }
    shapes = {1: LINE, 2: PICTURE, 3: VOLUME}
    rows = {n: Row(lambda layer=layer, d=d: convolved(layer, d), shapes[d]) for n, (layer, d) in layers.items()}

    def unpooled(m, x):
        values, places = F.max_pool2d(m.conv(x), 2, return_indices=True)
        return m.unpool(values, places)

    return rows | {
        "MaxUnpool2d": Row(
            lambda: Call(unpooled, conv=nn.Conv2d(2, 3, 3, padding=1), unpool=nn.MaxUnpool2d(2)), PICTURE
        ),
    }


def activations():
    layers = {
        "ELU": nn.ELU(0.7), "CELU": nn.CELU(1.3), "SELU": nn.SELU(), "GELU": nn.GELU(), "GELU-tanh": nn.GELU("tanh"),
        "ReLU": nn.ReLU(), "ReLU-in-place": nn.ReLU(inplace=True), "ReLU6": nn.ReLU6(), "LeakyReLU": nn.LeakyReLU(0.2),
        "PReLU": nn.PReLU(), "PReLU-channels": nn.PReLU(6), "Hardtanh": nn.Hardtanh(-0.4, 0.8),
        "Hardswish": nn.Hardswish(), "Hardshrink": nn.Hardshrink(0.3),
        "Softshrink": nn.Softshrink(0.3), "Tanhshrink": nn.Tanhshrink(), "Threshold": nn.Threshold(0.1, 0.5),
        "Sigmoid": nn.Sigmoid(), "LogSigmoid": nn.LogSigmoid(), "SiLU": nn.SiLU(), "SiLU-in-place": nn.SiLU(True),
        "Mish": nn.Mish(), "Softplus": nn.Softplus(2.0, 0.5), "Softsign": nn.Softsign(), "Tanh": nn.Tanh(),
        "GLU": nn.GLU(), "Softmin": nn.Softmin(1), "Softmax": nn.Softmax(1), "LogSoftmax": nn.LogSoftmax(1),
    }  # fmt: skip
    rows = {n: Row(lambda layer=layer: behind(layer), VECTOR) for n, layer in layers.items()}

    def hard(m, x):
        return (x / 6.0 + 0.5).clamp(0.0, 1.0)

    return rows | {
        "Softmax2d": Row(lambda: convolved(nn.Softmax2d()), PICTURE),
        "Hardsigmoid": Row(lambda: behind(nn.Hardsigmoid()), VECTOR, twin=lambda: behind(Call(hard)), or_refused=ONCE),
    }


def norms():
    return {
        "LayerNorm": Row(lambda: behind(moved(nn.LayerNorm(6))), VECTOR),
        "LayerNorm-over-pictures": Row(lambda: convolved(moved(nn.LayerNorm((4, 6, 6)))), PICTURE),
        "LayerNorm-plain": Row(lambda: behind(nn.LayerNorm(6, elementwise_affine=False)), VECTOR),
        "LayerNorm-no-bias": Row(lambda: behind(moved(nn.LayerNorm(6, bias=False))), VECTOR),
        "RMSNorm": Row(lambda: behind(moved(nn.RMSNorm(6))), VECTOR),
        "GroupNorm": Row(lambda: convolved(moved(nn.GroupNorm(2, 4))), PICTURE),
        "GroupNorm-on-vectors": Row(lambda: behind(moved(nn.GroupNorm(3, 6))), VECTOR),
        "LocalResponseNorm": Row(lambda: convolved(nn.LocalResponseNorm(3, alpha=0.3)), PICTURE),
        "CrossMapLRN2d": Row(lambda: convolved(nn.CrossMapLRN2d(3)), PICTURE, refused=("CrossMapLRN2d",)),
        "InstanceNorm1d": Row(lambda: convolved(moved(nn.InstanceNorm1d(4, affine=True)), 1), LINE),
        "InstanceNorm2d": Row(lambda: convolved(nn.InstanceNorm2d(4)), PICTURE),
        "InstanceNorm3d": Row(lambda: convolved(moved(nn.InstanceNorm3d(4, affine=True)), 3), VOLUME),
        "InstanceNorm2d-frozen": Row(
            lambda: used(convolved(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), 2, 6, 6),
            PICTURE, "frozen",
        ),
        "InstanceNorm2d-batch": Row(
            lambda: used(convolved(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), 2, 6, 6),
            PICTURE, "batch", lambda: convolved(nn.InstanceNorm2d(4, affine=True)),
        ),
        "BatchNorm1d-batch": Row(lambda: used(behind(moved(nn.BatchNorm1d(6))), 4), VECTOR, "batch"),
        "BatchNorm1d-frozen": Row(lambda: used(behind(moved(nn.BatchNorm1d(6))), 4), VECTOR, "frozen"),
        "BatchNorm1d-on-lines": Row(lambda: used(convolved(moved(nn.BatchNorm1d(4)), 1), 2, 8), LINE, "batch"),
        "BatchNorm2d-batch": Row(lambda: used(convolved(moved(nn.BatchNorm2d(4))), 2, 6, 6), PICTURE, "batch"),
        "BatchNorm2d-frozen": Row(lambda: used(convolved(moved(nn.BatchNorm2d(4))), 2, 6, 6), PICTURE, "frozen"),
        "BatchNorm2d-group": Row(
            lambda: used(convolved(nn.BatchNorm2d(4)), 2, 6, 6), PICTURE, "group",
            lambda: convolved(nn.GroupNorm(4, 4)),
        ),
        "BatchNorm2d-plain": Row(lambda: used(convolved(nn.BatchNorm2d(4, affine=False)), 2, 6, 6), PICTURE, "batch"),
        "BatchNorm2d-plain-frozen": Row(
            lambda: used(convolved(nn.BatchNorm2d(4, affine=False)), 2, 6, 6), PICTURE, "frozen"
        ),
        "BatchNorm2d-without-statistics": Row(
            lambda: convolved(moved(nn.BatchNorm2d(4, track_running_stats=False))), PICTURE
        ),
        "BatchNorm3d-batch": Row(lambda: used(convolved(moved(nn.BatchNorm3d(4)), 3), 2, 4, 4, 4), VOLUME, "batch"),
        "BatchNorm-with-activation": Row(lambda: used(convolved(BatchNormAct(4)), 2, 6, 6), PICTURE, "frozen"),
        "BatchNorm-with-activation-batch": Row(lambda: used(convolved(BatchNormAct(4)), 2, 6, 6), PICTURE, "batch"),
        "FrozenBatchNorm": Row(lambda: convolved(FrozenNorm(4)), PICTURE),
    }  # fmt: skip


class BatchNormAct(nn.BatchNorm2d):
    """A norm with something in it."""

    def __init__(self, width):
        super().__init__(width)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


class FrozenNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("weight", torch.rand(width) + 0.5)
        self.register_buffer("mean", torch.randn(width))

    def forward(self, x):
        return (x - self.mean[:, None, None]) * self.weight[:, None, None]


class Bag(nn.Module):
    """Rows of a table, made one."""

    def __init__(self, reduce):
        super().__init__()
        self.weight, self.reduce = nn.Parameter(torch.randn(7, 4)), reduce

    def forward(self, x):
        return self.reduce(self.weight[x])


def embeddings():
    def headed(layer):
        return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3))

    def padded(**options):
        layer = nn.Embedding(7, 4, **options)
        nn.init.normal_(layer.weight)
        return headed(layer)

    return {
        "Embedding": Row(lambda: padded(), ids(7, 5)),
        "Embedding-padding": Row(lambda: padded(padding_idx=2), ids(7, 5)),
        "Embedding-by-frequency": Row(
            lambda: padded(scale_grad_by_freq=True), ids(7, 5), refused=("0 (Embedding)", "scale_grad_by_freq")
        ),
        "Embedding-max-norm": Row(lambda: padded(max_norm=1.0), ids(7, 5), refused=("0 (Embedding)", "max_norm")),
        "Embedding-sparse": Row(
            lambda: padded(sparse=True), ids(7, 5), twin=padded, or_refused=("0 (Embedding)", "sparse")
        ),
        "Embedding-positions": Row(
            lambda: Call(
                lambda m, x: m.head(m.words(x) + m.places(torch.arange(x.shape[1]))),
                words=nn.Embedding(7, 4, padding_idx=0), places=nn.Embedding(5, 4), head=nn.Linear(4, 3),
            ),
            ids(7, 5),
        ),
        "EmbeddingBag-mean": Row(
            lambda: headed(nn.EmbeddingBag(7, 4)), ids(7, 5), or_refused=ONCE,
            twin=lambda: headed(Bag(lambda rows: rows.mean(1))),
        ),
        "EmbeddingBag-max": Row(
            lambda: headed(nn.EmbeddingBag(7, 4, mode="max")), ids(7, 5), or_refused=ONCE,
            twin=lambda: headed(Bag(lambda rows: rows.amax(1))),
        ),
        "EmbeddingBag-weighted": Row(
            lambda: Call(lambda m, x, w: m.bag(x, per_sample_weights=w), bag=nn.EmbeddingBag(7, 4, mode="sum")),
            both(ids(7, 5), reals(5)), or_refused=ONCE,
            twin=lambda: Call(lambda m, x, w: (m.bag(x) * w[..., None]).sum(1), bag=nn.Embedding(7, 4)),
        ),
        "F.embedding-padding": Row(
            lambda: Call(
                lambda m, x: torch.tanh(F.embedding(x, m.table.weight, padding_idx=-1)), table=nn.Embedding(7, 4)
            ),
            ids(7, 5),
        ),
        "index-into-a-table": Row(
            lambda: Call(lambda m, x: torch.tanh(m.table.weight[x]), table=nn.Embedding(7, 4)), ids(7, 5)
        ),
        "one-hot": Row(
            lambda: Call(lambda m, x: m.layer(F.one_hot(x, 7).double()), layer=nn.Linear(7, 4)), ids(7, 5)
        ),
    }  # fmt: skip


# ---- attention and transformers --------------------------------------------------------------------


def itself(m, x):
    return m.attention(x, x, x)[0]


def masked(m, x, nothing):
    return m.attention(x, x, x, key_padding_mask=nothing, need_weights=False)[0]


def causal(length):
    return nn.Transformer.generate_square_subsequent_mask(length, dtype=F64)


def multihead(rate=0.0, **options):
    attention = nn.MultiheadAttention(4, 2, rate, batch_first=True, **options)
    with torch.no_grad():
        attention.in_proj_bias.normal_()
    return attention


def encoder_layer(rate=0.0, **options):
    return nn.TransformerEncoderLayer(4, 2, 6, rate, **{"batch_first": True, **options})


def attentions():
    padded = both(TOKENS, padding(5))
    return {
        "MultiheadAttention": Row(lambda rate: Call(itself, attention=multihead(rate)), TOKENS, random=True),
        "MultiheadAttention-weights": Row(lambda rate: Call(weighing, attention=multihead(rate)), TOKENS, random=True),
        "MultiheadAttention-padding": Row(lambda rate: Call(masked, attention=multihead(rate)), padded, random=True),
        "MultiheadAttention-mask": Row(
            lambda rate: Call(
                lambda m, x: m.attention(x, x, x, attn_mask=causal(5), is_causal=True)[0], attention=multihead(rate)
            ),
            TOKENS, random=True,
        ),
        "MultiheadAttention-first": Row(
            lambda: Call(
                lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
                attention=nn.MultiheadAttention(4, 2, bias=False),
            ),
            TOKENS,
        ),
        "MultiheadAttention-kdim": Row(
            lambda: Call(
                lambda m, q, k, v: m.attention(q, k, v),
                attention=nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True),
            ),
            both(reals(5, 4), reals(6, 3), reals(6, 5)),
        ),
        "MultiheadAttention-zeros": Row(
            lambda: Call(itself, attention=multihead(add_zero_attn=True, add_bias_kv=True)), TOKENS
        ),
        "TransformerEncoderLayer": Row(lambda rate: encoder_layer(rate, activation="gelu"), TOKENS, random=True),
        "TransformerEncoderLayer-norm-first": Row(
            lambda rate: encoder_layer(rate, norm_first=True, activation=F.silu), TOKENS, random=True
        ),
        "TransformerEncoderLayer-padding": Row(
            lambda rate: encoder_layer(rate, activation="gelu"), named(src=TOKENS, src_key_padding_mask=padding(5)),
            random=True,
        ),
        "TransformerEncoder": Row(
            lambda rate: nn.TransformerEncoder(encoder_layer(rate, activation="gelu"), 2, nn.LayerNorm(4)),
            TOKENS, random=True,
        ),
        "TransformerEncoder-padding": Row(
            lambda rate: nn.TransformerEncoder(encoder_layer(rate), 2),
            named(src=TOKENS, src_key_padding_mask=padding(5)), random=True,
        ),
        "TransformerEncoder-causal": Row(
            lambda rate: Call(
                lambda m, x: m.encoder(x, mask=causal(5), is_causal=True),
                encoder=nn.TransformerEncoder(encoder_layer(rate, norm_first=True), 2, enable_nested_tensor=False),
            ),
            TOKENS, random=True,
        ),
        "TransformerDecoder": Row(
            lambda rate: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6, rate, batch_first=True), 2),
            both(reals(3, 4), TOKENS), random=True,
        ),
        "Transformer": Row(
            lambda rate: nn.Transformer(4, 2, 1, 1, 6, rate, batch_first=True), both(TOKENS, reals(3, 4)), random=True
        ),
        "F.scaled_dot_product_attention": Row(
            lambda rate: Call(
                lambda m, x: F.scaled_dot_product_attention(
                    *(h.unflatten(-1, (2, 2)).transpose(1, 2) for h in m.layer(x).chunk(3, -1)),
                    dropout_p=rate if m.training else 0.0, is_causal=True,
                ),
                layer=nn.Linear(4, 12),
            ),
            TOKENS, random=True,
        ),
        "attention-by-einsum": Row(lambda: Einsum(), TOKENS),
        "attention-with-rotation": Row(lambda: Call(rotated, layer=nn.Linear(4, 8)), TOKENS),
        "attention-relative": Row(lambda: Relative(), TOKENS),
        "tied-language-model": Row(lambda: Tied(), ids(7, 5)),
    }  # fmt: skip


def weighing(m, x):
    return m.attention(x, x, x, average_attn_weights=False)


def rotated(m, x):
    q, k = m.layer(x).chunk(2, -1)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / torch.tensor([1.0, 10.0], dtype=x.dtype)

    def turn(h):
        a, b = h[..., ::2], h[..., 1::2]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    return turn(q) @ turn(k).mT


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 2, 4, 3))

    def forward(self, x):
        q, k, v = torch.einsum("blc,nhcd->nbhld", x, self.weights)
        scores = torch.einsum("bhld,bhmd->bhlm", q, k) / math.sqrt(3)
        nothing = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return torch.einsum("bhlm,bhmd->blhd", scores.masked_fill(nothing, -math.inf).softmax(-1), v).flatten(2)


class Relative(nn.Module):
    """Scores with a learned bias for each distance, from a table by a buffer of indices."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(4, 8), nn.Parameter(torch.randn(9))
        self.register_buffer("distance", torch.arange(5)[:, None] - torch.arange(5) + 4)

    def forward(self, x):
        q, k = self.layer(x).chunk(2, -1)
        return (q @ k.mT + self.table[self.distance]).softmax(-1) @ x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.words(x))))


# ---- recurrent layers ------------------------------------------------------------------------------


def recurrences():
    def states(m, x):
        return m.layer(x, m.start.expand(-1, x.shape[0], -1).contiguous())

    def both_states(m, x):
        start = m.start.expand(-1, x.shape[0], -1).contiguous()
        return m.layer(x, (start, 2.0 * start))

    def stepped(m, x):
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t]) if state is None else m.cell(x[:, t], state)
        return state

    def started(layer, shape):
        module = Call(both_states if isinstance(layer, nn.LSTM) else states, layer=layer)
        module.start = nn.Parameter(torch.randn(shape))
        return module

    return {
        "LSTM": Row(lambda: nn.LSTM(4, 3, batch_first=True), TOKENS),
        "LSTM-deep-both-ways": Row(lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), TOKENS),
        "LSTM-time-first": Row(
            lambda: Call(lambda m, x: m.layer(x.transpose(0, 1))[1], layer=nn.LSTM(4, 3, bias=False)), TOKENS
        ),
        "LSTM-start": Row(lambda: started(nn.LSTM(4, 3, 2, batch_first=True), (2, 1, 3)), TOKENS),
        "LSTM-projected": Row(lambda: nn.LSTM(4, 3, batch_first=True, proj_size=2), TOKENS),
        "LSTM-dropout": Row(lambda rate: nn.LSTM(4, 3, 3, batch_first=True, dropout=rate), TOKENS, random=True),
        "GRU": Row(lambda: nn.GRU(4, 3, batch_first=True), TOKENS),
        "GRU-deep-both-ways": Row(lambda: nn.GRU(4, 3, 2, batch_first=True, bidirectional=True, bias=False), TOKENS),
        "GRU-start": Row(lambda: started(nn.GRU(4, 3, batch_first=True, bidirectional=True), (2, 1, 3)), TOKENS),
        "GRU-dropout": Row(lambda rate: nn.GRU(4, 3, 2, batch_first=True, dropout=rate), TOKENS, random=True),
        "RNN": Row(lambda: nn.RNN(4, 3, batch_first=True), TOKENS),
        "RNN-relu": Row(lambda: nn.RNN(4, 3, 2, nonlinearity="relu", batch_first=True, bidirectional=True), TOKENS),
        "LSTMCell": Row(lambda: Call(stepped, cell=nn.LSTMCell(4, 3)), TOKENS),
        "GRUCell": Row(lambda: Call(stepped, cell=nn.GRUCell(4, 3)), TOKENS),
        "RNNCell": Row(lambda: Call(stepped, cell=nn.RNNCell(4, 3, nonlinearity="relu")), TOKENS),
        "LSTM-classifier": Row(
            lambda: Call(
                lambda m, x: m.head(m.layer(m.words(x))[1][0][-1]),
                words=nn.Embedding(7, 4, padding_idx=0), layer=nn.LSTM(4, 3, batch_first=True), head=nn.Linear(3, 2),
            ),
            ids(7, 5),
        ),
        "LSTM-written-out": Row(lambda: Call(gated, gates=nn.Linear(7, 12)), TOKENS),
    }  # fmt: skip


def gated(m, x):
    h = c = x.new_zeros(x.shape[0], 3)
    for t in range(x.shape[1]):
        i, f, g, o = m.gates(torch.cat([x[:, t], h], -1)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h, c


# ---- what is drawn ---------------------------------------------------------------------------------


def noises():
    def own(function, rate):
        """A function of hidden values, of whether it trains, and of the rate."""
        return Call(lambda m, x: m.head(function(torch.tanh(m.first(x)), m.training, rate)),
                    first=nn.Linear(4, 5), head=nn.Linear(5, 3))  # fmt: skip

    def rows(**functions):
        return {
            name.replace("_", "-"): Row(lambda rate, f=f: own(f, rate), VECTOR, random=True)
            for name, f in functions.items()
        }

    def depth(h, training, rate):
        """A residual branch left out for whole examples."""
        if not training or rate == 0.0:
            return h + h.sin()
        return h + h.sin() * h.new_empty(h.shape[0], 1).bernoulli_(1.0 - rate) / (1.0 - rate)

    def gate(h, training, rate):
        return h * (torch.rand(h.shape, dtype=h.dtype) >= rate) if training else h * (1.0 - rate)

    return {
        "Dropout": Row(lambda rate: nn.Sequential(behind(nn.Dropout(rate)), nn.Linear(6, 3)), VECTOR, random=True),
        "Dropout-in-place": Row(lambda rate: behind(nn.Dropout(rate, inplace=True)), VECTOR, random=True),
        "Dropout-twice": Row(lambda rate: twice(nn.Dropout(rate)), VECTOR, random=True),
        "Dropout1d": Row(lambda rate: convolved(nn.Dropout1d(rate), 1), LINE, random=True),
        "Dropout2d": Row(lambda rate: convolved(nn.Dropout2d(rate)), PICTURE, random=True),
        "Dropout3d": Row(lambda rate: convolved(nn.Dropout3d(rate), 3), VOLUME, random=True),
        "AlphaDropout": Row(lambda rate: behind(nn.AlphaDropout(rate)), VECTOR, random=True),
        "FeatureAlphaDropout": Row(lambda rate: convolved(nn.FeatureAlphaDropout(rate)), PICTURE, random=True),
        "RReLU": Row(lambda rate: behind(nn.RReLU(0.3 - 0.5 * rate, 0.3 + 0.5 * rate)), VECTOR, random=True),
        "DropPath": Row(lambda rate: own(depth, rate), VECTOR, random=True),
    } | rows(
        F_dropout=lambda h, training, rate: F.dropout(h, rate, training),
        torch_dropout=lambda h, training, rate: torch.dropout(h, rate, training),
        F_dropout1d=lambda h, training, rate: F.dropout1d(h[:, None], rate, training)[:, 0],
        F_feature_alpha_dropout=lambda h, training, rate: F.feature_alpha_dropout(h, rate, training),
        F_rrelu=lambda h, training, rate: F.rrelu(h, 0.3 - 0.5 * rate, 0.3 + 0.5 * rate, training),
        rand=gate,
        rand_like=lambda h, training, rate: h + rate * torch.rand_like(h) if training else h + 0.5 * rate,
        randn_like=lambda h, training, rate: h + rate * torch.randn_like(h) if training else h,
        bernoulli=lambda h, training, rate: (
            h * torch.bernoulli(torch.full_like(h, 1.0 - rate)) / (1.0 - rate) if training else h
        ),
        normal_in_place=lambda h, training, rate: h + rate * torch.empty_like(h).normal_() if training else h,
    )  # fmt: skip


def twice(drop):
    return Call(lambda m, x: m.drop(m.head(m.drop(m.first(x)))), first=nn.Linear(4, 5), head=nn.Linear(5, 3), drop=drop)


# ---- parametrizations and containers ---------------------------------------------------------------


class Nested(nn.Module):
    """Containers of all kinds, a shared module, a frozen one, buffers of three dtypes."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.ModuleList([nn.Linear(4, 4), nn.Tanh()])})
        self.scales = nn.ParameterList([torch.randn(4), torch.randn(())])
        self.shifts = nn.ParameterDict({"one": torch.randn(4)})
        self.again = self.parts["a"]
        self.fixed = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))
        self.register_buffer("kept", torch.tensor([True, False, True, True]))
        self.register_buffer("slope", torch.linspace(-1, 1, 4), persistent=False)

    def forward(self, x):
        h = torch.tanh(self.parts["a"](x)) * self.scales[0] + self.shifts["one"]
        for layer in self.parts["b"]:
            h = layer(h)
        h = torch.where(self.kept, self.again(h)[:, self.order], self.slope)
        return self.fixed(h) * self.scales[1]


class Chosen(nn.Module):
    """Decides in its constructor which of its methods is forward, as timm's FasterNet does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.forward = self.squashed

    def squashed(self, x):
        return torch.tanh(self.layer(x))


class Outputs(NamedTuple):
    logits: torch.Tensor
    hidden: list


def structures():
    def outputs(m, first, second=None):
        hidden = torch.tanh(m.layer(first if second is None else first * second))
        return Outputs(hidden.sum(-1), [hidden, {"square": hidden**2}])

    def shared(m, x):
        return m.layer(torch.tanh(m.layer(torch.tanh(m.layer(x)))))

    def hooked():
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        net[0].register_forward_hook(lambda m, args, out: out * 2.0 + args[0])
        net[1].register_forward_pre_hook(lambda m, args: (args[0] - 1.0,))
        return net

    def low_rank(m, x):
        return F.linear(x, m.up.weight @ m.down.weight + m.base.weight)

    square = lambda: nn.Linear(4, 4)  # noqa: E731
    return {
        "weight_norm": Row(lambda: parametrizations.weight_norm(nn.Linear(4, 3)), VECTOR),
        "weight_norm-conv": Row(lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3), dim=1), PICTURE),
        "orthogonal-cayley": Row(lambda: parametrizations.orthogonal(square(), orthogonal_map="cayley"), VECTOR),
        "orthogonal-exp": Row(lambda: parametrizations.orthogonal(square(), orthogonal_map="matrix_exp"), VECTOR),
        "orthogonal-householder": Row(
            lambda: parametrizations.orthogonal(nn.Linear(4, 3), orthogonal_map="householder"), VECTOR
        ),
        "Sequential-by-name": Row(
            lambda: nn.Sequential(OrderedDict(body=nn.Linear(4, 5), act=nn.Tanh(), head=nn.Linear(5, 3))), VECTOR
        ),
        "nested-containers": Row(lambda: Nested(), VECTOR),
        "shared-module": Row(lambda: Call(shared, layer=square()), VECTOR),
        "dict-in-tuple-out": Row(
            lambda: Call(outputs, layer=nn.Linear(4, 3)), named(first=reals(4), second=positive(4))
        ),
        "tuple-in-tuple-out": Row(lambda: Call(outputs, layer=nn.Linear(4, 3)), both(reals(4), positive(4))),
        "hooks": Row(hooked, VECTOR),
        "forward-chosen": Row(lambda: Chosen(), VECTOR),
        "frozen-half": Row(lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), square()), VECTOR),
        "low-rank-adapter": Row(
            lambda: Call(
                low_rank, base=square().requires_grad_(False), up=nn.Linear(2, 4, bias=False), down=nn.Linear(4, 2)
            ),
            VECTOR,
        ),
        "checkpoint": Row(
            lambda: Call(lambda m, x: checkpoint(m.layer, x, use_reentrant=False), layer=behind(nn.Tanh())),
            VECTOR, or_refused=("checkpoint",),
        ),
    }  # fmt: skip


# ---- functions in modules of one's own -------------------------------------------------------------


def spatial(m, x):
    """A spatial transformer."""
    angle = m.find(x.flatten(1)).view(-1, 2, 3)
    return F.grid_sample(
        m.conv(x), F.affine_grid(angle, [x.shape[0], 3, 6, 6], align_corners=False), align_corners=False
    )


def squeezed(m, x):
    h = m.conv(x)
    return h * m.gate(h.mean((2, 3)))[:, :, None, None].sigmoid()


def generated(m, x):
    """A hypernetwork: every example has its own weights."""
    w = m.make(x).view(-1, 3, 4)
    return torch.bmm(w, x[:, :, None])[:, :, 0]


def ridge(m, x):
    h = m.layer(x)
    return torch.linalg.solve(h.T @ h + torch.eye(3, dtype=h.dtype), h.T @ x)


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return 2.0 * ctx.saved_tensors[0] * g


def functions():
    def of(function, width=6):
        return Row(lambda: Call(lambda m, x: function(torch.tanh(m.layer(x)), m), layer=nn.Linear(4, width)), VECTOR)

    def weighed(function):
        """A function of hidden values and a scale and shift."""

        def build():
            norm = moved(nn.LayerNorm(6))
            return Call(lambda m, x: function(m.layer(x), m.norm.weight, m.norm.bias), layer=nn.Linear(4, 6), norm=norm)

        return Row(build, VECTOR)

    def of_pictures(function):
        def build():
            norm = moved(nn.GroupNorm(2, 4))
            return Call(
                lambda m, x: function(m.layer(x), m.norm.weight, m.norm.bias), layer=nn.Conv2d(2, 4, 3), norm=norm
            )

        return Row(build, PICTURE)

    def rounded(h, m):
        return h + (h.round() - h).detach()

    return {
        "F.layer_norm": weighed(lambda h, w, b: F.layer_norm(h, (6,), w, b)),
        "torch.layer_norm": weighed(lambda h, w, b: torch.layer_norm(h, (6,), w, b)),
        "torch.native_layer_norm": weighed(lambda h, w, b: torch.native_layer_norm(h, (6,), w, b, 1e-5)[0]),
        "F.rms_norm": weighed(lambda h, w, b: F.rms_norm(h, (6,), w)),
        "torch.rms_norm": weighed(lambda h, w, b: torch.rms_norm(h, (6,), w)),
        "F.batch_norm": weighed(lambda h, w, b: F.batch_norm(h, None, None, w, b, True)),
        "torch.batch_norm": weighed(
            lambda h, w, b: torch.batch_norm(h, w, b, None, None, True, 0.1, 1e-5, False)
        ),
        "torch.native_batch_norm": weighed(
            lambda h, w, b: torch.native_batch_norm(h, w, b, None, None, True, 0.1, 1e-5)[0]
        ),
        "torch.batch_norm-of-constants": weighed(
            lambda h, w, b: torch.batch_norm(
                h, w, b, torch.zeros_like(b) + 0.3, torch.ones_like(b) * 2.0, False, 0.1, 1e-5, False
            )
        ),
        "torch.group_norm": of_pictures(lambda h, w, b: torch.group_norm(h, 2, w, b)),
        "F.group_norm": of_pictures(lambda h, w, b: F.group_norm(h, 4, w, b)),
        "torch.native_group_norm": of_pictures(
            lambda h, w, b: torch.native_group_norm(h, w, b, h.shape[0], 4, 16, 2, 1e-5)[0]
        ),
        "torch.instance_norm": of_pictures(
            lambda h, w, b: torch.instance_norm(h, w, b, None, None, True, 0.1, 1e-5, False)
        ),
        "F.instance_norm": of_pictures(lambda h, w, b: F.instance_norm(h, weight=w, bias=b)),
        "torch.conv2d": Row(
            lambda: Call(lambda m, x: torch.conv2d(x, m.layer.weight**2, padding=1), layer=nn.Conv2d(2, 3, 3)), PICTURE
        ),
        "F.conv2d-by-example": Row(
            lambda: Call(lambda m, x: F.conv2d(x, x[:2, :, :3, :3] + m.layer.weight), layer=nn.Conv2d(2, 2, 3)), PICTURE
        ),
        "CosineSimilarity": Row(
            lambda: Call(
                lambda m, a, b: m.compare(m.layer(a), b), layer=nn.Linear(4, 3), compare=nn.CosineSimilarity()
            ),
            both(reals(4), reals(3)),
        ),
        "PairwiseDistance": Row(
            lambda: Call(
                lambda m, a, b: m.compare(m.layer(a), b), layer=nn.Linear(4, 3), compare=nn.PairwiseDistance(2.5)
            ),
            both(reals(4), reals(3)),
        ),
        "cdist": Row(
            lambda: Call(lambda m, x: torch.cdist(m.layer(x), m.layer.weight.T), layer=nn.Linear(4, 6)), VECTOR,
            twin=lambda: Call(
                lambda m, x: (m.layer(x)[:, None] - m.layer.weight.T).norm(dim=-1), layer=nn.Linear(4, 6)
            ),
            or_refused=ONCE,
        ),
        "F.normalize": of(lambda h, m: F.normalize(h, dim=-1)),
        "fft": of(lambda h, m: torch.fft.rfft(h).abs()),
        "fft2": Row(
            lambda: Call(lambda m, x: torch.fft.fft2(m.layer(x)).abs().log1p(), layer=nn.Conv2d(2, 3, 3)), PICTURE
        ),
        "cumsum-cumprod": of(lambda h, m: h.cumsum(-1) * (1.0 + h).cumprod(-1)),
        "sort-topk": of(lambda h, m: h.sort(-1).values[:, 1:] * h.topk(5).values.flip(-1)),
        "gather-scatter": of(lambda h, m: torch.zeros_like(h).scatter_add(1, h.argsort(1) // 2, h)),
        "logsumexp-amax": of(lambda h, m: h.logsumexp(-1) + h.amax(-1) + h.std(-1) + h.norm(dim=-1)),
        "median-max": of(lambda h, m: h.median(-1).values + h.max(-1).values),
        "where-clamp": of(lambda h, m: torch.where(h > 0, h.clamp(max=0.8), h.clamp(min=-0.8) ** 3)),
        "straight-through": of(rounded),
        "solve": Row(lambda: Call(ridge, layer=nn.Linear(4, 3)), VECTOR),
        "cholesky-logdet": of(
            lambda h, m: torch.linalg.cholesky(h.T @ h + torch.eye(6, dtype=h.dtype)).diagonal().log()
        ),
        "baddbmm-chain": of(lambda h, m: torch.addmm(h, h, h.T @ h, beta=0.5, alpha=2.0)),
        "own-autograd-function": of(lambda h, m: Square.apply(h)),
        "grid_sample": Row(
            lambda: Call(spatial, find=nn.Linear(72, 6), conv=nn.Conv2d(2, 3, 3, padding=1)), PICTURE, or_refused=ONCE
        ),
        "squeeze-and-excite": Row(lambda: Call(squeezed, conv=nn.Conv2d(2, 4, 3), gate=nn.Linear(4, 4)), PICTURE),
        "hypernetwork": Row(lambda: Call(generated, make=nn.Linear(4, 12)), VECTOR),
        "F.interpolate": Row(
            lambda: Call(
                lambda m, x: F.interpolate(m.layer(x), (3, 5), mode="area") + m.layer(x).mean((2, 3), keepdim=True),
                layer=nn.Conv2d(2, 3, 3),
            ),
            PICTURE,
        ),
        "gru-of-time-embedding": Row(
            lambda: Call(lambda m, x: m.layer(torch.cat([(x * m.layer.bias).sin(), x], -1)), layer=nn.Linear(8, 4)),
            VECTOR,
        ),
    }  # fmt: skip


class OfNormOne(nn.Module):
    """What spectral norm stands for, by singular values."""

    def forward(self, weight):
        return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def one_sided(layer):
    """One singular value far above the others, so that power iteration is exact soon."""
    with torch.no_grad():
        rows, columns = layer.weight.flatten(1).shape
        layer.weight.mul_(0.05).add_(torch.outer(torch.randn(rows), torch.randn(columns)).view_as(layer.weight))
    return layer


def spectral():
    """Networks whose weights are divided by their norm."""
    new, old = parametrizations.spectral_norm, nn.utils.spectral_norm

    def exact(layer):
        parametrize.register_parametrization(layer, "weight", OfNormOne())
        return layer

    return {
        "spectral_norm": Row(
            lambda: used(new(one_sided(nn.Linear(4, 3))), 4), VECTOR, twin=lambda: exact(nn.Linear(4, 3))
        ),
        "spectral_norm-conv": Row(
            lambda: used(new(one_sided(nn.Conv2d(2, 3, 3))), 2, 6, 6), PICTURE, twin=lambda: exact(nn.Conv2d(2, 3, 3))
        ),
        "spectral_norm-old": Row(
            lambda: used(old(nn.Linear(4, 3)), 4), VECTOR, refused=("(Linear)", "parametrizations.spectral_norm")
        ),
        "weight_norm-old": Row(
            lambda: behind(nn.utils.weight_norm(nn.Linear(6, 3))), VECTOR,
            refused=("1 (Linear)", "parametrizations.weight_norm"),
        ),
    }  # fmt: skip


ROWS = {
    **linears(), **convolutions(), **poolings(), **activations(), **norms(), **embeddings(), **attentions(),
    **recurrences(), **noises(), **structures(), **functions(), **spectral(),
}  # fmt: skip
