"""Vision Transformers pruned while they train: measured, compacted, exported and served."""

import os

# Read when ONNX Runtime is first imported: since 1.29 it reports each session to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
