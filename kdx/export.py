"""`python -m kdx.export`: what it takes. torch is imported when there is something to export."""

from pathlib import Path
from typing import Any

from kdx.command import Choice, Command, Count, Key, Text, run_command
from kdx.deploy.formats import FORMATS, MOST_IMAGES

USAGE = """
python -m kdx.export RUN_DIR [role=student] [format=onnx|torch_export|safetensors] [quantize=int8] [opset=18]
                     [batch=N] [output=FILE] [samples=512] [data_dir=DIR] [network=package.module:callable]
                     [data=package.module:callable]

Writes the network alone: no teacher, no optimizer. ONNX and torch.export files take pixels 0-255 and normalise them
themselves, in batches of any size, or of N images only with batch=N; all formats carry class names, image size and
preprocessing. `opset` is the version of ONNX's operators. The file is compared with PyTorch on `samples` test images,
taken from all over the split, before it is put in its place.
"""
KEYS: dict[str, Key] = {
    "role": Text("student"),
    "format": Choice("onnx", tuple(FORMATS)),
    "quantize": Choice(None, ("int8",)),
    "opset": Count(None, least=18, most=999),  # below 18 torch's exporter keeps 18; the onnx package has the last
    "batch": Count(None, most=MOST_IMAGES),
    "output": Text(),
    "samples": Count(512, most=1_000_000),
    "data_dir": Text(),
    "network": Text(),
    "data": Text(),
}


def export(words: list[str], **keys: Any) -> str:
    from kdx.deploy.exporting import export_stage

    return export_stage(Path(words[0]), **keys)


COMMAND = Command(USAGE, export, KEYS, words=("RUN_DIR",))

if __name__ == "__main__":
    run_command(COMMAND)
