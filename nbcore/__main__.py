"""Command line: data | run | study | bench | list | measure | export | add | flips | verify."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nbcore.config import RunConfig
    from nbcore.study import StudyConfig

EPILOG = """\
a first walk, without any data:
  python -m nbcore run shapes-quick --out first    train, prune, compact, export; 2 minutes
  python -m nbcore verify --checkpoints first      check everything that was promised
  python -m app --checkpoints first                look at it

with photos:
  python -m nbcore data imagenette --data data --download
  python -m nbcore run imagenette-vit-tiny --data data --out checkpoints

on a training host without onnxruntime, `run` stops at stage "trained"; copy the folder and finish
it with
  python -m nbcore export ID --data data --checkpoints DIR
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="python -m nbcore",
        description="Train pruned Vision Transformers, measure the burden of what survives, "
        "export to ONNX.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("-v", "--verbose", action="store_true", help="say more on what happens")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _data_command(commands)
    _run_command(commands)
    _study_command(commands)
    _bench_command(commands)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="default: %(default)s",
    )
    commands.add_parser("list", parents=[where], help="show the variants of a checkpoint folder")
    for name, text in (
        ("measure", "measure the burden of a variant again, on its test photos"),
        ("export", "complete a trained variant: ONNX file, comparison with torch, manifest"),
    ):
        command = commands.add_parser(name, parents=[where], help=text, description=text)
        optional: dict[str, Any] = {"nargs": "?"} if name == "export" else {}
        command.add_argument("id", metavar="ID", help="a variant, see `list`", **optional)
        if name == "export":
            command.add_argument(
                "--triton",
                type=Path,
                metavar="DIR",
                help="instead: write exported variants (ID or all) as a Triton model repository",
            )
        _data_option(command)
    text = "take in a variant folder trained elsewhere, after verifying it"
    command = commands.add_parser("add", parents=[where], help=text, description=text)
    command.add_argument("folder", type=Path, metavar="DIR", help="folder that holds variant.json")
    _data_option(command)
    _flips_command(commands, where)
    text = (
        "re-hash every file, re-read the contract, run ONNX against torch; "
        "exit status 1 on any fault"
    )
    command = commands.add_parser("verify", parents=[where], help=text, description=text)
    command.add_argument("ids", nargs="*", metavar="ID", help="only these variants; default: all")
    command.add_argument(
        "--accuracy", action="store_true", help="also measure the test metrics again (needs --data)"
    )
    _data_option(command)
    return root


def _data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that `python -m nbcore data` filled"
    )


def _flips_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], where: argparse.ArgumentParser
) -> None:
    text = "ask all variants about all test photos and pack the most telling ones, for the page"
    command = commands.add_parser(
        "flips",
        parents=[where],
        help=text,
        description="Ask all variants about all photos of the test split and pack those on which "
        "their answers differ most tellingly; the page's tab Flips shows them. Answers that still "
        "hold are kept; what was interrupted goes on where it was.",
    )
    _data_option(command)
    command.add_argument(
        "--dataset", nargs="+", metavar="NAME", help="only these; default: all that have variants"
    )
    command.add_argument(
        "--photos", type=int, default=300, metavar="N", help="most packed; default: %(default)s"
    )
    command.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="what `data` prepared the photos from: packs the files found there instead of "
        "compressing anew",
    )
    command.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N; default: %(default)s"
    )
    command.add_argument(
        "--work",
        type=Path,
        default=Path("runs/flips"),
        metavar="DIR",
        help="unfinished work; default: %(default)s",
    )
    command.add_argument(
        "--damage",
        action="store_true",
        help="ask nobody: print whether burden tells which photos pruning loses",
    )


def _flips(options: argparse.Namespace) -> int:
    from nbcore.flips import datasets_of, renew_flips

    if options.damage:
        return _damage(options)
    if options.photos < 0:
        raise ValueError(f"--photos must be at least 0, got {options.photos}")
    for dataset in options.dataset or datasets_of(options.checkpoints):
        done = renew_flips(
            options.checkpoints,
            dataset,
            data_dir=options.data,
            device=_device(options.device),
            work_dir=options.work,
            num_photos=options.photos,
            source_dir=options.source,
        )
        print(
            f"{done.path}: {done.num_variants} variants ({len(done.asked)} asked anew) on "
            f"{done.num_photos} photos, {done.num_packed} packed, "
            f"{done.path.stat().st_size / 1e6:.1f} MB"
        )
        if done.note:
            print(f"{dataset}: {done.note}")
    return 0


