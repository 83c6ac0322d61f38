"""Small models in double precision with nothing at zero, for identities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbcore.burden import MeteredViT
from nbcore.config import Merge, ModelConfig
from nbcore.vit import PrunableViT, create_dense, with_merge

SHAPE = {"depth": 2, "num_heads": 4, "embed_dim": 32, "mlp_ratio": 0.5, "patch_size": 8}
NUM_PATCHES = 16
AVERAGED = {"class_token": False, "global_pool": "avg"}


def tiny(
    name: str = "vit_tiny_patch16_224",
    *,
    stem: str = "patch",
    merge: Merge | None = None,
    seed: int = 0,
    **kwargs: object,
) -> PrunableViT:
    """A 32-pixel model in evaluation mode: 16 patches, two blocks of 4 heads and 16 neurons."""
    config = ModelConfig(name=name, stem=stem, kwargs=SHAPE | kwargs)
    model = create_dense(config, img_size=32, num_classes=5).double()
    randomise(model, seed)
    return with_merge(model, merge).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Every weight, bias, gain and running statistic at random, so that no term drops out."""
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if isinstance(module, (*norms, nn.Identity)) or name == "gamma":
                value.copy_(0.3 * noise + (name != "bias"))
            elif isinstance(module, nn.Linear | nn.Conv2d) and name == "weight":
                value.copy_(noise * value[0].numel() ** -0.5)
            else:
                value.copy_(0.5 * noise)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def metered(model: PrunableViT, seed: int = 1) -> MeteredViT:
    """A model with random calibration means."""
    generator = torch.Generator().manual_seed(seed)
    means = []
    for site in model.sites:
        shape = (site.num_units, model.arch.head_dim) if site.kind == "heads" else [site.num_units]
        means.append(0.2 * torch.randn(shape, generator=generator, dtype=torch.float64))
    return MeteredViT(model, means).eval().requires_grad_(False)


def pictures(count: int = 2, *, side: int = 32, seed: int = 2) -> Tensor:
    """Noise in [0, 1], [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)


def paired(images: Tensor, patch: int = 8) -> Tensor:
    """The same pictures with every odd patch of a row made a copy of its left neighbour."""
    images = images.clone()
    for column in range(patch, images.shape[-1], 2 * patch):
        images[..., column : column + patch] = images[..., column - patch : column]
    return images


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    """Assert equality of shape and of values, absolutely."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
