"""Write a stage's network as a file that ships, checked against PyTorch on real images."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from kdx.command import choice, run_command
from kdx.deploy.load import CARD, Card, Deployed, Model, answers, load_model, needs, pixels_of
from kdx.deploy.run_loader import load_data, load_stage
from kdx.errors import KdxError
from kdx.files import write_atomic
from kdx.metrics.classification import predict

USAGE = """
python -m kdx.export RUN_DIR [role=student] [format=onnx|torch_export|safetensors] [quantize=int8] [output=FILE]
                     [samples=512] [data_dir=DIR] [network=package.module:callable]
                     [data=package.module:callable]

Writes the network alone: no guide, no optimizer. ONNX and torch.export files take pixels 0-255 in batches of any size
and normalise them themselves; all formats carry class names, image size and preprocessing. The file is compared with
PyTorch on the first `samples` test images.
"""
DEFAULTS = {
    "role": "student",
    "format": "onnx",
    "quantize": None,
    "output": None,
    "samples": 512,
    "data_dir": None,
    "network": None,
    "data": None,
}
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
CALIBRATION = 256  # validation images from which int8 learns the range of every activation
OPSET = 18


def export_stage(
    words: list[str],
    role: str,
    format: str,
    quantize: str | None,
    output: str | None,
    samples: int,
    data_dir: str | None,
    network: str | None,
    data: str | None,
) -> str:
    """Export the stage of the run in `words[0]`; what was written and how it compares, in words."""
    run_dir = Path(words[0])
    choice("format", format, list(FORMATS))
    choice("quantize", quantize or "null", ("null", "int8"))
    if quantize and format != "onnx":
        raise KdxError(f"quantize={quantize}: only with format=onnx, whose runtime computes in int8")
    stage = load_stage(run_dir, role, network)
    card = Card.of(stage.meta, stage.checkpoint)
    dataset = load_data(stage, data_dir, data)
    plain = Deployed(stage.network, card).eval()
    suffix = (f".{quantize}" if quantize else "") + FORMATS[format]
    path = Path(output) if output else run_dir / role / "export" / f"{role}{suffix}"
    if path.suffix != FORMATS[format]:
        raise KdxError(f"output={output}: must end in {FORMATS[format]}")
    write = {"onnx": _onnx, "torch_export": _torch_export, "safetensors": _safetensors}[format]
    content = write(plain, card)
    if quantize:
        content = _int8(content, card, dataset.val.first(CALIBRATION)[0])
    write_atomic(path, content)
    model, _ = load_model(path, network=network, trust=True)
    images, labels = dataset.test.first(samples)
    told = [f"wrote {path} ({len(content) / 1e6:.2f} MB; the checkpoint has {_size_mb(stage.checkpoint):.2f} MB)"]
    return "\n".join([*told, _compare(plain, model, card, images, labels)])


def _compare(plain: Model, model: Model, card: Card, images: Tensor, labels: Tensor) -> str:
    """Largest difference of logits and both accuracies on the same images."""
    expected, given = answers(plain, card, images), answers(model, card, images)
    difference = float((expected - given).abs().max())
    before, after = (
        100 * float((predict(logits, card.task) == labels).double().mean()) for logits in (expected, given)
    )
    scale = float(expected.abs().max())
    return (
        f"on {len(images)} test images: largest difference {difference:.2e} (logits up to {scale:.1f}); "
        f"accuracy {after:.2f} %, in PyTorch {before:.2f} % ({after - before:+.2f})"
    )


def _onnx(plain: Deployed, card: Card) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise needs("onnx", "export", "format=onnx") from None
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        plain,
        (_example(card),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes={"pixels": {0: batch}},
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.append(onnx.StringStringEntryProto(key=CARD, value=card.text()))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _int8(content: bytes, card: Card, images: Tensor) -> bytes:
    """Static quantisation by onnxruntime: int8 weights a channel, int8 activations by ranges seen on `images`."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(pixels_of(images, card).split(64))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {"pixels": part.numpy()}

    with TemporaryDirectory() as folder:
        whole, prepared, small = (Path(folder) / name for name in ("whole.onnx", "prepared.onnx", "int8.onnx"))
        whole.write_bytes(content)
        quant_pre_process(str(whole), str(prepared))
        quantization.quantize_static(str(prepared), str(small), Reader(), per_channel=True)
        proto = onnx.load(str(small))
    if not any(entry.key == CARD for entry in proto.metadata_props):
        proto.metadata_props.append(onnx.StringStringEntryProto(key=CARD, value=card.text()))
    return proto.SerializeToString()


def _torch_export(plain: Deployed, card: Card) -> bytes:
    program = torch.export.export(
        plain, (_example(card),), dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}}
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path, extra_files={CARD: card.text()})
        return path.read_bytes()


def _safetensors(plain: Deployed, card: Card) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise needs("safetensors", "export", "format=safetensors") from None
    weights = {key: value.contiguous() for key, value in plain.network.state_dict().items()}
    return save(weights, metadata={CARD: card.text()})


def _example(card: Card) -> Tensor:
    return torch.zeros(2, card.image_shape[0], *card.input_size)


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6


if __name__ == "__main__":
    run_command(USAGE, export_stage, DEFAULTS)
