"""Every English sentence that the page shows, in one place.

Words of the trade appear only where a sentence next to them says what they mean. What a method
shows is said by the method itself (`AttributionMethod.shows`), and errors speak for themselves.
"""

from __future__ import annotations

TITLE = "Neural burden"
LEAD = (
    "Pruning takes units out of a vision model, and those that stay must carry the rest. Give the "
    "models a photo: see what each one says, where it looked, and which layers carry more than "
    "before."
)

# Controls
PHOTO = "Photo"
PHOTO_ALT = "The photo you chose"
PHOTO_HINT = "Drop a photo here, paste one, or click to choose a file"
DATASET = "Trained on"
DATASET_HINT = "Models of different data sets know different classes, so they are not mixed."
EXAMPLES = "Or try one of these"
VARIANTS = "Models to compare"
VARIANTS_HINT = "Two to four. MACs are the multiply-adds that one photo costs."
BEFORE = "Before retraining"
BEFORE_HINT = "Turns the pruned units of the dense model off, live, with no training afterwards."
COMPARE = "Compare"
METHOD = "Method"
TARGET = "Explained class"
TARGET_BASE = "the dense model's answer"
TARGET_OWN = "each model's own answer"
QUANTITY = "Show"
LAYER = "Layer"
SITE = "Part of the layer"
SITE_KINDS = {"attn": "attention", "mlp": "MLP"}
SITE_HINT = "Attention mixes patches; the MLP works on each patch alone."
SITE_NONE = "Output error belongs to a layer as a whole."

# Progress
INVITATION = "Choose a photo and press Compare."
PRESS_COMPARE = "Press Compare to see the models you chose."
MODELS_SHOWN = "The models you chose are shown."
FIRST_VIEW = "An example to begin with. Now choose a photo of your own, or other models."
FIRST_VIEW_SHIPPED = (
    "An example, as it was compared when these models were published; this server is comparing it "
    "again."
)
WORKING_PREDICT = "Asking each model …"
WORKING_BURDEN = "Measuring what each layer carries …"
WORKING_ATTRIBUTION = "Tracing where each model looked: {method} …"
STEP_OF = "Step {step} of {steps}"
DONE = "Done in {seconds:.1f} s."

# The answer beside the photo
SHORT = "In short"
SHORT_SAYS = "says {own}, {prob}"
SHORT_OTHER = "says {own}, {prob}; dense: {base}"
SHORT_MOST = "most {quantity}: {site}, {value}"

# What each model says
PREDICTIONS = "What each model says"
PREDICTIONS_SHOWS = (
    "The most likely classes; the small number is the change against the dense model, in "
    "percentage points."
)
TRUTH = "Really: {truth}, as the test set has it."
REFERENCE = "the reference"
DENSE_MEANS = "The model before any pruning, against which the others are held."
VARIANT_MEANS = (
    "Costs {ratio} of the multiply-adds of dense. Pruned by {pruner}, which {host}; against the "
    "damage: {added}. ({id})"
)
SAYS_OTHER = "“{title}” says {own}; dense said {base}."
SAYS_SAME = "“{title}” says {own}, as dense does."
SAYS_ALONE = "“{title}” says {own}."
KL = "KL divergence {kl:.3f}"
KL_HINT = (
    "How far this model's probabilities are from the dense model's, in nats: 0 is the same answer, "
    "above 1 is another opinion."
)
NO_ANSWER = "No answer"

