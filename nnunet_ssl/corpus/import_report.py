"""What to tell the user after an import."""

from __future__ import annotations

from os.path import basename, join

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.images import shortened
from nnunet_ssl.corpus.importing import Imported
from nnunet_ssl.corpus.table import FILE


def describe_import(done: Imported) -> str:
    """New, changed and removed images, what was left out and why, and what to type next."""
    registered = done.registered
    number = dataset_id(basename(registered.folder))
    lines = [f"{basename(registered.folder)}: {len(registered.new)} new images, {registered.total} in all."]
    if registered.removed:
        lines.append(f"Taken out, their files are gone: {len(registered.removed)}")
    if registered.changed:
        lines.append(
            f"{len(registered.changed)} files have changed since they were registered; what was preprocessed of them is made "
            f"anew by the next start:\n{shortened(registered.changed)}"
        )
    if registered.masks_changed:
        lines.append(
            f"{len(registered.masks_changed)} images have other masks than before; what was preprocessed of them is made anew by "
            f"the next start:\n{shortened(registered.masks_changed)}"
        )
    if registered.renamed:
        lines.append(f"Channel names: {registered.renamed}. All images are preprocessed anew by the next start.")
    if registered.problems:
        reasons = [f"{path}: {reason}" for path, reason in sorted(registered.problems.items())]
        lines.append(f"Left out, unusable ({len(reasons)}):\n" + "\n".join(f"  {reason}" for reason in reasons))
    if done.mistakes:
        lines.append(f"Left out, mistakes in the source ({len(done.mistakes)}):")
        lines += [f"  {mistake}" for mistake in done.mistakes]
    lines += [f"Note: {note}" for note in done.notes]
    lines += [
        f"The table: {join(registered.folder, FILE)}",
        "Next:",
        f"  nnUNetv2_pretrain_corpus {number} --html corpus.html      look at it",
        f"  nnUNetv2_pretrain {number}",
    ]
    return "\n".join(lines)
