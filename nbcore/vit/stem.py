"""Patch embeddings by name."""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from torch import Tensor, nn

from nbcore.registry import Registry

STEMS: Registry[type[nn.Module]] = Registry("stem")
STEMS.register("patch")(PatchEmbed)


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
                "a convolutional stem needs a patch size that is a power of two and a width "
                "divisible by half of it, "
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
        """Fold each BatchNorm into the convolution before it; evaluation outputs stay equal."""
        folded: list[nn.Module] = []
        for layer in self.stages:
            if isinstance(layer, nn.BatchNorm2d):
                convolution = folded[-1].eval()
                assert isinstance(convolution, nn.Conv2d)
                folded[-1] = nn.utils.fuse_conv_bn_eval(convolution, layer.eval())
            else:
                folded.append(layer)
        self.stages = nn.Sequential(*folded)