# Where each model looked
ATTRIBUTION = "Where each model looked"
ATTRIBUTION_CROP = "The exact part of the photo that the models see."
ATTRIBUTION_SAME_SCALE = "All columns share one colour scale."
ATTRIBUTION_ALT = "{title}: {method} map for {target}, over the photo"
CROP_ALT = "The part of the photo that the models see"
LEGEND_ALT = "Colour scale: {title}"
TARGET_IS = "for “{target}”"
NO_MAP = "No map"
METHOD_COST = "Cost: {cost}."
METHODS_ABOUT = "All methods: what they show, what signs mean, what they cost"
METHOD_COLUMNS = ("shows", "sign", "cost")
DIFFERENCE = "Minus dense"
DIFFERENCE_HINT = (
    "This model's map minus the dense model's, on a scale of its own that all columns share."
)
DIFFERENCE_ALT = "{title}: {method} map for {target} minus that of dense, over the photo"
DIFFERENCE_SCALE = "differences from dense"
NO_DIFFERENCE = {
    "base": "The reference of the others.",
    "missing": "Choose the dense model too to see what changed.",
    "class": "Dense is explained for another class, so there is nothing to subtract.",
}
TRUST = "How far to trust it"
TRUST_HINT = "Rest on a name, or open the list below, to see what it means."
TRUST_ABOUT = "What these numbers mean"
# name: (label, what it means)
TRUST_ROWS = {
    "rank_correlation": (
        "Order like dense",
        "Spearman's rank correlation with the dense model's map: 1 means that both put the patches "
        "in the same order, 0 that the orders have nothing in common.",
    ),
    "top_overlap": (
        "Top 10 % like dense",
        "Share of the strongest tenth of patches that the dense model's strongest tenth holds too. "
        "Chance gives 10 %.",
    ),
    "completeness_error": (
        "Sum misses by",
        "How far the sum of all patches is from the change of the class's score between the "
        "reference picture and the photo. Only methods that promise such a sum have this number; "
        "below a few percent is good.",
    ),
    "deletion": (
        "Deletion",
        "Patches are removed, the strongest first: the mean probability of the class on the way. "
        "Low is good, for then the map found what the answer hangs on. A removed patch keeps only "
        "its mean colour.",
    ),
    "insertion": (
        "Insertion",
        "Patches are put back, the strongest first: the mean probability of the class on the way. "
        "High is good. A map in random order gives deletion and insertion alike, so trust a map "
        "only where insertion lies clearly above deletion.",
    ),
    "steps": (
        "Steps",
        "Gradients or forward passes that the method took on this photo.",
    ),
    "parity": (
        "ONNX − PyTorch",
        "Predictions come from the ONNX file, gradients from the same weights in PyTorch: the "
        "largest difference between the two in any class's score, on this very photo.",
    ),
    "provider": (
        "Ran on",
        "What ONNX Runtime really ran this file on.",
    ),
    "sha256": (
        "File",
        "The first letters of the SHA-256 hash of the ONNX file that answered; it is checked "
        "against the manifest before the file is opened.",
    ),
}
SHORT_PROVIDERS = {"CPUExecutionProvider": "CPU", "CUDAExecutionProvider": "CUDA"}

# What each layer carries
BURDEN = "What each layer carries"
QUANTITIES = {"burden": "burden", "load": "load", "residual": "output error"}
QUANTITY_SHOWS = {
    "burden": "Burden: how hard a layer's surviving units work, divided by how hard the same units "
    "worked in the dense model. 1× is unchanged, 2× is twice as hard.",
    "load": "Load: how much a layer's units write, relative to the signal they write into. Each "
    "model by itself, with nothing divided out.",
    "residual": "Output error: how far a layer's output is from the dense model's, as a share of "
    "how much that output varies over the photo. 0 is identical.",
}
MAP_SHOWS = {
    "burden": "Where on the photo that is: red patches ask more of the surviving units than they "
    "did in the dense model, blue ones less.",
    "load": "Where on the photo the units of this layer write most.",
    "residual": "Where on the photo the output of this layer is furthest from the dense model's.",
}
CHART_ALT = "{quantity} of every layer of {title}: {values}"
CHART_HINT = "Click a layer or a mark to see it on the photo."
NULL_MARK = "hollow: before retraining"
NULL_MARK_HINT = (
    "The dense model cut live to the same units, with no training afterwards. What lies between "
    "hollow and full came with retraining."
)
SITE_MEANS = {
    "attn": "The part of a layer that mixes patches; its units are attention heads.",
    "mlp": "The part of a layer that works on each patch alone; its units are hidden neurons.",
}
PICK_LAYER = "Show layer {layer} on the photo"
WHOLE_LAYER = "whole layer"
MAP_KEYS = "read its patches with the arrow keys"
MAP_KEYS_LARGE = "Click a map to see it alone and large, and again to see all."
MAP_MOST = "most in row {row}, column {column}"
PATCH = "{name} · row {row}, column {column} · {value}"
PATCH_MERGED = " · one token with {count} more"
NULL_ROW = "Before retraining"
NULL_ROW_HINT = "The dense model cut live to the same units: what differs came with retraining."
NULL_MAP_ALT = "{title} before retraining: {quantity} of {site}, over the photo"
MAP_ALT = "{title}: {quantity} of {site}, over the photo"
NO_VALUES = "Nothing to compare"
ALL_LAYERS = "All layers at once"
ALL_LAYERS_HINT = "The same maps, small, for every layer and on the same colours."
SHEET_ALT = "{title}: {quantity} of every layer, over the photo"
NUMBERS = "The numbers"
NUMBERS_HINT = (
    "Selection is above 1 where pruning kept units that already worked harder than average: that "
    "part of a high load is no overload. Signal is the size of the stream that the layer writes "
    "into, against the dense model's."
)
NUMBER_MEANS = {
    "value": "What this layer carries in this model, on this photo.",
    "null": NULL_MARK_HINT,
    "selection": "Mean squared load of the units that were kept over that of all units, in dense.",
    "stream": "Size of the stream of features that the layer writes into, over that in dense.",
}
NUMBER_COLUMNS = {
    "value": "now",
    "null": "before retraining",
    "selection": "selection",
    "stream": "signal",
}

