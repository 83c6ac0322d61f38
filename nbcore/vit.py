"""timm Vision Transformers seen as sites and units, with gates on contributions and token merging.

This file alone knows timm's attribute paths. `PrunableViT` holds an unchanged timm model and runs its submodules in its
own forward pass, because three things have to happen *inside* a block: gates multiply a unit's contribution, a tap
reads it, and after merging every token carries the number of patches it stands for.

Shape letters: B images, S image side, P patches of the original grid, T tokens (patches left after merging, without
prefix tokens), N all tokens, D width, H heads, d head width, M hidden neurons, U units of all sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp, PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from nbcore.config import Arch, Merge, ModelConfig
from nbcore.registry import Registry

SiteKind = Literal["heads", "neurons"]
STEMS: Registry[type[nn.Module]] = Registry("stem")
STEMS.register("patch")(PatchEmbed)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One prunable layer: the heads of an attention or the hidden neurons of an MLP."""

    name: str
    """`blocks.{i}.attn` or `blocks.{i}.mlp`."""
    block: int
    kind: SiteKind
    num_units: int
    start: int
    """Position of the first unit among all U units of the model."""

    @property
    def units(self) -> slice:
        return slice(self.start, self.start + self.num_units)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Which patches the tokens of a layer stand for; both None where nothing was merged."""

    sizes: Tensor | None = None
    """Patches per token [B, T]."""
    group: Tensor | None = None
    """For each original patch the index of the token that carries it, int64 [B, P]."""


class Tap(Protocol):
    """Reads a site during the forward pass."""

    def __call__(self, site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        """Called once per site.

        Args:
            site: Index of the site.
            stream: Residual stream at the sublayer's own input [B, N, D].
            contribution: Gated head outputs before `proj` [B, H, N, d], or gated activations before `fc2` [B, N, M].
            tokens: What the tokens stand for.
        """


@STEMS.register("conv")
class ConvStem(nn.Module):
    """Convolutional patch embedding: 3x3 stride-2 convolutions with BatchNorm and ReLU, then 1x1.

    Widths double up to `embed_dim`; the number of convolutions is log2(patch_size).

    Source:
        Xiao et al., "Early Convolutions Help Transformers See Better", arXiv:2106.14881.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 192,
        bias: bool = True,
        **_timm_options: Any,
    ) -> None:
        super().__init__()
        stages = patch_size.bit_length() - 1
        if patch_size != 1 << stages or stages < 1 or embed_dim % (1 << (stages - 1)):
            raise ValueError(
                f"a convolutional stem needs a patch size that is a power of two and a width divisible by half of it, "
                f"got patch_size={patch_size}, embed_dim={embed_dim}"
            )
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        width = in_chans
        for stage in range(stages):
            out = embed_dim >> (stages - 1 - stage)
            layers += [nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        self.stages = nn.Sequential(*layers)
        self.proj = nn.Conv2d(width, embed_dim, 1, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S] as patches [B, P, D]."""
        return self.proj(self.stages(images)).flatten(2).transpose(1, 2)

    def fold_batchnorm(self) -> None:
        """Fold each BatchNorm into the convolution before it; outputs in evaluation mode stay equal."""
        folded: list[nn.Module] = []
        for layer in self.stages:
            if isinstance(layer, nn.BatchNorm2d):
                folded[-1] = nn.utils.fuse_conv_bn_eval(folded[-1].eval(), layer.eval())
            else:
                folded.append(layer)
        self.stages = nn.Sequential(*folded)


def match_tokens(patches: Tensor, r: int) -> Tensor:
    """Bipartite soft matching: which token carries each patch after the r best pairs are merged.

    Tokens at even positions (set A) look for their most similar token at odd positions (set B) by cosine; the r
    tokens of A with the most similar partners join them. Ties go to the lower index. Runs in at least single
    precision whatever the autocast state, since a rounded similarity changes the match.

    Args:
        patches: Tokens of the residual stream [B, P, D].
        r: Number of tokens that disappear, at most ceil(P / 2).

    Returns:
        Token index of each patch, int64 [B, P], tokens numbered 0..P-r-1: kept tokens of A, then B.

    Source:
        Idea: Bolya et al., "Token Merging", arXiv:2210.09461. Differs in: cosine of tokens instead of keys, since
        removed heads would vote through their keys; one pass at one block.
    """
    num_patches = patches.shape[1]
    num_a = (num_patches + 1) // 2
    if not 1 <= r <= num_a:
        raise ValueError(f"can merge 1 to {num_a} of {num_patches} tokens in one pass, got r={r}")
    device_type = patches.device.type
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        x = patches if patches.dtype == torch.float64 else patches.float()
        x = x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
        similarity = x[:, ::2] @ x[:, 1::2].transpose(1, 2)
        best, partner = similarity.max(-1).values, similarity.argmax(-1)
        better = best[:, None, :] > best[:, :, None]
        index = torch.arange(num_a, device=x.device)
        earlier = (best[:, None, :] == best[:, :, None]) & (index[None, :] < index[:, None])
        merged = (better | earlier).sum(-1) < r
        kept_position = (~merged).long().cumsum(-1) - 1
        group_a = torch.where(merged, partner + (num_a - r), kept_position)
        group_b = torch.arange(num_a - r, num_patches - r, device=x.device)
        both = torch.cat([group_a, group_b.expand(x.shape[0], -1)], dim=1)
        order = torch.empty(num_patches, dtype=torch.int64)
        order[::2] = torch.arange(num_a)
        order[1::2] = torch.arange(num_a, num_patches)
        return both[:, order.to(x.device)]


def merge_tokens(patches: Tensor, group: Tensor, num_tokens: int) -> tuple[Tensor, Tokens]:
    """Average the patches of each group.

    Args:
        patches: Tokens before merging [B, P, D].
        group: Token index of each patch [B, P].
        num_tokens: Number of tokens afterwards, T.

    Returns:
        Merged tokens [B, T, D] and what they stand for.
    """
    member = group[:, None, :] == torch.arange(num_tokens, device=group.device)[None, :, None]
    member = member.to(patches.dtype)
    sizes = member.sum(-1)
    return (member @ patches) / sizes[..., None], Tokens(sizes=sizes, group=group)


def unmerge(values: Tensor, tokens: Tokens) -> Tensor:
    """Spread values of tokens [B, T] to the original patches [B, P]; each patch gets its token's value."""
    return values if tokens.group is None else torch.gather(values, 1, tokens.group)


class PrunableViT(nn.Module):
    """A timm Vision Transformer with gates on every unit.

    Input: images [B, 3, S, S], RGB in [0, 1]; normalisation is part of the model.
    """

    def __init__(self, vit: VisionTransformer, arch: Arch, merge: Merge | None, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.vit = vit
        self.arch = arch
        self.merge = merge
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1))
        self.register_buffer("std", std.reshape(1, 3, 1, 1))
        self.sites = sites_of(arch)
        self.num_units = sum(site.num_units for site in self.sites)
        self.register_buffer("keep", torch.ones(self.num_units), persistent=False)
        self.masked = False
        self._check_merge()

    def _check_merge(self) -> None:
        if self.merge is None:
            return
        if self.merge.block >= len(self.vit.blocks):
            raise ValueError(f"merge.block must be below the depth {len(self.vit.blocks)}, got {self.merge.block}")
        if self.vit.global_pool not in ("avg", "token"):
            raise ValueError(
                f"token merging needs global_pool 'avg' or 'token', which weigh tokens by size; "
                f"got {self.vit.global_pool!r}"
            )
        num_a = (self.grid[0] * self.grid[1] + 1) // 2
        if self.merge.r > num_a:
            raise ValueError(f"merge.r must be at most {num_a} for a grid of {self.grid}, got {self.merge.r}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the full image size."""
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    @property
    def img_size(self) -> int:
        return self.grid[0] * self.patch_size

    @property
    def patch_size(self) -> int:
        return self.vit.patch_embed.patch_size[0]

    @property
    def num_prefix_tokens(self) -> int:
        return self.vit.num_prefix_tokens

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    def set_keep(self, keep: Tensor) -> None:
        """Mask units: contributions of units with keep False become zero.

        Args:
            keep: True where a unit stays [U].
        """
        if keep.shape != (self.num_units,):
            raise ValueError(f"keep must have shape ({self.num_units},), got {tuple(keep.shape)}")
        self.keep.copy_(keep.to(self.keep))
        self.masked = True

    def forward(
        self,
        images: Tensor,
        unit_gate: Tensor | None = None,
        group: Tensor | None = None,
        tap: Tap | None = None,
        block_tap: Callable[[int, Tensor, Tokens], None] | None = None,
    ) -> Tensor:
        """Class logits of images.

        Args:
            images: RGB in [0, 1], [B, 3, S, S].
            unit_gate: Factors on the units' contributions [B, U] or [1, U]; None means ones.
            group: A fixed match of patches to tokens [B, P] instead of the model's own (merging models only).
            tap: Called at every site with what it reads and writes.
            block_tap: Called after every block with its index, output [B, N, D] and tokens.

        Returns:
            Logits [B, K].
        """
        gate = self._effective_gate(unit_gate)
        x, tokens, bias = self._embed(images), Tokens(), None
        for index, block in enumerate(self.vit.blocks):
            if self.merge is not None and index == self.merge.block:
                x, tokens, bias = self._merge(x, group)
            x = self._attention(index, block, x, gate, bias, tokens, tap)
            x = self._mlp(index, block, x, gate, tokens, tap)
            if block_tap is not None:
                block_tap(index, x, tokens)
        return self._classify(x, tokens)

    def _effective_gate(self, unit_gate: Tensor | None) -> Tensor | None:
        if not self.masked:
            return unit_gate
        return self.keep[None] if unit_gate is None else unit_gate * self.keep

    def _embed(self, images: Tensor) -> Tensor:
        vit = self.vit
        x = vit.patch_embed((images - self.mean) / self.std)
        side = images.shape[-1] // self.patch_size
        if vit.pos_embed is None or side == self.grid[0]:
            return vit.norm_pre(vit._pos_embed(x))
        if vit.num_prefix_tokens:
            raise ValueError("training at a smaller image side needs a model without prefix tokens")
        position = resample_abs_pos_embed(vit.pos_embed, [side, side], [*self.grid], 0)
        return vit.norm_pre(vit.pos_drop(x + position))

    def _merge(self, x: Tensor, group: Tensor | None) -> tuple[Tensor, Tokens, Tensor]:
        assert self.merge is not None
        prefix = self.num_prefix_tokens
        patches = x[:, prefix:]
        r = self.merge.r * patches.shape[1] // (self.grid[0] * self.grid[1])
        if group is None:
            group = match_tokens(patches, r)
        merged, tokens = merge_tokens(patches, group, patches.shape[1] - r)
        assert tokens.sizes is not None
        bias = tokens.sizes.log()
        if prefix:
            merged = torch.cat([x[:, :prefix], merged], dim=1)
            bias = torch.cat([bias.new_zeros(bias.shape[0], prefix), bias], dim=1)
        return merged, tokens, bias[:, None, None, :]

    def _attention(
        self,
        index: int,
        block: Block,
        x: Tensor,
        gate: Tensor | None,
        bias: Tensor | None,
        tokens: Tokens,
        tap: Tap | None,
    ) -> Tensor:
        attn = block.attn
        batch, num_tokens, _ = x.shape
        qkv = attn.qkv(block.norm1(x)).reshape(batch, num_tokens, 3, attn.num_heads, attn.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attn.q_norm(q), attn.k_norm(k)
        dropout = attn.attn_drop.p if self.training else 0.0
        # [B, 1, 1, N] is expanded by hand: some fused kernels take no broadcast masks.
        mask = None if bias is None else bias.to(q.dtype).expand(batch, 1, num_tokens, num_tokens)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        site = 2 * index
        if gate is not None:
            z = z * gate[:, self.sites[site].units, None, None].to(z.dtype)
        if tap is not None:
            tap(site, x, z, tokens)
        written = attn.proj_drop(attn.proj(z.transpose(1, 2).flatten(2)))
        return x + block.drop_path1(block.ls1(written))

    def _mlp(
        self, index: int, block: Block, x: Tensor, gate: Tensor | None, tokens: Tokens, tap: Tap | None
    ) -> Tensor:
        mlp = block.mlp
        h = mlp.drop1(mlp.act(mlp.fc1(block.norm2(x))))
        site = 2 * index + 1
        if gate is not None:
            h = h * gate[:, None, self.sites[site].units].to(h.dtype)
        if tap is not None:
            tap(site, x, h, tokens)
        return x + block.drop_path2(block.ls2(mlp.drop2(mlp.fc2(h))))

    def _classify(self, x: Tensor, tokens: Tokens) -> Tensor:
        vit = self.vit
        x = vit.norm(x)
        if tokens.sizes is not None and vit.global_pool == "avg":
            weights = tokens.sizes.to(x.dtype) / tokens.sizes.sum(-1, keepdim=True).to(x.dtype)
            if vit.pool_include_prefix:
                raise ValueError("token merging does not support pool_include_prefix=True")
            x = (weights[:, None, :] @ x[:, self.num_prefix_tokens :])[:, 0]
        else:
            x = vit.pool(x)
        return vit.head(vit.head_drop(vit.fc_norm(x)))

    def write_weight(self, site: int) -> Tensor:
        """What a site's units write into the stream, LayerScale folded in.

        Returns:
            [D, H, d] for heads (columns of `proj`), [D, M] for neurons (columns of `fc2`).
        """
        block = self.vit.blocks[self.sites[site].block]
        heads = self.sites[site].kind == "heads"
        weight = block.attn.proj.weight if heads else block.mlp.fc2.weight
        scale = getattr(block.ls1 if heads else block.ls2, "gamma", None)
        if scale is not None:
            weight = scale[:, None] * weight
        return weight.unflatten(1, (block.attn.num_heads, block.attn.head_dim)) if heads else weight

    def unit_parameters(self, site: int) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
        """Parameters that belong to the units of a site.

        Yields:
            (parameter, dim, owner): along `dim` the entry i belongs to unit owner[i] (int64).
        """
        spec = self.sites[site]
        block = self.vit.blocks[spec.block]
        units = torch.arange(spec.num_units, device=self.keep.device)
        if spec.kind == "heads":
            columns = units.repeat_interleave(block.attn.head_dim)
            yield block.attn.proj.weight, 1, columns
            yield block.attn.qkv.weight, 0, columns.repeat(3)
            if block.attn.qkv.bias is not None:
                yield block.attn.qkv.bias, 0, columns.repeat(3)
        else:
            yield block.mlp.fc2.weight, 1, units
            yield block.mlp.fc1.weight, 0, units
            if block.mlp.fc1.bias is not None:
                yield block.mlp.fc1.bias, 0, units


def sites_of(arch: Arch) -> tuple[Site, ...]:
    """Sites of a model in the order attn, mlp of block 0, attn, mlp of block 1, ..."""
    sites: list[Site] = []
    start = 0
    for block, (heads, neurons) in enumerate(zip(arch.num_heads, arch.hidden_features, strict=True)):
        for part, kind, units in (("attn", "heads", heads), ("mlp", "neurons", neurons)):
            name = f"blocks.{block}.{part}"
            sites.append(Site(name=name, block=block, kind=kind, num_units=units, start=start))  # type: ignore[arg-type]
            start += units
    return tuple(sites)


def create_dense(config: ModelConfig, *, img_size: int, num_classes: int) -> PrunableViT:
    """Build the dense model of a run, randomly initialised or from given weights.

    Raises:
        ValueError: If the model is not a plain timm VisionTransformer, or weights do not fit.
    """
    kwargs = dict(config.kwargs) | {"img_size": img_size, "num_classes": num_classes}
    vit = _create_timm(config.name, kwargs, config.stem, pretrained=config.pretrained)
    if config.weights:
        _load_weights(vit, Path(config.weights))
    first = vit.blocks[0]
    arch = Arch(
        name=config.name,
        kwargs=kwargs,
        stem=config.stem,
        num_heads=tuple(block.attn.num_heads for block in vit.blocks),
        hidden_features=tuple(block.mlp.fc1.out_features for block in vit.blocks),
        head_dim=first.attn.head_dim,
    )
    return PrunableViT(vit, arch, None, *_normalisation(vit))


def build_model(arch: Arch, merge: Merge | None = None) -> PrunableViT:
    """Build a model with exactly the widths of `arch`, randomly initialised, BatchNorm folded.

    This is how a shipped variant is rebuilt before its weights are loaded; its widths may differ by block.
    """
    vit = _create_timm(arch.name, dict(arch.kwargs), arch.stem, pretrained=False)
    if len(vit.blocks) != len(arch.num_heads):
        raise ValueError(f"{arch.name} has {len(vit.blocks)} blocks, arch lists {len(arch.num_heads)}")
    for block, heads, neurons in zip(vit.blocks, arch.num_heads, arch.hidden_features, strict=True):
        _resize_block(block, heads, neurons, arch.head_dim)
    model = PrunableViT(vit, arch, merge, *_normalisation(vit))
    fold_batchnorm(model)
    return model


def with_merge(model: PrunableViT, merge: Merge | None) -> PrunableViT:
    """The same model (shared tensors) with another merging step."""
    return PrunableViT(model.vit, replace(model.arch), merge, model.mean, model.std)


def fold_batchnorm(model: PrunableViT) -> None:
    """Fold the stem's BatchNorm in place, where there is one."""
    if isinstance(model.vit.patch_embed, ConvStem):
        model.vit.patch_embed.fold_batchnorm()


def _create_timm(name: str, kwargs: dict[str, Any], stem: str, *, pretrained: bool) -> VisionTransformer:
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*patch16*")[:5])
        raise ValueError(f"timm has no model {name!r}; close names: {close or 'see timm.list_models()'}")
    if stem != "patch":
        kwargs = kwargs | {"embed_layer": STEMS[stem]}
    try:
        vit = timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built as a VisionTransformer: {error}") from error
    reason = _refusal(vit)
    if reason:
        raise ValueError(f"{name} cannot be pruned here: {reason}")
    vit.patch_embed.strict_img_size = False
    return vit


def _refusal(vit: nn.Module) -> str | None:
    """Why a model does not fit the unit picture, or None."""
    if type(vit) is not VisionTransformer:
        return f"it is a {type(vit).__name__}; only timm's VisionTransformer has the sites this library knows"
    if vit.dynamic_img_size:
        return "dynamic_img_size=True leaves the patch grid open; maps need a fixed grid"
    if vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]:
        return f"its patch grid {vit.patch_embed.grid_size} is not square"
    for block in vit.blocks:
        if type(block) is not Block:
            return f"its blocks are {type(block).__name__}; only the sequential pre-norm Block adds units one by one"
        if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
            return f"its attention is {type(block.attn).__name__} or gated; heads must add up linearly before proj"
        if type(block.mlp) is not Mlp:
            return f"its MLP is {type(block.mlp).__name__}; only fc1-activation-fc2 has separable neurons"
        if not isinstance(block.attn.norm, nn.Identity) or not isinstance(block.mlp.norm, nn.Identity):
            return "it normalises across units before proj or fc2, so one unit's removal changes the others"
    return None


def _resize_block(block: Block, num_heads: int, hidden: int, head_dim: int) -> None:
    attn, mlp = block.attn, block.mlp
    inner = num_heads * head_dim
    attn.num_heads, attn.head_dim, attn.attn_dim = num_heads, head_dim, inner
    attn.scale = head_dim**-0.5
    attn.qkv = _linear_like(attn.qkv, attn.qkv.in_features, 3 * inner)
    attn.proj = _linear_like(attn.proj, inner, attn.proj.out_features)
    mlp.fc1 = _linear_like(mlp.fc1, mlp.fc1.in_features, hidden)
    mlp.fc2 = _linear_like(mlp.fc2, hidden, mlp.fc2.out_features)


def _linear_like(layer: nn.Linear, in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(
        in_features,
        out_features,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )


def _normalisation(vit: VisionTransformer) -> tuple[Tensor, Tensor]:
    settings = vit.pretrained_cfg
    return torch.tensor(settings["mean"]), torch.tensor(settings["std"])


def _load_weights(vit: VisionTransformer, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = checkpoint_filter_fn(state.get("state_dict", state.get("model", state)), vit)
    own = vit.state_dict()
    head = {k for k in own if k.startswith("head.") and k in state and state[k].shape != own[k].shape}
    wrong = sorted(k for k in state if k in own and k not in head and state[k].shape != own[k].shape)
    missing = sorted(k for k in own if k not in state and not k.startswith(("head.", "fc_norm.")))
    if wrong or missing:
        raise ValueError(
            f"{path.name} does not fit: other shapes {wrong[:3]} ({len(wrong)} in all), missing {missing[:3]} "
            f"({len(missing)} in all); the file must hold weights of the same timm model"
        )
    vit.load_state_dict({k: v for k, v in state.items() if k in own and k not in head}, strict=False)
