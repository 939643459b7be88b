"""Write a stage's network as a file that ships, checked against PyTorch on real images."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdx.deploy.formats import FORMATS
from kdx.deploy.load import CARD, Card, Deployed, answers, filled, needs, open_model, pixels_of
from kdx.deploy.run_loader import load_data, load_stage
from kdx.errors import KdxError
from kdx.files import write_atomic
from kdx.metrics.logits import predict, require_numbers

CALIBRATION = 256  # validation images from which int8 learns the range of every activation
OPSET = 18


def export_stage(
    run_dir: Path,
    role: str,
    format: str,
    quantize: str | None,
    opset: int | None,
    batch: int | None,
    output: str | None,
    samples: int,
    data_dir: str | None,
    network: str | None,
    data: str | None,
) -> str:
    """Export a stage of the run in `run_dir`; what was written and how it compares, in words."""
    if quantize and format != "onnx":
        raise KdxError(f"quantize={quantize}: only with format=onnx, whose runtime computes in int8")
    if opset and format != "onnx":
        raise KdxError(f"opset={opset}: only with format=onnx")
    if batch and format == "safetensors":
        raise KdxError(f"batch={batch}: not with format=safetensors, which holds weights and takes any batch")
    suffix = (f".{quantize}" if quantize else "") + FORMATS[format]
    path = Path(output) if output else run_dir / role / "export" / f"{role}{suffix}"
    if path.suffix != FORMATS[format]:
        raise KdxError(f"output={output}: must end in {FORMATS[format]}")
    stage = load_stage(run_dir, role, network)
    card = Card.of_stage(stage)
    dataset = load_data(stage, data_dir, data)
    plain = Deployed(stage.network, card).eval()
    images, labels = dataset.test.spread(samples)  # a test split that is sorted begins with one class
    expected = answers(plain, card, images)
    require_numbers(expected, f"the {card.role}")  # before its file is made
    if format == "onnx":
        content = _onnx(plain, card, opset or OPSET, batch)
        if quantize:
            content = _int8(content, card, dataset.val.spread(CALIBRATION)[0], batch)
    else:
        content = _torch_export(plain, card, batch) if format == "torch_export" else _safetensors(plain, card)
    with TemporaryDirectory() as folder:
        tried = Path(folder) / path.name
        tried.write_bytes(content)
        model, _ = open_model(tried, role, network, trust=True)
        compared = _compare(expected, answers(model, card, images), labels, card)
    write_atomic(path, content)
    what = [format, f"opset {opset or OPSET}"] if format == "onnx" else [format]
    what += [quantize or "float32", f"batches of {batch}" if batch else "batches of any size"]
    sizes = f"{len(content) / 1e6:.2f} MB; the checkpoint has {stage.checkpoint.stat().st_size / 1e6:.2f} MB"
    return f"wrote {path} ({', '.join(what)}; {sizes})\n{compared}"


def _compare(expected: Tensor, given: Tensor, labels: Tensor, card: Card) -> str:
    """Largest difference of PyTorch's and the file's logits (N, C), and both accuracies if it has learnt classes."""
    require_numbers(given, "the exported network")
    difference, scale = float((expected - given).abs().max()), float(expected.abs().max())
    told = f"on {len(given)} test images: largest difference {difference:.2e} (logits up to {scale:.1f})"
    if not card.classifies:
        return f"{told}; it has learnt no classifier and has no accuracy"
    before, after = (
        100 * float((predict(logits, card.task) == labels).double().mean()) for logits in (expected, given)
    )
    return f"{told}; accuracy {after:.2f} %, in PyTorch {before:.2f} % ({after - before:+.2f})"


def _onnx(plain: Deployed, card: Card, opset: int, batch: int | None) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise needs("onnx", "export", "format=onnx") from None
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise KdxError(f"opset={opset}: a whole number of at most {newest} is needed, the last that onnx knows")
    program = torch.onnx.export(
        plain,
        (_example(card, batch),),
        dynamo=True,
        opset_version=opset,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=_shapes(batch),
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    _check_opset(proto, opset)
    proto.metadata_props.append(onnx.StringStringEntryProto(key=CARD, value=card.text()))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _check_opset(proto: Any, opset: int) -> None:
    """`KdxError` where another opset came out: the exporter falls back to its own without an error."""
    (written,) = (entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise KdxError(f"opset={opset}: the network cannot be written with it, {written} came out; choose {written}")


def _int8(content: bytes, card: Card, images: Tensor, batch: int | None) -> bytes:
    """Static quantisation by onnxruntime: int8 weights a channel, int8 activations by ranges seen on `images`."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(pixels_of(images, card).split(batch or 64))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {"pixels": filled(part, batch or len(part)).numpy()}

    with TemporaryDirectory() as folder:
        whole, prepared, small = (Path(folder) / name for name in ("whole.onnx", "prepared.onnx", "int8.onnx"))
        whole.write_bytes(content)
        quant_pre_process(str(whole), str(prepared))
        with _no_warnings_of_axes():
            quantization.quantize_static(str(prepared), str(small), Reader(), per_channel=True)
        proto = onnx.load(str(small))
    _check_opset(proto, next(entry.version for entry in onnx.load_from_string(content).opset_import))
    if not any(entry.key == CARD for entry in proto.metadata_props):
        proto.metadata_props.append(onnx.StringStringEntryProto(key=CARD, value=card.text()))
    return proto.SerializeToString()


@contextmanager
def _no_warnings_of_axes() -> Iterator[None]:
    """onnxruntime warns, on the root logger, of every vector that has no channels: a norm's weights have one scale."""

    def of_else(record: logging.LogRecord) -> bool:
        return "out-of-range for weight" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(of_else)
    try:
        yield
    finally:
        root.removeFilter(of_else)


def _torch_export(plain: Deployed, card: Card, batch: int | None) -> bytes:
    program = torch.export.export(plain, (_example(card, batch),), dynamic_shapes=_shapes(batch))
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


def _example(card: Card, batch: int | None) -> Tensor:
    return torch.zeros(batch or 2, card.image_shape[0], *card.input_size)


def _shapes(batch: int | None) -> dict[str, Any]:
    """Which dimensions of the pixels are open: the batch, where no size is given."""
    return {"pixels": None if batch else {0: torch.export.Dim("batch", min=1)}}
