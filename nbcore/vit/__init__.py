"""timm Vision Transformers as sites and units; this package alone knows timm's attributes."""

from nbcore.vit.block import Parts, block_forward, stem_forward
from nbcore.vit.build import build_model, create_dense, fold_batchnorm, narrowed, with_merge
from nbcore.vit.compiled import compiled_parts
from nbcore.vit.merging import Tokens, match_tokens, merge_tokens, unmerge
from nbcore.vit.model import PrunableViT, Tap
from nbcore.vit.sites import Site, SiteKind, sites_of
from nbcore.vit.stem import STEMS, ConvStem

__all__ = [
    "STEMS",
    "ConvStem",
    "Parts",
    "PrunableViT",
    "Site",
    "SiteKind",
    "Tap",
    "Tokens",
    "block_forward",
    "build_model",
    "compiled_parts",
    "create_dense",
    "fold_batchnorm",
    "match_tokens",
    "merge_tokens",
    "narrowed",
    "sites_of",
    "stem_forward",
    "unmerge",
    "with_merge",
]