# Prune it yourself
CUT = "Prune the dense model yourself"
CUT_SHOWS = (
    "Turns units of the dense model off while you watch, with no training afterwards: what it then "
    "says, and what the units that are left carry compared with themselves before."
)
CUT_LAYERS = "Layers"
CUT_LAYERS_HINT = "None chosen means all."
CUT_KINDS = "Parts"
CUT_SHARE = "Units turned off, in percent"
CUT_SHARE_HINT = "Of each chosen part of each chosen layer."
CUT_ORDER = "What goes first"
CUT_ORDERS = {
    "smallest": "the smallest load on this photo",
    "largest": "the largest load on this photo",
}
CUT_ORDER_VARIANT = "what “{title}” lost"
CUT_TITLE = "dense, pruned here"
CUT_SAYS = "{removed} of {total} units are off."
CUT_UNITS_HINT = "Units are attention heads and the hidden neurons of the MLPs."
CUT_NOTHING = "Nothing is turned off."
ERROR_CUT_SHARE = "The share of units turned off must lie between 0 and 1, got {share}."
ERROR_CUT_LAYER = "The dense model has no layer {layer}; its layers are 1 to {last}."
ERROR_CUT_KIND = "The parts of a layer are attn and mlp, not {kind!r}."
ERROR_CUT_ORDER = "{order} was not pruned from {dense}, so it cannot say what goes first."

# What each model costs
COST = "What each model costs"
COST_SHOWS = (
    "Size and work of each file that is served here, and the time that one photo takes here."
)
COST_BEFORE = (
    "With “before retraining” on, the pruned columns run the dense model with units turned off: it "
    "is neither smaller nor faster. All numbers but the distance from dense are those of the "
    "pruned file."
)
COST_ROWS = {
    "top1": ("Test accuracy", "share of test photos named correctly"),
    "num_params": ("Parameters", "numbers learned in training"),
    "macs": ("MACs", "multiply-adds for one photo"),
    "size_bytes": ("File size", "the ONNX file"),
    "zeros": ("Zeros", "share of weights that are exactly zero; cut units are not in the file"),
    "time": (
        "Time for one photo",
        "median on this device, and its 95 % interval",
    ),
    "kl": ("Distance from dense", "KL divergence of the answers in nats; 0 is the same answer"),
}
OF_DENSE = "of dense"
TIMING = "timing …"
SPREAD = "{low} to {high}"

# Take it with you
TAKE = "Take it with you"
TAKE_BELOW = "Take all of this with you: picture, numbers, maps and a link"
TAKE_FILES = {
    "comparison.png": ("Picture", "PNG of the whole comparison"),
    "numbers.json": ("Numbers", "JSON of every number on the page, in the words of the API"),
    "maps.npz": ("Maps", "NumPy archive of every map, and of the crop that the models saw"),
}
TAKE_LINK = "Link"
TAKE_LINK_HINT = "Address that brings back these models, this photo and these choices"
TAKE_OWN = "Your own photo stays with you: the link brings back the models and choices only."
POSTER_PHOTO = "Photo: {photo}. {method} for {target}."
POSTER_OWN_PHOTO = "own upload"
POSTER_VALUES = "Hollow marks: the dense model cut live, before retraining."
ERROR_TAKE_GONE = "This page is no longer open or shows nothing; compare again, then download."
ERROR_TAKE_NAME = "There is no file {name!r}; available: {known}."
ERROR_LINK_VALUE = "This link names the {what} {value!r}; available: {known}."
ERROR_LINK_MODEL = "This link names the model {model!r}, which is not served here."
LINK_REFUSED = "This is the usual example, since the link cannot be followed. {problem}"
ERROR_LINK_SHARE = "This link turns off {share!r} percent; a share is a whole number from 0 to 100."
ERROR_LINK_FLIP = "This link names the photo {flip!r} of Flips, which is not packed here."
ERROR_LINK_LAYER = "This link names layer {layer!r}; a layer is a whole number from 1 on."

