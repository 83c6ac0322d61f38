"""The whole story of one variant: data, train, prune, measure, compact, export, register.

A run has two stages. `trained` leaves weights, history and measurements; `exported` adds the ONNX
graph and what is measured through it, and only then does the manifest name the variant. A host
without onnxruntime stops after the first; `export_variant` completes it anywhere.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

import torch

from nbcore.complete import export_variant
from nbcore.config import RunConfig
from nbcore.data import load_dataset
from nbcore.distributed import ALONE, Processes
from nbcore.fit import fit, read_base
from nbcore.mitigation import check_combination
from nbcore.pruning import PRUNERS
from nbcore.record import record
from nbcore.stages import is_exported, is_trained, refuse_to_orphan, state_path

logger = logging.getLogger(__name__)


def run_variant(
    config: RunConfig,
    out: Path,
    data_dir: Path | None,
    device: torch.device,
    *,
    command: str,
    processes: Processes = ALONE,
) -> str:
    """Bring one variant as far as this host can; what is done already is not done again.

    Args:
        config: The run.
        out: Checkpoint folder.
        data_dir: Where prepared data lie.
        device: Where to train.
        command: The command line that reproduces this run, for the record.
        processes: Those that train together, each calling this with the same arguments; the first
            one does all else.

    Returns:
        "exported" or "trained", the stage that was reached.

    Raises:
        CheckpointError: If files of this variant or its base are damaged, or training would
            replace a dense base under the variants that were pruned from it.
        ValueError: If the host removes no units, so that there is no smaller model to export, or
            cannot be combined with the mitigation.
    """
    if config.prune is not None and not PRUNERS[config.prune.pruner].compacts:
        raise ValueError(
            f"{config.id}: host {config.prune.pruner!r} sets single weights to zero and removes no "
            "unit, so there is nothing to compact and nothing gets faster; it runs in studies only "
            "(`python -m nbcore study`)"
        )
    if processes.of_first(lambda: is_exported(config, out)):
        logger.info("%s: already exported", config.id)
        return "exported"
    trained = processes.of_first(lambda: is_trained(config, out))
    if not trained:
        if config.prune is not None:
            check_combination(config.prune.pruner, config.prune.mitigation)
        processes.of_first(lambda: refuse_to_orphan(config.id, out))
    data = load_dataset(
        config.data.dataset,
        data_dir,
        img_size=config.data.img_size,
        crop_pct=config.data.crop_pct,
        validation_share=config.data.validation_share,
    )
    if not trained:
        base, state = read_base(config, out), state_path(config, out)
        fitted = fit(config, data, base, device, state, processes)

        def keep() -> None:
            variant = record(config, data, base, fitted, out, device, command=command)
            shutil.rmtree(state.parent, ignore_errors=True)
            logger.info("%s: trained, top-1 %.4f", config.id, variant.metrics["top1"])

        processes.of_first(keep)
    if importlib.util.find_spec("onnxruntime") is None:
        return "trained"

    def complete() -> None:
        export_variant(config.id, out, data)

    processes.of_first(complete)
    return "exported"
