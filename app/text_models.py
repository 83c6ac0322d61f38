"""Every English sentence of the Models tab; `text` holds those of Compare."""

from __future__ import annotations

MODELS = "Models"
DATASET = "Trained on"

# Where they come from
FAMILY = "Where they come from"
FAMILY_SHOWS = (
    "Each pruned model was trained on from a dense one. The host decides which units leave, the "
    "mitigation is what was added to soften the loss. Percent are right answers on the test photos."
)
FAMILY_ALT = "Family tree of the models trained on {dataset}"
DENSE = "dense"
NO_PRUNER = "unknown host"
NO_MITIGATION = "no mitigation"
LEAF = "{ratio} of the MACs, {mitigation}"
ORPHANS = "Dense base not served"
HOSTS = {
    "random": "removes units at random",
    "magnitude": "removes the units with the smallest weights",
    "taylor": "removes the units whose removal would change the loss least, judged by its gradient",
    "movement": "removes the units whose weights shrink in training",
    "s2vite": "keeps a sparse model from the start and exchanges its weakest units",
    "wdpruning": "learns a score for each unit and how many of each layer to keep",
    "vit_slim": "learns gates under a pressure towards zero, then cuts once",
    "weights": "removes single weights, so the model is neither smaller nor faster",
}
MITIGATIONS = {
    "none": "nothing was added",
    "token_merging": "similar patches are merged, so there is less to carry",
    "persistent_dynamic": "units that were removed may return",
    "handoff": "units that leave give their work to those that stay",
    "homeostasis": "survivors are pulled back to the load they had before",
    "burden_quota": "overloaded layers lose fewer units",
    "distillation": "the dense model's answers are the teacher",
    "published": "token merging and units that may return, as published",
}

# The table
LEDGER = "All models"
LEDGER_SHOWS = (
    "Press a heading to sort, a name to see where the model comes from: commands, versions, files "
    "and every measured number."
)
SORT_BY = "Sort by {label}"
MODEL = "Model"
DETAILS = "Where {title} comes from"
# name: (heading, what it means)
COLUMNS = {
    "top1": (
        "Right",
        "Share of the test photos named correctly, with its 95 % interval (Wilson): another set of "
        "as many photos would move it about that far.",
    ),
    "macs": ("MACs", "Multiply-adds that one photo costs."),
    "macs_ratio": ("of dense", "Its MACs as a share of the dense model's."),
    "num_params": ("Parameters", "Numbers learned in training."),
    "size_bytes": ("File", "Size of the ONNX file."),
    "zeros": (
        "Zeros",
        "Share of the weights that are exactly zero. Pruned units are cut out of the file, so "
        "hardly any remain.",
    ),
    "burden": (
        "Burden",
        "How hard the surviving units work, divided by how hard the same units worked in the dense "
        "model. 1× is unchanged.",
    ),
    "burden_null": (
        "when cut",
        "The same right after the cut, before any retraining. What lies between the two came with "
        "retraining.",
    ),
    "takeover": (
        "Take-over",
        "Share of what the removed units wrote that the survivors write now: 1 is all of it, 0 "
        "nothing.",
    ),
    "selection": (
        "Selection",
        "Above 1 where the units that stayed worked harder than average already in the dense "
        "model: that part of a high load is no overload.",
    ),
    "residual": (
        "Output error",
        "How far the layers' outputs are from the dense model's, as a share of how much those "
        "vary. 0 is identical.",
    ),
    "seed": ("Seed", "Number that the training's random choices began with."),
    "commit": ("Commit", "Version of the code that trained it."),
    "sha256": ("File hash", "First letters of the SHA-256 hash of the ONNX file."),
}
# What is told of a model below its row
FACTS = {
    "id": "Name",
    "base": "Dense base",
    "pruner": "Host",
    "mitigation": "Mitigation",
    "merge": "Token merging",
    "command": "Trained by",
    "seed": "Seed",
    "commit": "Commit",
    "device": "On",
    "versions": "With",
    "export_command": "Exported by",
    "export_commit": "Commit of the export",
    "export_device": "Exported on",
    "export_versions": "Exported with",
}
MERGE = "{r} patches are merged away before layer {layer}"
BETTER = {"higher": "higher is better", "lower": "lower is better", "neither": ""}
METRIC = "Measured"
FILES = "Files"
SHA256 = "SHA-256"