# Foot
RUNS_ON = "Predictions run on {provider}, gradients on {device}."
PRECISION = (
    "Predictions are computed in {precision}, loads and gradients in fp32: on {images} test photos "
    "top-1 changes by between {low} and {high} points, and {same} of all answers stay."
)
PRECISION_UNKNOWN = (
    "Predictions are computed in {precision}; what that does to their accuracy was not measured: "
    "run `python -m nbcore bench precision`."
)
PROVIDERS = {
    "CPUExecutionProvider": "the CPU (ONNX Runtime)",
    "CUDAExecutionProvider": "a CUDA GPU (ONNX Runtime)",
    "TensorrtExecutionProvider": "a CUDA GPU (ONNX Runtime with TensorRT)",
}
DEVICES = {"cpu": "the CPU (PyTorch)", "cuda": "a CUDA GPU (PyTorch)"}
PARITY = "Served ONNX files agree with their PyTorch twins to {parity} in every score."
PARITY_PENDING = "Agreement of ONNX and PyTorch is being checked."
REFUSED = "Not served:"
ABOUT = "About these measures"
ABOUT_TEXT = (
    "The idea of neural burden, neurons overloaded because they make up for pruned ones, is from "
    "Wang et al., arXiv 2407.16716; the equations used here are this project's own.",
    "A load is the root mean square of what a layer's units write, centred and divided by the size "
    "of the signal they write into. Burden compares the same surviving units in two models, so a "
    "layer is not called overloaded because strong units were kept. Hollow marks show the dense "
    "model cut to those units with no training: what lies between a hollow mark and its full one "
    "came with retraining.",
    "A high burden is no verdict on a model: some ways of repairing a pruned model put load on the "
    "survivors on purpose. Judge models by their accuracy at equal cost.",
    "Example photos: Imagenette (fast.ai), a subset of ImageNet, validation split; CIFAR-10 "
    "(Krizhevsky 2009), test split.",
)

# Errors
ERROR_GENERIC = (
    "Something went wrong here, and it has been logged. Try another photo, or reload the page."
)
ERROR_BUSY = (
    "All places are taken: {count} requests are waiting already. Nothing is lost; ask again in a "
    "few seconds."
)
ERROR_TOO_OFTEN = (
    "More than {count} requests came from your address within a minute; wait a little."
)
ERROR_TOO_LARGE = "This request is larger than {limit:g} MB, the most that is taken here."
ERROR_STOPPING = "This server is being stopped; ask again in a few seconds, when another has begun."
ERROR_FORGOTTEN = (
    "Nothing is compared here yet, or this page was left for over an hour; press Compare."
)
ERROR_NO_PHOTO = "Choose a photo first: upload one, paste one, or click an example."
ERROR_NOT_UPLOADED = (
    "The image must be an uploaded file: in Python wrap its path in gradio_client.handle_file."
)
ERROR_REMOTE = (
    "No photo could be fetched from that address. It must be public and begin with http:// or "
    "https://; else download the photo and send it as a file."
)
ERROR_REMOTE_SLOW = (
    "That address did not give its photo within {seconds} s; download it and send it as a file."
)
ERROR_REMOTE_LARGE = "What lies at that address is larger than {limit} MB, the most taken here."
ERROR_PROXY = "This server shows its own files and no others'."
ERROR_CALL = "{what}; {info} describes every call with its parameters."
ERROR_KIND = "{name} must be {wanted}, got {value}"
KIND_TEXT, KIND_IDS, KIND_FLAG = "text", "a list of ids", "true or false"
ERROR_NO_LIST = "variants must be a list of ids, got {variants}; /models lists them."
ERROR_COUNT = "Choose two to four models; {count} chosen."