def _damage(options: argparse.Namespace) -> int:
    from nbcore.answers import answers_path, read_answers
    from nbcore.checkpoint import read_manifest
    from nbcore.flips import datasets_of
    from nbcore.flips.damage import burden_damage, damage_table

    manifest, found = read_manifest(options.checkpoints), []
    for dataset in options.dataset or datasets_of(options.checkpoints):
        answers = read_answers(answers_path(options.checkpoints, dataset))
        found += burden_damage(answers, manifest)
    print("\n".join(damage_table(found)))
    return 0


def _data_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "decode a data set once, so that training can hold it in memory"
    command = commands.add_parser("data", help=text, description=text)
    command.add_argument(
        "name", metavar="NAME", help="imagenette, cifar10 or mnist; folders need no preparation"
    )
    command.add_argument("--source", type=Path, metavar="DIR", help="archives or extracted photos")
    command.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="where to write; %(default)s"
    )
    command.add_argument(
        "--download", action="store_true", help="let torchvision download the source first"
    )


def _run_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nbcore.mitigation import MITIGATIONS
    from nbcore.pruning import PRUNERS
    from nbcore.recipes import RECIPES

    recipes = "\n".join(
        f"  {name:22s}{(RECIPES[name].__doc__ or '').partition(chr(10))[0]}" for name in RECIPES
    )
    command = commands.add_parser(
        "run",
        help="train, prune, measure, export and register the variants of a recipe",
        description="Train, prune, mitigate, measure, compact, export, verify and register the "
        "variants of a recipe. "
        "What is done is skipped; what was interrupted goes on where it was.",
        epilog=f"recipes (nbcore/recipes.py):\n{recipes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("recipe", metavar="RECIPE", help="one of the names below")
    _data_option(command)
    command.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N; default: %(default)s"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="checkpoint folder; default: %(default)s",
    )
    command.add_argument(
        "--only", nargs="+", metavar="ID", help="only these variants; a dense base must exist"
    )
    own = command.add_argument_group(
        "an arm of your own", "in place of the recipe's: as its first one, but for what is named"
    )
    own.add_argument("--pruner", metavar="NAME", help=f"host: {', '.join(PRUNERS)}")
    own.add_argument(
        "--mitigation",
        metavar="NAME",
        help=f"one of these, or several joined by +: {', '.join(MITIGATIONS)}",
    )
    own.add_argument(
        "--macs-ratio", type=float, metavar="R", help="MACs over those of dense, such as 0.25"
    )
    model = command.add_mutually_exclusive_group()
    model.add_argument(
        "--pretrained", action="store_true", help="start from timm's weights (needs a network)"
    )
    model.add_argument("--weights", metavar="FILE", help="start from a local file of timm weights")


def _study_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from nbcore.study.studies import STUDIES

    studies = "\n".join(
        f"  {name:22s}{(STUDIES[name].__doc__ or '').partition(chr(10))[0]}" for name in STUDIES
    )
    command = commands.add_parser(
        "study",
        help="run a grid of hosts, mitigations, budgets and seeds, and report what it shows",
        description="Run a grid of hosts, mitigations, budgets and seeds; then tables, figures and "
        "a written report. What is done is skipped, whenever the study was stopped.",
        epilog=f"studies (nbcore/study/studies.py):\n{studies}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("study", metavar="STUDY", help="one of the names below")
    _data_option(command)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="results; default: checkpoints/study/STUDY"
    )
    command.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="dense models and compiled code, needed to go on; default: runs/study/STUDY, with "
        "--out DIR: DIR.runs",
    )
    command.add_argument(
        "--device", default="auto", help="auto (all GPUs), cpu, cuda or cuda:N; default: auto"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes for each GPU; default: 4, on a CPU 1"
    )
    command.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these seeds")
    command.add_argument(
        "--limit-seconds", type=float, metavar="S", help="start no run after S seconds"
    )
    command.add_argument(
        "--report", action="store_true", help="run nothing: make figures and report anew"
    )


def _study(options: argparse.Namespace) -> int:
    from nbcore.study import STUDIES, run_study

    study = STUDIES[options.study]()
    out = options.out or Path("checkpoints/study") / study.name
    if options.report:
        return _report_study(study, out)
    work = options.work or (
        out.with_name(f"{out.name}.runs") if options.out else Path("runs/study") / study.name
    )
    devices = _devices(options.device)
    usual = 4 if devices[0].startswith("cuda") else 1
    workers = usual if options.workers is None else options.workers
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    progress = run_study(
        study,
        out=out,
        work_dir=work,
        data_dir=options.data,
        devices=devices,
        workers=workers,
        seeds=options.seeds,
        limit_seconds=options.limit_seconds,
    )
    for arm, reason in progress.failed.items():
        print(f"{arm.key}: FAILED: {reason}")
    print(f"{study.name}: {progress.finished} of {progress.total} runs are done")
    if progress.finished + len(progress.failed) < progress.total:
        print("stopped by --limit-seconds: the same command goes on")
    else:
        _report_study(study, out)
    return 1 if progress.failed else 0


