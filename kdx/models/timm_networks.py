"""timm's networks by name: `model.student=timm/mobilenetv4_conv_small` (extra `timm`)."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from kdx.errors import KdxError, suggest

PREFIX = "timm/"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository on the hub, the safer first
NOT_COMMERCIAL = "nc"  # in the names of licences

log = logging.getLogger(__name__)


def timm_network(
    name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None, pretrained: bool, download: bool
) -> nn.Module:
    """The network that timm calls `name` without `timm/`, for images of a size where it depends on one.

    `pretrained` weights are timm's, from the hub's cache, or fetched into it with `download`. `KdxError` for a name
    that timm does not know and for weights that cannot be had.
    """
    timm, short = _timm(name), name.removeprefix(PREFIX)
    if not timm.is_model(short.split(".")[0]):
        near = suggest(short, timm.list_models())
        raise KdxError(f"model '{name}': timm has no such network{near}")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if pretrained:
        path = timm_weights(name, download)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    size = {} if image_size is None else {"img_size": image_size}
    try:
        try:
            return timm.create_model(short, **options, **size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(short, **options)  # takes images of any size
    except Exception as error:  # a size that patches do not divide, weights that do not fit, and more
        reason = " ".join(str(error).split())[:200]
        raise KdxError(f"model '{name}': timm cannot build it: {type(error).__name__}: {reason}") from error


def tell_licence(name: str) -> None:
    """Say under which licence the weights are that timm has for a network."""
    timm = _timm(name)
    config = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    licence = getattr(config, "license", None)
    told = (
        f"{name}: weights {getattr(config, 'tag', '') or 'without a tag'}, licence {licence or 'unknown: look it up'}"
    )
    if licence is None or NOT_COMMERCIAL in licence.lower().split("-"):
        log.warning("%s%s", told, "" if licence is None else ", which allows no commercial use")
    else:
        log.info("%s", told)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise KdxError(f"model '{name}' needs the package timm: pip install -e \".[timm]\"") from None
    return timm


def timm_weights(name: str, download: bool) -> Path:
    """The file of timm's weights in the hub's cache, fetched into it with `download`; `KdxError` where it is not."""
    config = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    if config is None or not config.hf_hub_id:
        raise KdxError(f"model '{name}' with pretrained=true: timm has no weights of it on the hub")
    from huggingface_hub import hf_hub_download

    problem: Exception | None = None
    for file in filter(None, (config.hf_hub_filename, *FILES)):
        try:
            return Path(hf_hub_download(config.hf_hub_id, file, local_files_only=not download))
        except Exception as error:  # of the hub's, the network's and the disk's own classes
            problem = problem or error
    reason = " ".join(str(problem).split())[:150]
    raise KdxError(
        f"model '{name}' with pretrained=true: {config.hf_hub_id} is not in the hub's cache and "
        f"{'cannot be fetched' if download else 'download=false'} ({type(problem).__name__}: {reason}); "
        "fetch model.safetensors by hand and name it with stage.<role>.start=FILE"
    ) from problem
