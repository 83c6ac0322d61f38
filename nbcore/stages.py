"""How far a run has come: nothing, `trained`, or `exported`; from what its files say, not from
memory."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nbcore import checkpoint
from nbcore.checkpoint import CheckpointError
from nbcore.config import RunConfig

logger = logging.getLogger(__name__)


def run_record(config: RunConfig) -> dict[str, Any]:
    """A run's configuration as plain JSON data."""
    return json.loads(json.dumps(asdict(config)))


def base_sha256(config: RunConfig, out: Path) -> str | None:
    """Hash of the weights that a pruned run forks from, None for a dense run.

    Raises:
        CheckpointError: If the base was not trained.
    """
    if config.base is None:
        return None
    return checkpoint.read_trained(out, config.base).files["weights"].sha256


def is_trained(config: RunConfig, out: Path) -> bool:
    """Whether this very run, forked from this very base, has left its files."""
    record = checkpoint.recorded_run(out, config.id)
    if record.get("run") != run_record(config):
        return False
    if not (out / config.id / checkpoint.VARIANT).is_file():
        return False
    # Records of earlier versions do not name the base's weights.
    return "base_sha256" not in record or record["base_sha256"] == base_sha256(config, out)


def is_exported(config: RunConfig, out: Path) -> bool:
    """Whether the manifest names this very run and all its files are whole."""
    if not is_trained(config, out) or not (out / checkpoint.MANIFEST).is_file():
        return False
    try:
        checkpoint.verify_files(out, checkpoint.read_manifest(out)[config.id])
    except CheckpointError as error:
        logger.info("%s: %s", config.id, error)
        return False
    return True


def refuse_to_orphan(variant_id: str, out: Path) -> None:
    """Raise CheckpointError if other variants of the manifest were pruned from this one."""
    if not (out / checkpoint.MANIFEST).exists():
        return
    children = [v.id for v in checkpoint.read_manifest(out).variants if v.base == variant_id]
    if children:
        raise CheckpointError(
            f"{out / variant_id} does not hold what this run would train (another seed, recipe or "
            f"starting weights, or files are missing), and training it again would replace the "
            f"dense base of {', '.join(children)}; give another --out, or restore the files"
        )


def state_path(config: RunConfig, out: Path) -> Path:
    """Where a run's resumable state lies: beside the checkpoint folder, since no reader needs it.

    Its name depends on all that decides the run, so that a changed run does not go on from it.
    """
    run = json.dumps([run_record(config), base_sha256(config, out)], sort_keys=True)
    name = f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.pt"
    out = out.absolute()
    return out.with_name(f"{out.name}.runs") / config.id / name
