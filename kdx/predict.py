"""Ask a trained network about pictures."""

from pathlib import Path

from kdx.command import run_command
from kdx.deploy.load import answers, load_model, picture_for, ranking

USAGE = """
python -m kdx.predict MODEL PICTURE... [top=3] [role=student] [network=package.module:callable] [trust=true]

MODEL is a run's folder, a checkpoint (.pth) or what kdx.export wrote (.onnx, .safetensors, .pt2 with trust=true).
Prints a line a picture: the likeliest classes with their probabilities; for multi-label sets those of each label by
itself.
"""


DEFAULTS = {"top": 3, "role": "student", "network": None, "trust": False}


def predict_pictures(words: list[str], top: int, role: str, network: str | None, trust: bool) -> str:
    """A line for each picture in `words[1:]`."""
    model, card = load_model(Path(words[0]), role, network, trust)
    lines = []
    for name in words[1:]:
        logits = answers(model, card, picture_for(Path(name), card))[0]
        told = (f"{class_name} {100 * share:.1f} %" for class_name, share in ranking(logits, card)[:top])
        lines.append(f"{name}: " + ", ".join(told))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(USAGE, predict_pictures, DEFAULTS, least=2)