def _report_study(study: StudyConfig, out: Path) -> int:
    from nbcore.study.report import write_report

    print(write_report(study, out))
    return 0


def _devices(name: str) -> list[str]:
    """Devices of a study; "auto" and "cuda" mean all GPUs."""
    device = _device(name)
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(device)]


def _bench_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "measure speed against what others offer, side by side in one run"
    command = commands.add_parser("bench", help=text, description=text)
    subjects = command.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    text = "images per second of our training loop and of timm's on the same photos"
    train = subjects.add_parser("train", help=text, description=text)
    photos = train.add_mutually_exclusive_group(required=True)
    photos.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared Imagenette; timm reads its training photos as JPEG files",
    )
    photos.add_argument(
        "--photos", type=Path, metavar="DIR", help="an image folder, train/<class>/..., for both"
    )
    photos.add_argument(
        "--synthetic", type=int, metavar="N", help="N made-up photos, to try the command out"
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto")
    for name, default, text in (
        ("--img-size", 224, "side of the photos in pixels"),
        ("--batch-size", 512, "images per step"),
        ("--rounds", 3, "processes of ours and of timm's fastest setting, in turns"),
    ):
        train.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text}; default: %(default)s"
        )
    train.add_argument(
        "--workers", type=int, metavar="N", help="processes of timm's loader; default: all cores"
    )
    train.add_argument(
        "--seconds",
        type=float,
        default=15.0,
        metavar="S",
        help="measured in each process once it is warm; default: %(default)s",
    )
    train.add_argument(
        "--settings", nargs="+", metavar="NAME", help="only these settings of timm; default: all"
    )
    train.add_argument(
        "--out",
        type=Path,
        default=Path("bench-train.json"),
        metavar="FILE",
        help="every window, with device and versions; default: %(default)s",
    )
    _bench_serve_command(subjects)
    _bench_precision_command(subjects)


def _bench_precision_command(
    subjects: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    text = "accuracy on the test photos in each precision that can be served"
    precision = subjects.add_parser("precision", help=text, description=text)
    precision.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="default: %(default)s",
    )
    _data_option(precision)
    precision.add_argument("--variants", nargs="+", metavar="ID", help="default: all")
    precision.add_argument(
        "--precisions",
        nargs="+",
        metavar="NAME",
        help="fp32, tf32, fp16, int8; default: all that the device computes in",
    )
    precision.add_argument("--device", default="auto", help="auto, cpu or cuda; default: auto")
    precision.add_argument(
        "--out",
        type=Path,
        default=Path("bench-precision.json"),
        metavar="FILE",
        help="all that was found; default: %(default)s",
    )


def _bench_serve_command(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "images per second of shipped variants in torch, ONNX Runtime and our own sessions"
    serve = subjects.add_parser("serve", help=text, description=text)
    serve.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="default: %(default)s",
    )
    serve.add_argument(
        "--variants", nargs="+", metavar="ID", help="default: dense and one at each budget"
    )
    serve.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="default: eager, compile, onnx, served, served-all; others in nbcore/bench/contenders",
    )
    serve.add_argument(
        "--precisions",
        nargs="+",
        metavar="NAME",
        help="fp32, tf32, fp16, int8; default: tf32 and fp16 on a GPU, fp32 on a CPU",
    )
    serve.add_argument(
        "--batches", nargs="+", type=int, metavar="N", help="photos in a run; default: 1 8 64 256"
    )
    serve.add_argument("--device", default="auto", help="auto, cpu or cuda; default: auto")
    serve.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of one run; default: all cores"
    )
    for name, default, text in (
        ("--seconds", 0.15, "length of a window, which holds at least one run"),
        ("--warm-up-seconds", None, "compile no further batch size after S seconds"),
        ("--limit-seconds", None, "start no window after S seconds"),
    ):
        serve.add_argument(
            name, type=float, default=default, metavar="S", help=f"{text}; default: %(default)s"
        )
    serve.add_argument(
        "--rounds", type=int, default=6, metavar="N", help="windows of each; default: %(default)s"
    )
    serve.add_argument(
        "--out",
        type=Path,
        default=Path("bench-serve.json"),
        metavar="FILE",
        help="all that was found; a figure beside it, .png; default: %(default)s",
    )


