"""Stem and block compiled, for any number of models in a process."""

from __future__ import annotations

import functools

import torch

from nbcore.vit.block import Parts, block_forward, stem_forward


@functools.cache
def compiled_parts() -> Parts:
    """What a forward pass on CUDA consists of. One graph serves all blocks of equal width, and all
    models: a later model of the same shape costs no compilation."""
    # Each image side, gating and merging is a graph of its own; beyond the default of 8 they would
    # silently run uncompiled.
    torch._dynamo.config.recompile_limit = 128
    return Parts(
        stem=torch.compile(stem_forward, dynamic=False),
        block=torch.compile(block_forward, dynamic=False),
    )
