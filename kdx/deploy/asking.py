"""Ask a trained network about pictures."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from kdx.data.folders import pictures_below, suffixes
from kdx.deploy.load import Card, Model, answers, load_model, picture_for, ranking
from kdx.errors import KdxError
from kdx.files import write_atomic
from kdx.text import csv_text, harmless

BATCH = 64

Answer = tuple[Path, list[tuple[str, float]]]  # a picture's likeliest classes with their shares


def predict_pictures(
    model_path: Path,
    names: Sequence[str],
    top: int,
    output: str | None,
    role: str,
    network: str | None,
    trust: bool,
) -> Iterator[str | KdxError]:
    """A line, or what is wrong with it, for each picture that `names`, files and folders, stand for."""
    if output is not None and Path(output).suffix.lower() != ".csv":
        raise KdxError(f"output={output}: must end in .csv")
    model, card = load_model(model_path, role, network, trust)
    top = min(top, len(card.class_names))
    rows: list[list[object]] = []
    found = find_pictures(names)
    while part := list(islice(found, BATCH)):
        for answer in _ask(model, card, part, top):
            if isinstance(answer, KdxError):
                yield answer
                continue
            path, likeliest = answer
            named = [(harmless(name), share) for name, share in likeliest]
            yield f"{harmless(str(path))}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in named)
            if output is not None:
                rows.append([path, *(cell for name, share in named for cell in (name, f"{share:.6f}"))])
    if output is not None:
        head = ["picture", *(f"{what}{place}" for place in range(1, top + 1) for what in ("class", "share"))]
        write_atomic(Path(output), csv_text([head, *rows]).encode())
        yield f"wrote {harmless(output)} ({len(rows)} picture{'' if len(rows) == 1 else 's'})"


def find_pictures(names: Iterable[str]) -> Iterator[Path | KdxError]:
    """The files that are named, and the pictures of the folders that are; what is wrong with a folder in its place."""
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):
            yield path
            continue
        try:
            paths, unread = pictures_below(path)
        except KdxError as error:
            yield error
            continue
        if not paths:
            yield KdxError(f"{path}: no picture in this folder" + (f"; not read: {suffixes(unread)}" if unread else ""))
        elif unread:
            print(f"{harmless(str(path))}: not read: {harmless(suffixes(unread))}", file=sys.stderr)
        yield from paths


def _ask(model: Model, card: Card, found: Iterable[Path | KdxError], top: int) -> Iterator[Answer | KdxError]:
    """The answers about some pictures, asked together, and the errors, all in their order."""
    read = [item if isinstance(item, KdxError) else _read(item, card) for item in found]
    images = [item[1] for item in read if not isinstance(item, KdxError)]
    logits = iter(answers(model, card, torch.cat(images)) if images else torch.empty(0))
    for item in read:
        if isinstance(item, KdxError):
            yield item
            continue
        path, own = item[0], next(logits)
        if bool(own.isfinite().all()):
            yield path, list(ranking(own, card)[:top])
        else:
            yield KdxError(f"{path}: the network answers with nan or inf")


def _read(path: Path, card: Card) -> tuple[Path, Tensor] | KdxError:
    try:
        return path, picture_for(path, card)
    except KdxError as error:
        return error
