"""The tasks that an image classifier can have, by MedMNIST's names."""

MULTI_LABEL = "multi-label"
BINARY = "binary-class"
TASKS = ("multi-class", BINARY, "ordinal-regression", MULTI_LABEL)
SINGLE_LABEL = tuple(task for task in TASKS if task != MULTI_LABEL)
