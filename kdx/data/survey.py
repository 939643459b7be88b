"""What a folder of pictures would train: images of each class, sizes, files that cannot be read. Trains nothing."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdx.data.description import counts_text
from kdx.data.folders import beside_note, folders_beside, listing_notes
from kdx.data.imagefolder import Files, hash_files, list_files
from kdx.data.pictures import read_picture
from kdx.errors import KdxError
from kdx.text import harmless

TOLD = 20  # files that cannot be read are named one by one up to here
COMMON = 3  # sizes that are told one by one
USUAL = 224  # pixels for which the memory is told where the pictures have many sizes
Size = tuple[int, int]


def survey(path: str) -> Iterator[str | KdxError]:
    """Lines about `path`, and an error for each file that cannot be read; costs an epoch's decoding.

    Raises `KdxError` where the folder is none that could train, as a run would.
    """
    class_names, files, listings = list_files(path)
    yield f"imagefolder {harmless(path)}: {len(class_names)} classes"
    for split, (paths, labels) in files.items():
        origin = "" if split in listings else " (a tenth of train: there is no folder val)"
        counts = np.bincount(labels, minlength=len(class_names))
        yield harmless(f"{split}: {len(paths)} images{origin}: {counts_text(counts.tolist(), class_names)}")
        absent = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if absent:
            yield harmless(f"{split}: no image of {', '.join(absent)}")
    looks = look_at([one for paths, _ in files.values() for one in paths])
    broken = [look for look in looks.values() if isinstance(look, KdxError)]
    sizes = Counter(look for look in looks.values() if not isinstance(look, KdxError))
    if sizes:
        yield sizes_text(sizes)
    sound = {split: _only(looks, paths, labels) for split, (paths, labels) in files.items()}
    repeated = hash_files(sound, class_names, None)[1]
    for note in (*listing_notes(listings, Path(path)), *beside_note(folders_beside(path)), *repeated):
        yield harmless(note)
    yield from broken[:TOLD]
    if broken:
        yield KdxError(f"{path}: {len(broken)} of {len(looks)} files cannot be read: mend or remove them")


def look_at(paths: Sequence[Path]) -> dict[Path, Size | KdxError]:
    """The size (width, height) of each picture, or why it cannot be read; all are decoded."""

    def size_of(path: Path) -> Size | KdxError:
        try:
            return read_picture(path).size
        except KdxError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes beside Python
        return dict(zip(paths, pool.map(size_of, paths), strict=True))


def _only(looks: Mapping[Path, Size | KdxError], paths: Sequence[Path], labels: np.ndarray) -> Files:
    """The files that can be read."""
    kept = [number for number, path in enumerate(paths) if not isinstance(looks[path], KdxError)]
    return [paths[number] for number in kept], labels[kept]


def sizes_text(sizes: Mapping[Size, int]) -> str:
    """The sizes in words, and what decoded pictures take."""
    count = sum(sizes.values())
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"sizes: all {width}x{height}, {room(count, width, height)} decoded"
    common = Counter(sizes).most_common(COMMON)
    told = ", ".join(f"{width}x{height} ({times})" for (width, height), times in common)
    widths, heights = zip(*sizes, strict=True)
    return (
        f"sizes: {len(sizes)}, most often {told}; widths {min(widths)} to {max(widths)}, heights {min(heights)} to "
        f"{max(heights)}: set dataset.size, e.g. {USUAL}, {room(count, USUAL, USUAL)} decoded"
    )


def room(count: int, width: int, height: int) -> str:
    """What colour images take in memory."""
    megabytes = count * 3 * width * height / 1e6
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.1f} MB"
