"""Every English sentence of the Study tab; `text` holds those of Compare."""

from __future__ import annotations

STUDY = "Study"
STUDY_SHOWS = (
    "A model that is better once may be better by luck. A study trains combinations of host, "
    "budget and mitigation several times from the same starting points, and leaves a claim "
    "undecided where there were too few of them."
)
CHOOSE = "Study"
NO_STUDIES = "No study lies in this checkpoint folder."

# Verdicts
VERDICTS = "What was found"
RULE = "How verdicts are found"
FACTS = "What was run"
CLAIM, VERDICT, NUMBERS = "Claim", "Verdict", "Numbers"
NO_CLAIMS = (
    "This study serves to choose settings: it tests no claim, and only validation photos are shown."
)
NO_VERDICTS = (
    "The claims of this study were not written for the page; its report, below, holds what is "
    "known."
)
SIGNS = {"supported": "✓", "not supported": "✗", "undecided": "?"}
MEANINGS = {
    "supported": "The interval excludes zero in the claimed direction, however small the effect, "
    "after Holm's correction where the numbers give a Holm p.",
    "not supported": "It does not, and excludes every useful effect in that direction.",
    "undecided": "Neither, or too few seeds.",
}
COUNT = "{count} {verdict}"
WORDS = "Words in these numbers:"
# What the report's sentences take for granted
TERMS = {
    "host": "The method that decides which units are pruned, and when.",
    "mitigation": "What is added to a host against the damage of pruning.",
    "budget": "What the pruned model may cost, as a share of the dense model's multiply-adds; for "
    "single weights, as a share of its weights.",
    "seed": "Number that the training's random choices begin with. Runs of one seed start from the "
    "same dense model, so they are compared pair by pair.",
    "points [low, high]": "Percentage points, and the interval that holds the true difference with "
    "95 % confidence, over seeds.",
    "n": "How many seeds the numbers come from.",
    "Holm": "A correction for asking several questions at once, by which the more questions there "
    "are the stronger each finding must be; p is the chance of such a finding if there were no "
    "effect.",
    "B / B₀": "Burden of the survivors after training, divided by that right after the cut: what "
    "lies above 1 came with training. Training changes dense models too, so it is divided by the "
    "burden of the same units in dense+.",
    "dense+": "The dense model trained on for as long as the pruned ones, unpruned.",
    "twin": "A small dense model of equal cost, trained from scratch for as long.",
    "recovered share": "How much of what pruning costs comes back: 0 nothing, 1 all of it.",
    "difference in differences": "What something adds to pruned models minus what the same adds to "
    "the dense one: above 0 it relieves pruning, and is not just good for any model.",
    "partial rank correlation": "Whether two things rise together once a third is held fixed: 1 "
    "always, 0 no relation, −1 one falls as the other rises.",
}
TRIALS = "Settings that were tried"
TRIALS_SHOWS = (
    "Compared are settings that all hosts and budgets of a mitigation have; chosen is the smallest "
    "loss on the validation photos. In brackets: what one of them lacks."
)
TRIAL_COLUMNS = {
    "mitigation": "Mitigation",
    "options": "Setting",
    "cells": "Hosts × budgets",
    "val_loss": "Validation loss",
    "val_top1": "Validation right",
    "chosen": "Chosen",
}
CHOSEN = "chosen"
NOT_COMPARED = "({value})"

# Every run
ARMS = "Every run"
ARMS_SHOWS = (
    "A small dot for each seed, where a seed alone has a value; the large mark is the mean, the "
    "line its 95 % interval, where there are seeds enough for one. Choose what is measured, and "
    "which host, budget and mitigation."
)
MEASURE, HOST, BUDGET, MITIGATION = "Measure", "Host", "Budget", "Mitigation"
ALL = "all"
# name: (label, axis)
MEASURES = {
    "top1": ("accuracy on test photos", "Right on test photos, %"),
    "val_top1": ("accuracy on validation photos", "Right on validation photos, %"),
    "gain": (
        "gain over no mitigation",
        "Percentage points over the same seed, host and budget without mitigation",
    ),
    "recovered": (
        "recovered share",
        "Share of what pruning costs that comes back, %; 100 is the dense model trained on",
    ),
    "did": (
        "relief beyond what dense gains",
        "Percentage points gained beyond what the dense model gains by the same",
    ),
    "excess": (
        "excess burden",
        "B / B₀ of the survivors over their burden in the dense model trained on",
    ),
}
# Below the plot, by name
MEASURE_NOTES = {
    "did": (
        "A dot is what a seed gains by the mitigation minus what its dense model, trained on, "
        "gains by it. Token merging makes the dense model cheaper, while pruned ones still fill "
        "their budget: what it takes from the dense model counts as relief here."
    ),
    "recovered": (
        "No dots: this is the mean gain over the mean cost of pruning, since the cost of one seed "
        "may be too close to zero to divide by. No line where even the mean cost may be."
    ),
    "excess": ("Mitigations change burden by design, so the report judges only rows without one."),
}
_CHEAPER = (
    "Where single weights are pruned, models keep their size: with token merging they are cheaper "
    "than those they are compared with."
)
WEIGHTS_NOTES = {
    "gain": _CHEAPER,
    "did": _CHEAPER,
    "recovered": _CHEAPER,
    "excess": "Where single weights are pruned, all units count as survivors.",
}
HOSTS = {
    "dense": "dense",
    "dense_plus": "dense, trained on",
    "twin": "small twin from scratch",
    "weights": "single weights",
}
ARM_ALT = "{measure}: {values}"
ARM_MARK = "{arm}: {value}{interval}, {seeds}"
ARM_INTERVAL = " ({low} to {high})"
ARM_SEEDS = "{count} seeds"
ONE_SEED = "1 seed"
ONE_MODEL = "one model measured {count} times"
SEED_MARK = "{arm}, seed {seed}: {value}"
NOTHING = "No run of this choice has this measure."
TOO_MANY = "Only the first {shown} of {count} rows are drawn; choose a host or a mitigation."
DENSE_PLUS_GUIDE = "Dashed: the dense model trained on for as long."
ZERO_GUIDE = "Dashed: no difference."
ONE_GUIDE = "Dashed: 1, where the cut and further training explain all that survivors carry."
WHOLE_GUIDE = "Dashed: everything that pruning cost."

# Figures and tables
FIGURES = "Figures of the report"
FULL_SIZE = "Opens in full size in a new tab"
FIGURE_ALT = "Figure {name}: {caption}"
RUNS = "All runs as a table"
RUNS_SHOWS = "Each heading sorts and filters."
REPORT = "The whole report"
TABLE = "A table of the report"
RUN_COLUMNS = {
    "pruner": "host",
    "target_macs_ratio": "budget",
    "mitigation": "mitigation",
    "seed": "seed",
    "macs_ratio": "MACs",
    "top1": "test right",
    "val_top1": "validation right",
    "burden": "burden",
    "burden_null": "when cut",
    "burden_dense_plus": "in dense, trained on",
    "takeover": "take-over",
    "residual": "output error",
    "num_params": "parameters",
    "seconds": "seconds",
    "device": "device",
    "commit": "commit",
}