# Accuracy against cost
TRADE = "What accuracy costs"
TRADE_SHOWS = (
    "Up and to the left is better. Upright lines are 95 % intervals of the accuracy, level ones "
    "those of the median time."
)
AGAINST_MACS = "Against multiply-adds"
AGAINST_TIME = "Against time, measured here just now"
AGAINST_TIME_THERE = "Against time, as measured elsewhere"
ACCURACY_AXIS = "Right on test photos"
MACS_AXIS = "MACs for one photo"
TIME_AXIS = "Milliseconds for one photo"
BATCH_AXIS = "Milliseconds for {batch} photos"
TRADE_ALT = "Accuracy against {what}: {values}"
TRADE_MARK = "{title}: {top1} right ({low} to {high}), {cost}"
COST_TIME = "{ms} ({low} to {high})"
MEASURING = "Timing every model, one photo at a time …"
MEASURE_AGAIN = "Measure again"
MEASURED = (
    "Median of {runs} runs of one photo on {provider}; the models took turns. Other visitors' "
    "requests may have run at the same time."
)
NOT_MEASURED = "No model could be timed here."
NOT_THERE = "This measurement has none of these models."
NO_ACCURACY = "The accuracy of these models is not recorded."
SIDE_BY_SIDE = (
    "Models of equal cost are drawn side by side, at most {px} pixels from where they belong."
)
FASTER = "“{title}” needs {macs} of dense's MACs and {time} ({low} to {high}) of its time."
NOT_FASTER = (
    "“{title}” needs {macs} of dense's MACs, but that did not become less time here: {time} ({low} "
    "to {high}) of dense's."
)
LESS_THAN_PROMISED = (
    "Time falls less than MACs do where a part of the work does not shrink with the model, such as "
    "the stem, the normalisations and what every layer costs to start."
)
THERE = "{device}; {setting}. Level lines are quartiles of the runs. Measured by"
BENCH = "Measurement"
SETTING = "Run as"
ONE_PHOTO, PHOTOS = "1 photo", "{batch} photos"
PLACES = {"host": " in main memory", "device": " on the card"}
SETTING_WORDS = "{photos}{place}, {precision}, {contender}"

# What was kept
KEPT = "What was kept"
KEPT_SHOWS = (
    "A square for each attention head of the dense model, filled if it stayed; a bar for the MLP "
    "neurons that stayed. A dashed line is where patches are merged."
)
KEPT_ALT = "{title}: {layers}"
KEPT_LAYER = "layer {layer} keeps {heads} of {num_heads} heads, {neurons} of {num_neurons} neurons"
HEADS, NEURONS = "heads", "neurons"

# Load over training
TIMELINE = "Load while it was trained"
TIMELINE_SHOWS = (
    "What each layer's surviving units write, relative to the signal they write into, on photos "
    "that were kept from training. Below, how many MACs were left: as units leave, those that stay "
    "carry more."
)
TIMELINE_MODEL = "Model"
TIMELINE_PER = "Load of"
PER_UNIT, PER_SITE = "one surviving unit", "all surviving units of a layer"
TIMELINE_NO_UNITS = (
    "The training of this model did not record how many units were left in each layer, so only the "
    "load of whole layers is shown."
)
TIMELINE_SITES = {"attn": "Attention", "mlp": "MLP"}
TIMELINE_AXIS = "Load"
RATIO_AXIS = "MACs left"
EPOCH_AXIS = "Epoch of training"
TIMELINE_SLICE = "Epoch {epoch}, {ratio} of the MACs"
TIMELINE_VALUE = "layer {layer}: {value}"
TIMELINE_ALT = (
    "Load of {what} in {kind} of each layer of {title} over {epochs} epochs. From the first to the "
    "last record: {values}"
)
TIMELINE_CHANGE = "layer {layer} from {first} to {last}"
RATIO_ALT = "MACs left over the training of {title}: from {first} to {last}"
FIRST_LAYER, LAST_LAYER = "layer 1", "layer {layer}"
NO_HISTORY = "No record of this model's training is served."