def _bench(options: argparse.Namespace) -> int:
    benches = {"train": _bench_train, "serve": _bench_serve, "precision": _bench_precision}
    return benches[options.subject](options)


def _bench_precision(options: argparse.Namespace) -> int:
    from nbcore.bench.precision import PrecisionBench, bench_precision, precision_table

    bench = PrecisionBench(
        checkpoints=options.checkpoints,
        data_dir=options.data,
        variants=tuple(options.variants or ()),
        precisions=tuple(options.precisions or ()),
        device=options.device,
    )
    command = f"python -m nbcore {shlex.join(options.arguments)}"
    for line in precision_table(bench_precision(bench, command=command, out=options.out)):
        print(line)
    return 0


def _bench_serve(options: argparse.Namespace) -> int:
    from nbcore.bench.cores import usable_cores
    from nbcore.bench.serve import ServeBench, bench_serve
    from nbcore.bench.serve_report import table

    given = {
        name: tuple(value)
        for name in ("variants", "contenders", "precisions", "batches")
        if (value := getattr(options, name)) is not None
    }
    cores = usable_cores()
    bench = ServeBench(
        checkpoints=options.checkpoints,
        device=_device(options.device).type,
        threads=cores if options.threads is None else options.threads,
        seconds=options.seconds,
        rounds=options.rounds,
        warm_up_seconds=options.warm_up_seconds,
        limit_seconds=options.limit_seconds,
        **given,
    )
    command = f"python -m nbcore {shlex.join(options.arguments)}"
    report = bench_serve(bench, command=command, out=options.out, num_cores=cores)
    for line in table(report):
        print(line)
    # Last, and imported last: a measuring host may lack what draws.
    from nbcore.bench.serve_figure import draw_serve

    draw_serve(report, options.out.with_suffix(".png"))
    return 0


def _bench_train(options: argparse.Namespace) -> int:
    from nbcore.bench.cores import usable_cores
    from nbcore.bench.timm_loop import TIMM
    from nbcore.bench.train import TrainBench, bench_train, table

    bench = TrainBench(
        data_dir=options.data,
        photos=options.photos,
        synthetic=options.synthetic,
        device=str(_device(options.device)),
        img_size=options.img_size,
        batch_size=options.batch_size,
        workers=usable_cores() if options.workers is None else options.workers,
        seconds=options.seconds,
        rounds=options.rounds,
        settings=tuple(options.settings or TIMM),
    )
    command = f"python -m nbcore {shlex.join(options.arguments)}"
    for line in table(bench_train(bench, command=command, out=options.out)):
        print(line)
    return 0


def _run(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from nbcore.distributed import join
    from nbcore.pipeline import run_variant
    from nbcore.recipes import OWN, RECIPES, arm_of

    processes, own = join(options.device)
    device = own or _device(options.device)
    launched = f"accelerate launch --num_processes {processes.count}"
    python = "python" if processes.count == 1 else launched
    recipe = RECIPES[options.recipe]()
    named = {key: getattr(options, key) for key in OWN if getattr(options, key) is not None}
    if named:
        recipe = (recipe[0], arm_of(recipe, **(OWN | named)))
    runs = [replace(config, seed=options.seed) for config in recipe]
    if options.pretrained or options.weights:
        runs = [
            replace(
                c, model=replace(c.model, pretrained=options.pretrained, weights=options.weights)
            )
            for c in runs
        ]
    if options.only:
        unknown = set(options.only) - {config.id for config in runs}
        if unknown:
            raise ValueError(
                f"{options.recipe} has no variant {sorted(unknown)}; it has {[c.id for c in runs]}"
            )
        runs = [config for config in runs if config.id in options.only]
    start = " --pretrained" if options.pretrained else ""
    start = f" --weights {options.weights}" if options.weights else start
    stages = set()
    for config in runs:
        command = (
            f"{python} -m nbcore run {options.recipe} {_chosen(named, config)} "
            f"--seed {options.seed} --data DIR{start}"
        )
        stage = run_variant(
            config, options.out, options.data, device, command=command, processes=processes
        )
        stages.add(stage)
        if processes.is_first:
            print(f"{config.id}: {stage}")
    if "trained" in stages and processes.is_first:
        print(
            "onnxruntime is not installed here: finish with `python -m nbcore export ID --data DIR "
            f"--checkpoints {options.out}` where it is"
        )
    processes.part()
    return 0


def _chosen(named: dict[str, Any], config: RunConfig) -> str:
    """Options of `run` that choose this run."""
    if not named or config.prune is None:
        return f"--only {config.id}"
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in named.items())


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda was asked for, but torch sees no GPU; use --device cpu or auto"
        )
    return device


