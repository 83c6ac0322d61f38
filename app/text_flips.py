"""Every English sentence of the Flips tab; `text` holds those of Compare."""

from __future__ import annotations

FLIPS = "Flips"
LEAD = (
    "Every model was asked about every photo of the test split. Find those on which pruning "
    "changed the answer, and click one to open it in Compare."
)

# Controls
DATASET = "Photos"
PRUNED = "Pruned model"
PRUNED_HINT = "Held against the dense model it was pruned from."
MITIGATED = "Mitigated model"
MITIGATED_HINT = "Pruned from the same dense model, with something added to soften the loss."
NO_MITIGATED = "none"
PATTERN = "Who is right"
PATTERN_HINT = "In brackets: how many of all test photos."
PATTERN_COUNT = "{name}{title} ({count})"
NOT_COUNTED = "…"
PATTERN_NAMES = {
    "repaired": "repaired: ",
    "unrepaired": "not repaired: ",
    "harmed": "harmed: ",
    "broken": "broken: ",
    "gained": "gained: ",
}
TO_PHOTOS = "To the photos"
CLASS = "True class"
ANY_CLASS = "any"
SORT = "Order"
NARROW = "Confidence and burden"
OF = "Whose numbers count"
OF_HINT = "For the order and for the ranges below."
ROLES = {"dense": "dense", "pruned": "pruned", "mitigated": "mitigated"}
MIN_CONFIDENCE, MAX_CONFIDENCE = "Confidence from", "Confidence to"
MIN_BURDEN, MAX_BURDEN = "Burden from", "Burden to"
BURDEN_HINT = (
    "How hard the surviving units work on the photo, divided by how hard they worked in the dense "
    "model; layers count by the MACs they lost."
)
PACKED = "Only those packed here"
PREVIOUS, NEXT = "Previous", "Next"

# Photos
PHOTOS = "Photos"
FOUND = "{total} of {num_photos} test photos."
FOUND_PACKED = "{packed} of them are packed here and can be opened."
FOUND_PAGE = "Shown: {first} to {last} of {total}."
FOUND_NONE = "Widen the ranges, or choose another class or pattern."
FOUND_UNPACKED = "Untick the box to list the others too."
TRUTH = "really: {truth}"
RIGHT, WRONG = "right", "wrong"
TILE = "Open in Compare: {truth}; {answers}"
TILE_ANSWER = "{role} says {answer}"
ALT = "Test photo of class {truth}"
NOT_PACKED = "not packed"
NOT_PACKED_HINT = (
    "Only the most telling photos are packed here; this one is {name} of the data set."
)
BURDEN = "burden {burden}"
KL = "KL {kl}"
KL_NAME, BURDEN_NAME = "What is KL?", "What is burden?"
KL_HINT = (
    "How far a model's probabilities are from the dense model's, in nats: 0 is the same answer, "
    "above 1 is another opinion."
)
PACKED_ABOUT = (
    "The {count} most telling photos are packed here, re-encoded to be small. On each of them "
    "every model gives the same answer as on the original; no probability differs by more than "
    "{points} percentage points, which is what you may see in Compare."
)
EXACT_ABOUT = "The {count} most telling photos are packed here, pixel for pixel."
CREDIT = "Source: {source}. {licence}"

# All photos
SUMMARY = "Over all {num_photos} test photos"
SUMMARY_SHOWS = "Counted over the whole test split, whatever is chosen above."
INTERVAL = "95 % Wilson interval"
COUNTS = "Who is right, how often"
COUNTS_COLUMNS = ("photos", "share")
ACCURACY = "Accuracy by class"
ACCURACY_SHOWS = (
    "Lines: where the true rate lies with 95 % confidence (Wilson intervals). Where they overlap "
    "widely, the models may not differ at all."
)
ACCURACY_AXIS = "right answers"
ACCURACY_ALT = "Accuracy of each model on each class; the numbers are in the table below"
ACCURACY_MARK = "{name}, {role}: {value} ({low} to {high}), {right} of {total} photos"
ACCURACY_ALL = "all classes"
CONFUSION = "What dense says and what {title} says"
CONFUSION_SHOWS = (
    "Rows: the dense model's answer; columns: this model's. On the diagonal they agree; what "
    "stands beside it are flips, right or wrong."
)
CONFUSION_AGREE = "Same answer on {share} of the photos; {flips} flips."
CONFUSION_ROWS = "dense ↓"
CONFUSION_CELL = "dense says {row}, this model {column}: {count}"
RELIABILITY = "How far confidence can be believed"
RELIABILITY_SHOWS = (
    "Photos in ten groups by how sure a model is. On the dashed line it is right as often as it is "
    "sure; below it, it is too sure. The error is the mean distance from that line. Groups of "
    "fewer than ten photos are not joined to the others."
)
RELIABILITY_X, RELIABILITY_Y = "confidence", "right answers"
RELIABILITY_ALT = "Accuracy against confidence; {errors}"
RELIABILITY_ERROR = "{role}: expected calibration error {error}"
RELIABILITY_MARK = "{role}, {low} to {high} sure: {value} right ({ends}), {total} photos"
NUMBERS = "The numbers"
REFUSED = "Not shown, since their answers are out of date:"
