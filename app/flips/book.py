"""Flips files -> answers that are those of the served variants; others are refused by name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.catalog import VariantInfo, catalog, default_ids
from app.errors import UserError
from app.registry import ModelRegistry
from nbcore.answers import Answers, PhotoPack, answers_path, read_answers, stale
from nbcore.checkpoint import CheckpointError, read_manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Voice:
    """What one variant says of all photos."""

    info: VariantInfo
    probs: np.ndarray
    """float64 [n, K], rows sum to one."""
    log_probs: np.ndarray
    """float64 [n, K]."""
    predicted: np.ndarray
    """int [n]."""
    right: np.ndarray
    """bool [n]."""
    burden: np.ndarray | None
    """Mean burden float64 [n], not a number where it has none; None for dense variants."""

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of its own answer [n]."""
        return np.take_along_axis(self.probs, self.predicted[:, None], 1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Trio:
    """Which models are held against each other: a dense one and one or two pruned from it."""

    dense: Voice
    pruned: Voice
    mitigated: Voice | None

    @property
    def voices(self) -> dict[str, Voice]:
        """By role: dense, pruned and, where there is one, mitigated."""
        found = {"dense": self.dense, "pruned": self.pruned, "mitigated": self.mitigated}
        return {role: voice for role, voice in found.items() if voice is not None}

    def voice(self, role: str) -> Voice:
        """The model in a role.

        Raises:
            UserError: If nobody has it.
        """
        if role not in self.voices:
            raise UserError(f"unknown role {role!r}; available: {', '.join(self.voices)}")
        return self.voices[role]


class Chapter:
    """The answers on one data set."""

    def __init__(self, answers: Answers, infos: Sequence[VariantInfo], refused: Mapping[str, str]):
        """
        Args:
            answers: As read.
            infos: Served variants whose answers hold.
            refused: Why answers of other variants cannot be shown, by id.
        """
        self.dataset = answers.dataset
        self.classes = answers.classes
        self.names = answers.names
        self.targets = answers.targets.astype(np.int64)
        self.refused = dict(refused)
        self.photos: PhotoPack | None = answers.photos
        self.voices = {info.id: _voice(info, answers) for info in infos}
        """In the order of the manifest."""
        self._places = (
            {}
            if self.photos is None
            else {int(position): k for k, position in enumerate(self.photos.positions)}
        )

    @property
    def packed(self) -> np.ndarray:
        """Whether the photo itself is there, bool [n]."""
        found = np.zeros(len(self.names), bool)
        found[list(self._places)] = True
        return found

    def photo(self, position: int) -> bytes | None:
        """A photo as a JPEG or WebP file; None if it was not packed."""
        place = self._places.get(position)
        return None if self.photos is None or place is None else self.photos.photo(place)

    def pruned(self) -> tuple[VariantInfo, ...]:
        """Those that can be held against a dense one, in the order of the manifest."""
        return tuple(v.info for v in self.voices.values() if v.info.base in self.voices)

    def default_ids(self) -> tuple[str, str | None]:
        """A pruned variant without a mitigation, and one with, of the same base and budget if there
        are such."""
        infos = self.pruned()
        compared = [i for i in infos if i.is_default] or list(infos)
        plain = next((i for i in compared if i.mitigation == "none"), compared[0])
        family = [i for i in infos if i.base == plain.base and i.id != plain.id]
        family.sort(key=lambda i: (not i.is_default, abs(i.macs_ratio - plain.macs_ratio) > 0.02))
        return plain.id, family[0].id if family else None

    def completed(self, pruned: str | None, mitigated: str | None) -> tuple[str, str | None]:
        """Ids of a question in which some may not be named.

        Args:
            pruned: None means the default.
            mitigated: None means the default where `pruned` is None too, else one of the same host
                and budget with a mitigation, if there is any.

        Raises:
            UserError: If `pruned` is not to be had.
        """
        plain, partner = self.default_ids()
        if pruned is None:
            return plain, mitigated or partner
        return pruned, mitigated or self._partner(self._pruned_voice(pruned, "pruned"))

    def trio(self, pruned: str, mitigated: str | None) -> Trio:
        """The models of a question.

        Args:
            pruned: Id.
            mitigated: Id of another one pruned from the same dense model; None means none.

        Raises:
            UserError: If an id is unknown, stale, dense, or of another family.
        """
        first = self._pruned_voice(pruned, "pruned")
        second = None if mitigated is None else self._pruned_voice(mitigated, "mitigated")
        if second is first:
            raise UserError(f"pruned and mitigated are both {pruned}; choose two variants")
        if second is not None and second.info.base != first.info.base:
            raise UserError(f"{pruned} and {mitigated} were not pruned from the same model")
        return Trio(dense=self.voices[first.info.base or ""], pruned=first, mitigated=second)

    def _partner(self, voice: Voice) -> str | None:
        own = voice.info
        return next(
            (
                other.id
                for other in self.pruned()
                if (other.base, other.pruner) == (own.base, own.pruner)
                and other.mitigation not in ("none", own.mitigation)
                and abs(other.macs_ratio - own.macs_ratio) < 0.02
            ),
            None,
        )

    def _pruned_voice(self, variant: str, role: str) -> Voice:
        if variant in self.refused:
            raise UserError(self.refused[variant])
        known = [info.id for info in self.pruned()]
        if variant not in known:
            raise UserError(f"unknown {role} variant {variant!r}; available: {', '.join(known)}")
        return self.voices[variant]


def _voice(info: VariantInfo, answers: Answers) -> Voice:
    found = answers.answers[info.id]
    logits = found.logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    predicted = found.predicted.astype(np.int64)
    return Voice(
        info=info,
        probs=np.exp(log_probs),
        log_probs=log_probs,
        predicted=predicted,
        right=predicted == answers.targets,
        burden=found.mean_burden(),
    )


class FlipBook:
    """The flips files of a checkpoint folder, read when they are first asked for."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._chapters: dict[str, Chapter | str] = {}
        self.opened: dict[bytes, str] = {}
        """Names of the packed photos that were opened, by the digest of their pixels."""

    def datasets(self) -> tuple[str, ...]:
        """Data sets of the served variants, whether or not they have answers."""
        return tuple(dict.fromkeys(m.variant.dataset for m in self._registry.models()))

    def default_dataset(self) -> str:
        """That of the variants that are compared when none are named."""
        models = self._registry.models()
        chosen = default_ids([model.variant for model in models])
        return next(m.variant.dataset for m in models if m.id in chosen)

    def dataset_of(self, variant: str) -> str:
        """Data set of a variant.

        Raises:
            UserError: If it is not served.
        """
        return self._registry[variant].variant.dataset

    def chapter(self, dataset: str | None = None) -> Chapter:
        """Answers on a data set.

        Args:
            dataset: None means the default one.

        Raises:
            UserError: If there are none that hold; the text says which command makes them.
        """
        name = dataset or self.default_dataset()
        if name not in self.datasets():
            raise UserError(f"unknown dataset {name!r}; available: {', '.join(self.datasets())}")
        with self._lock:
            if name not in self._chapters:
                try:
                    self._chapters[name] = self._read(name)
                except (CheckpointError, UserError) as error:
                    logger.warning("no flips of %s: %s", name, error)
                    self._chapters[name] = str(error)
            found = self._chapters[name]
        if isinstance(found, str):
            raise UserError(found)
        return found

    def _read(self, dataset: str) -> Chapter:
        folder = self._registry.folder
        answers = read_answers(answers_path(folder, dataset))
        refused = stale(answers, read_manifest(folder))
        for reason in refused.values():
            logger.warning("flips of %s: %s", dataset, reason)
        served = [model.variant for model in self._registry.models()]
        infos = [i for i in catalog(served) if i.dataset == dataset and i.id not in refused]
        known = {info.id for info in infos}
        if not any(info.base in known for info in infos):
            raise UserError(
                " ".join(refused.values())
                or f"no pruned variant of {dataset} is served together with its dense base"
            )
        return Chapter(answers, infos, refused)