def _data(options: argparse.Namespace) -> int:
    from nbcore.data import prepare

    print(prepare(options.name, options.source, options.data, download=options.download))
    return 0


def _list(options: argparse.Namespace) -> int:
    from nbcore.checkpoint import MANIFEST, VARIANT, Manifest, read_manifest

    waiting = {path.parent.name for path in options.checkpoints.glob(f"*/{VARIANT}")}
    exists = (options.checkpoints / MANIFEST).exists()
    manifest = Manifest() if waiting and not exists else read_manifest(options.checkpoints)
    width = max((len(v.id) for v in manifest.variants), default=0)
    for v in manifest.variants:
        top1, onnx = v.metrics.get("top1"), v.files.get("onnx")
        print(
            f"{v.id:{width}s}  top1 {'-' if top1 is None else f'{top1:.4f}'}  "
            f"MACs {v.macs / 1e6:8.1f} M ({v.macs_ratio:.3f})  "
            f"parameters {v.num_params / 1e6:6.3f} M  "
            f"onnx {f'{onnx.size_bytes / 1e6:5.1f} MB' if onnx else '-'}"
        )
    for name in sorted(waiting - {v.id for v in manifest.variants} - set(manifest.refused)):
        print(
            f"{name}: trained; complete it with `python -m nbcore export {name} --data DIR "
            f"--checkpoints {options.checkpoints}`"
        )
    for name, reason in manifest.refused.items():
        print(f"{name}: refused: {reason}")
    return 1 if manifest.refused else 0


def _export(options: argparse.Namespace) -> int:
    if options.triton is not None:
        from nbcore.triton import write_triton

        ids = [] if options.id is None else [options.id]
        for folder in write_triton(options.checkpoints, options.triton, ids):
            print(folder)
        return 0
    if options.id is None:
        raise ValueError("name a variant, or a folder with --triton")
    from nbcore.checkpoint import read_trained
    from nbcore.complete import export_variant, load_for

    variant = read_trained(options.checkpoints, options.id)
    variant = export_variant(
        options.id, options.checkpoints, load_for(options.checkpoints, variant, options.data)
    )
    print(
        f"{variant.id}: top1 {variant.metrics['top1']:.4f}, parity "
        f"{variant.metrics['parity_logits']:.1e}"
    )
    return 0


def _measure(options: argparse.Namespace) -> int:
    from nbcore.checkpoint import read_trained
    from nbcore.complete import load_for, measure_variant

    variant = read_trained(options.checkpoints, options.id)
    report = measure_variant(
        options.id, options.checkpoints, load_for(options.checkpoints, variant, options.data)
    )
    print(
        f"{'site':18s}{'burden':>9s}{'null':>9s}{'select':>9s}{'takeover':>9s}{'residual':>9s}{'stream':>9s}"
        f"{'occupied':>9s}"
    )
    rows = (
        report.burden,
        report.burden_null,
        report.selection,
        report.takeover,
        report.residual,
        report.stream,
        report.occupancy,
    )
    for site, *values in zip(report.sites, *rows, strict=True):
        print(f"{site:18s}" + "".join(f"{'-' if v is None else f'{v:.3f}':>9s}" for v in values))
    return 0


def _add(options: argparse.Namespace) -> int:
    from nbcore.add import add_variant

    print(f"{add_variant(options.folder, options.checkpoints, options.data).id}: added")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from nbcore.verify import verify

    faults = 0
    for finding in verify(
        options.checkpoints, only=options.ids, data_dir=options.data, accuracy=options.accuracy
    ):
        faults += not finding.ok
        print(f"{'ok   ' if finding.ok else 'FAULT'} {finding.variant}: {finding.text}")
    print(f"{faults} faults" if faults else "everything holds")
    return 1 if faults else 0


COMMANDS = {
    "data": _data,
    "run": _run,
    "study": _study,
    "bench": _bench,
    "list": _list,
    "measure": _measure,
    "export": _export,
    "add": _add,
    "flips": _flips,
    "verify": _verify,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend are one line on stderr and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    options.arguments = arguments
    if options.command != "run" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(
            f"nbcore: several processes can share `run` only, not `{options.command}`: start it "
            "with `python -m nbcore`",
            file=sys.stderr,
        )
        return 2
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return COMMANDS[options.command](options)
    except (ValueError, RuntimeError, OSError) as error:
        if options.verbose:
            raise
        print(f"nbcore: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nnbcore: stopped; the same command goes on from the last saved epoch", file=sys.stderr
        )
        return 130


if __name__ == "__main__":
    from nbcore.serve.provider import leave

    leave(main())
