"""How a served session is built: one frozen, checked dataclass."""

from __future__ import annotations

from dataclasses import dataclass

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
PRECISIONS = {
    "fp32": ("auto", "cpu", "cuda", "tensorrt"),
    "tf32": ("auto", "cuda", "tensorrt"),
    "fp16": ("auto", "cuda", "tensorrt"),
    "int8": ("auto", "cpu"),
}
"""Precisions, and the devices that compute in them."""
ATTENTIONS = ("auto", "exported", "fused", "multihead", "opset23")
CONVOLUTIONS = {
    "plain": {},
    "bias": {"fuse_conv_bias": 1},
    "nhwc": {"prefer_nhwc": 1},
    "nhwc-bias": {"prefer_nhwc": 1, "fuse_conv_bias": 1},
}
"""Ways to run the stem's convolutions, and ONNX Runtime's options of CUDA for each."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class CudaForm:
    """What "auto" means on CUDA."""

    attention: str
    fuse_norms: bool
    convolutions: str


CUDA_FORMS = {
    "fp32": CudaForm(attention="fused", fuse_norms=True, convolutions="plain"),
    "tf32": CudaForm(attention="fused", fuse_norms=True, convolutions="plain"),
    "fp16": CudaForm(attention="fused", fuse_norms=True, convolutions="plain"),
}
"""By precision."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a session computes with. Nothing of it changes what a variant says beyond its rounding:
    `python -m nbcore bench precision` measures that on the test photos."""

    device: str = "auto"
    """auto takes CUDA where a session really runs there; all others fail where they don't."""
    precision: str = "fp32"
    """fp32, tf32 (matrix products with ten bits of mantissa), fp16 (graphs without loads; the loads
    stay fp32) or int8 (weights, and activations by their range in each run)."""
    attention: str = "auto"
    """exported: as in the file; fused: com.microsoft.Attention; multihead: that of three inputs;
    opset23: ONNX's own; auto: what was fastest where it was measured."""
    fuse_norms: bool | None = None
    """Additions joined with the LayerNorm or GELU behind them; None: where that was faster."""
    convolutions: str = "auto"
    """On CUDA, one of `CONVOLUTIONS`: bias joined with the product, channels last, or both; auto:
    what was fastest where it was measured."""
    cuda_graph: bool = True
    """On CUDA: one recorded graph per batch size, so that a run is one launch."""
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    """On CUDA: sizes that runs are padded up to; larger batches run in pieces."""
    threads: int = 0
    """CPU threads of one run, 0 for every usable core (at most 8)."""

    def __post_init__(self) -> None:
        choices = (
            ("device", self.device, DEVICES),
            ("precision", self.precision, tuple(PRECISIONS)),
            ("attention", self.attention, ATTENTIONS),
            ("convolutions", self.convolutions, ("auto", *CONVOLUTIONS)),
        )
        for name, given, right in choices:
            if given not in right:
                raise ValueError(f"{name} must be one of {', '.join(right)}, got {given!r}")
        if self.device not in PRECISIONS[self.precision]:
            raise ValueError(
                f"precision {self.precision} runs on {', '.join(PRECISIONS[self.precision])}, not "
                f"on {self.device}"
            )
        sizes = self.batch_sizes
        if not sizes or sorted(set(sizes)) != list(sizes) or sizes[0] < 1:
            raise ValueError(f"batch_sizes must be positive and rising, got {sizes}")
        if not 0 <= self.threads <= 256:
            raise ValueError(f"threads must be from 0 to 256, got {self.threads}")

    def padded(self, count: int) -> int:
        """The size at which `count` images run: the next served one, or the largest."""
        return next((size for size in self.batch_sizes if size >= count), self.batch_sizes[-1])
