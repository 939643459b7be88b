"""`python -m kdx.predict`: what it takes. torch is imported when there is a network to ask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdx.command import Command, Count, Flag, Key, Text, run_command
from kdx.errors import KdxError

USAGE = """
python -m kdx.predict MODEL PICTURE... [top=3] [output=FILE.csv] [role=student] [network=package.module:callable]
                      [trust=true]

MODEL is a run's folder, a checkpoint (.pth) or what kdx.export wrote (.onnx, .safetensors, .pt2 with trust=true).
A PICTURE may be a folder: its pictures and those in its folders, hidden ones left out. Prints a line a picture: the
`top` likeliest classes (at most all) with their probabilities; for multi-label sets those of each label by itself.
`output` writes the same as a table: picture,class1,share1,..., with shares from 0 to 1. A picture that cannot be read
is told, the others follow, and the command ends with 1.
"""
KEYS: dict[str, Key] = {
    "top": Count(3, most=1_000_000),
    "output": Text(),
    "role": Text("student"),
    "network": Text(),
    "trust": Flag(),
}


def predict(words: list[str], **keys: Any) -> Iterator[str | KdxError]:
    from kdx.deploy.asking import predict_pictures

    return predict_pictures(Path(words[0]), words[1:], **keys)


COMMAND = Command(USAGE, predict, KEYS, words=("MODEL", "PICTURE..."))

if __name__ == "__main__":
    run_command(COMMAND)
