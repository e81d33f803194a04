"""What the headers of images say: shape, spacing, type; read in threads, without the images themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.corpus.formats import dicom, itk, nifti, tiff
from nnunet_ssl.corpus.formats.header import Header, require_spacing
from nnunet_ssl.corpus.reader import ending_of
from nnunet_ssl.corpus.reading import damage, describe_failure
from nnunet_ssl.errors import UnusableImage
from nnunet_ssl.files.entering import why_no_content, why_no_file
from nnunet_ssl.progress_bars import progress_bar

CHUNK = 128  # files per task of a thread
FORMATS: dict[tuple[str, ...], Callable[[str], Header]] = {
    (*nifti.NIFTI, *nifti.PAIR): nifti.header,
    nifti.MGH: nifti.mgh_header,
    tiff.TIFF: tiff.header,
    itk.ITK: itk.header,
}


def read_header(path: str) -> Header:
    """The header of an image; raises UnusableImage with the reason when it cannot be right."""
    reason = why_no_file(path) or why_no_content(path)
    if reason:
        raise UnusableImage(reason)
    try:
        ending = ending_of(path)
        read = next((function for endings, function in FORMATS.items() if ending in endings), dicom.header)
        header = read(path)
    except UnusableImage:
        raise
    except Exception as error:  # every library has its own ways to fail on a broken file
        raise UnusableImage(damage(path) or describe_failure(error)) from error
    if min(header.shape) < 1 or header.volumes < 1:
        raise UnusableImage(f"no voxels: {shape_text(header.shape)}")
    require_spacing(header.spacing)
    return header


def read_headers(paths: Sequence[str], num_threads: int, show_progress: bool = True) -> Iterator[Header | str]:
    """The header of every image, or the reason why it is unusable, in the order of `paths`."""

    def read_chunk(chunk: list[str]) -> list[Header | str]:
        return [_header_or_reason(path) for path in chunk]

    iterator = iter(paths)
    chunks = iter(lambda: list(islice(iterator, CHUNK)), [])
    with (
        ThreadPoolExecutor(max(1, num_threads)) as pool,
        progress_bar(desc="Reading headers", total=len(paths), disable=not (show_progress and len(paths))) as bar,
    ):
        for results in pool.map(read_chunk, chunks):
            bar.update(len(results))
            yield from results


def _header_or_reason(path: str) -> Header | str:
    try:
        return read_header(path)
    except UnusableImage as error:
        return str(error)
