"""timm Vision Transformers as sites and units; this package alone knows timm's attributes."""

from nbcore.vit.build import build_model, create_dense, fold_batchnorm, with_merge
from nbcore.vit.merging import Tokens, match_tokens, merge_tokens, unmerge
from nbcore.vit.model import PrunableViT, Tap
from nbcore.vit.sites import Site, SiteKind, sites_of
from nbcore.vit.stem import STEMS, ConvStem

__all__ = [
    "STEMS",
    "ConvStem",
    "PrunableViT",
    "Site",
    "SiteKind",
    "Tap",
    "Tokens",
    "build_model",
    "create_dense",
    "fold_batchnorm",
    "match_tokens",
    "merge_tokens",
    "sites_of",
    "unmerge",
    "with_merge",
]
