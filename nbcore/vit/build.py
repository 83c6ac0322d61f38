"""Models by name and by architecture: timm in, `PrunableViT` out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import Attention, Mlp
from timm.models import named_apply
from timm.models.vision_transformer import (
    Block,
    VisionTransformer,
    checkpoint_filter_fn,
    init_weights_vit_timm,
)
from torch import Tensor, nn

from nbcore.config import Arch, Merge, ModelConfig
from nbcore.vit.model import PrunableViT
from nbcore.vit.stem import STEMS, ConvStem

logger = logging.getLogger(__name__)


def create_dense(config: ModelConfig, *, img_size: int, num_classes: int) -> PrunableViT:
    """Build the dense model of a run, randomly initialised or from given weights.

    Raises:
        ValueError: If the model is not a plain timm VisionTransformer, or weights do not fit.
    """
    kwargs = dict(config.kwargs) | {"img_size": img_size, "num_classes": num_classes}
    vit = _create_timm(config.name, kwargs, config.stem, pretrained=config.pretrained)
    patch = vit.patch_embed.patch_size[0]
    if img_size % patch:
        raise ValueError(f"img_size must be a multiple of the patch size {patch}, got {img_size}")
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

    This is how a shipped variant is rebuilt before its weights are loaded; its widths may differ
    by block.
    """
    vit = _create_timm(arch.name, dict(arch.kwargs), arch.stem, pretrained=False)
    if len(vit.blocks) != len(arch.num_heads):
        raise ValueError(
            f"{arch.name} has {len(vit.blocks)} blocks, arch lists {len(arch.num_heads)}"
        )
    for block, heads, neurons in zip(vit.blocks, arch.num_heads, arch.hidden_features, strict=True):
        _resize_block(block, heads, neurons, arch.head_dim)
    model = PrunableViT(vit, arch, merge, *_normalisation(vit))
    fold_batchnorm(model)
    return model


def with_merge(model: PrunableViT, merge: Merge | None) -> PrunableViT:
    """The same model (shared tensors, same mask and mode) with another merging step."""
    other = PrunableViT(model.vit, replace(model.arch), merge, model.mean, model.std)
    other.to(model.mean.device)  # Its own buffers; what is shared is there already.
    if model.masked:
        other.set_keep(model.keep)
    return other.train(model.training)


def narrowed(
    model: PrunableViT, num_heads: Sequence[int], hidden_features: Sequence[int]
) -> PrunableViT:
    """The same model with other widths; attention and MLP layers start afresh, as timm starts them.

    Args:
        model: Gives its stem, norms and classifier away; not to be used afterwards.
        num_heads: Heads of each block.
        hidden_features: MLP neurons of each block.
    """
    arch = replace(model.arch, num_heads=tuple(num_heads), hidden_features=tuple(hidden_features))
    for block, heads, neurons in zip(
        model.vit.blocks, arch.num_heads, arch.hidden_features, strict=True
    ):
        _resize_block(block, heads, neurons, arch.head_dim)
        named_apply(init_weights_vit_timm, block)
    return PrunableViT(model.vit, arch, model.merge, model.mean, model.std)


def fold_batchnorm(model: PrunableViT) -> None:
    """Fold the stem's BatchNorm in place, where there is one."""
    if isinstance(model.vit.patch_embed, ConvStem):
        model.vit.patch_embed.fold_batchnorm()


def _create_timm(
    name: str, kwargs: dict[str, Any], stem: str, *, pretrained: bool
) -> VisionTransformer:
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*patch16*")[:5])
        raise ValueError(
            f"timm has no model {name!r}; close names: {close or 'see timm.list_models()'}"
        )
    if stem != "patch":
        kwargs = kwargs | {"embed_layer": STEMS[stem]}
    try:
        vit = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (TypeError, AssertionError, RuntimeError) as error:
        # timm refuses impossible combinations by bare assertions.
        raise ValueError(
            f"{name} with {kwargs} cannot be built as a VisionTransformer: "
            f"{str(error) or repr(error)}"
        ) from error
    reason = _refusal(vit)
    if reason:
        raise ValueError(f"{name} cannot be pruned here: {reason}")
    vit.patch_embed.strict_img_size = False
    return vit


def _refusal(vit: Any) -> str | None:
    """Why a model does not fit the unit picture, or None."""
    if type(vit) is not VisionTransformer:
        return (
            f"it is a {type(vit).__name__}; only timm's VisionTransformer has the sites this "
            "library knows"
        )
    if type(vit.patch_embed) not in tuple(STEMS[name] for name in STEMS):
        return (
            f"its patch embedding is {type(vit.patch_embed).__name__}, whose cost is not known; "
            f"known stems: {', '.join(STEMS)}"
        )
    if getattr(vit, "in_chans", 3) != 3:
        return f"it takes {vit.in_chans} channels; images here are RGB"
    if not isinstance(vit.patch_drop, nn.Identity):
        return "patch_drop_rate > 0 drops patches at random, which this forward pass does not do"
    if vit.dynamic_img_size:
        return "dynamic_img_size=True leaves the patch grid open; maps need a fixed grid"
    if vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]:
        return f"its patch grid {vit.patch_embed.grid_size} is not square"
    for block in vit.blocks:
        if type(block) is not Block:
            return (
                f"its blocks are {type(block).__name__}; only the sequential pre-norm Block adds "
                "units one by one"
            )
        if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
            return (
                f"its attention is {type(block.attn).__name__} or gated; heads must add up "
                "linearly before proj"
            )
        if type(block.mlp) is not Mlp:
            return (
                f"its MLP is {type(block.mlp).__name__}; only fc1-activation-fc2 has separable "
                "neurons"
            )
        if not isinstance(block.attn.norm, nn.Identity) or not isinstance(
            block.mlp.norm, nn.Identity
        ):
            return (
                "it normalises across units before proj or fc2, so one unit's removal changes the "
                "others"
            )
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
    state = checkpoint_filter_fn(_read_weights(path), vit)
    own = vit.state_dict()
    head = {
        k for k in own if k.startswith("head.") and k in state and state[k].shape != own[k].shape
    }
    wrong = sorted(
        k for k in state if k in own and k not in head and state[k].shape != own[k].shape
    )
    missing = sorted(k for k in own if k not in state and not k.startswith(("head.", "fc_norm.")))
    if wrong or missing:
        raise ValueError(
            f"{path.name} does not fit: other shapes {wrong[:3]} ({len(wrong)} in all), missing "
            f"{missing[:3]} "
            f"({len(missing)} in all); the file must hold weights of the same timm model"
        )
    if head or "head.weight" not in state:
        logger.warning("%s: its classifier was left out, ours starts at random", path.name)
    vit.load_state_dict(
        {k: v for k, v in state.items() if k in own and k not in head}, strict=False
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state.get("model", state)))
    except Exception as error:  # Each format and each kind of damage has its own.
        raise ValueError(
            f"{path.name} cannot be read as weights ({error}); give tensors by name, as "
            ".safetensors or as .pth/.pt without pickled code"
        ) from error
