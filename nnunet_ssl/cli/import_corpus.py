"""nnUNetv2_pretrain_import: a heap of images becomes an nnU-Net data set that points at them."""

from __future__ import annotations

import argparse
import re

from nnunet_ssl.cli.parser import CommandParser, one_of, whole
from nnunet_ssl.errors import SettingsError

KINDS = ("auto", "folder", "table", "bids", "openmind", "pretrain_data", "dataset")
SERIES = ("first", "mean", "all")
GROUPS = ("subject", "session", "modality", "dataset")
EXAMPLES = (
    "nnUNetv2_pretrain_import -i /data/bids -d 745 -n MyBrains",
    "nnUNetv2_pretrain_import -i scans.csv -d 746 -n Clinic --series mean --filter 'modality != \"localizer\"'",
    "nnUNetv2_pretrain_import -i /data/by_patient -d 747 -n CTs --channel-name CT --subject-pattern '(?P<subject>[^/]+)/'",
)
NOTES = """\
sources:
  /data/scans                        a folder: all NIfTI, NRRD, MetaImage and TIFF files below it
  '/data/**/*T1w.nii.gz'             a pattern (in quotes)
  scans.csv                          CSV, TSV or Parquet: path, subject, session, modality, anatomy_mask,
                                     anonymisation_mask, volume, dataset, case; only path is needed, others are kept
  /data/bids                         BIDS, with participants.tsv, sidecars and the masks in derivatives/
  /data/openmind                     the OpenMind download: openneuro_metadata.csv and OpenMind/
  pretrain_data.json                 nnssl's description of a corpus
  4 Dataset005_Prostate /data/D007   nnU-Net data sets: imagesTr and imagesTs

No image is copied or written: the data set in nnUNet_raw is dataset.json, which points at the files, and corpus.parquet, a row
per image. Run the same command again after adding files, and only these are new. docs/corpus.md explains the table."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_import",
        "-i SOURCE [SOURCE ...] -d ID -n NAME [flags]",
        "Make an nnU-Net data set for pre-training out of images that lie anywhere, without copying them.",
        EXAMPLES,
        NOTES,
    )
    parser.usual.add_argument(
        "-i", dest="sources", nargs="+", required=True, metavar="SOURCE", help="one or several, see below"
    )
    parser.usual.add_argument(
        "-d", dest="dataset", type=whole, required=True, metavar="ID", help="number of the data set"
    )
    parser.usual.add_argument(
        "-n", dest="name", metavar="NAME", help="its name; not needed when the data set is there already"
    )
    parser.usual.add_argument(
        "--kind",
        type=one_of(KINDS),
        metavar="|".join(KINDS),
        default="auto",
        help="what SOURCE is (default: see for yourself)",
    )
    parser.usual.add_argument(
        "--channel-name",
        nargs="+",
        metavar="NAME",
        help='name of the channel (default: the modality, if all images have the same); "CT" means Hounsfield units',
    )
    parser.usual.add_argument(
        "--series",
        type=one_of(SERIES),
        metavar="|".join(SERIES),
        default="first",
        help="of 4-D files: the first volume (default), the mean, or all",
    )
    parser.usual.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="where in a file's path subject, session, modality and dataset stand, as named groups",
    )
    parser.usual.add_argument(
        "--filter", dest="expression", metavar="EXPR", help="register only images that match, see docs"
    )
    parser.usual.add_argument("--no-test-images", action="store_true", help="of nnU-Net data sets: leave imagesTs out")
    parser.usual.add_argument(
        "--split-channels", action="store_true", help="of nnU-Net data sets: every channel is an image"
    )
    parser.usual.add_argument(
        "--not-label-maps",
        action="store_true",
        help="register images that look like label maps, too; those that are called so are named with a pattern",
    )
    parser.usual.add_argument(
        "--with-labels",
        action="store_true",
        help="put label maps that belong to an image into nnU-Net's place, to fine-tune on; without, they are only in the table",
    )
    parser.usual.add_argument(
        "--drop-duplicates", action="store_true", help="of files with the same content, register the first"
    )
    parser.usual.add_argument("--no-headers", action="store_true", help="do not open the files: shapes stay unknown")
    parser.usual.add_argument("--strict", action="store_true", help="register nothing if a header is wrong")
    parser.usual.add_argument(
        "--lenient", action="store_true", help="leave out rows with mistakes instead of registering nothing"
    )
    parser.usual.add_argument("--prune", action="store_true", help="take out registered images whose files are gone")
    parser.usual.add_argument(
        "-np", dest="num_threads", type=whole, default=16, metavar="N", help="threads (default: 16)"
    )
    return parser


def read_pattern(text: str | None) -> re.Pattern[str] | None:
    """The compiled --subject-pattern; raises SettingsError when it is none or has no group of use."""
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise SettingsError(f"--subject-pattern {text!r} is no regular expression: {error}") from error
    unknown = set(pattern.groupindex) - set(GROUPS)
    if unknown or not pattern.groupindex:
        raise SettingsError(
            f"--subject-pattern {text!r} wants named groups among {', '.join(GROUPS)}, found "
            f"{', '.join(sorted(unknown)) or 'none'}. Example: --subject-pattern '(?P<subject>[^/]+)/(?P<session>[^/]+)/'"
        )
    return pattern


def run(args: argparse.Namespace) -> None:
    """Import and say what was done."""
    from os.path import basename, join

    from nnunet_ssl.corpus.dataset_names import dataset_name, dataset_title
    from nnunet_ssl.corpus.folders import find_raw_dataset, require_folder
    from nnunet_ssl.corpus.import_report import describe_import
    from nnunet_ssl.corpus.importing import ImportOptions, import_corpus
    from nnunet_ssl.corpus.sources.kinds import SourceOptions
    from nnunet_ssl.files.folders import require_writable

    pattern = read_pattern(args.subject_pattern)
    if args.dataset < 1:
        raise SettingsError(f"-d wants a number from 1 on, found {args.dataset}.")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", args.name):
        raise SettingsError(f"-n wants letters, digits, dots, hyphens and underscores, found {args.name!r}.")
    folder = find_raw_dataset(args.dataset)
    if folder is None and args.name is None:
        raise SettingsError(f"There is no data set {args.dataset} yet. Give the new one a name: -n NAME")
    if folder is not None and args.name is not None and dataset_title(basename(folder)) != args.name:
        raise SettingsError(
            f"Number {args.dataset} is taken by {basename(folder)}. Choose another -d, or leave out -n."
        )
    folder = folder or join(require_folder("nnUNet_raw"), dataset_name(args.dataset, args.name))
    require_writable(folder)
    source = SourceOptions(
        dataset=dataset_title(basename(folder)),
        kind=args.kind,
        subject_pattern=pattern,
        test_images=not args.no_test_images,
        split_channels=args.split_channels,
    )
    options = ImportOptions(
        source=source,
        channels=args.channel_name,
        series=args.series,
        expression=args.expression,
        headers=not args.no_headers,
        strict=args.strict,
        lenient=args.lenient,
        prune=args.prune,
        not_label_maps=args.not_label_maps,
        drop_duplicates=args.drop_duplicates,
        with_labels=args.with_labels,
        num_threads=args.num_threads,
    )
    imported = import_corpus(args.sources, folder, options)
    print(describe_import(imported))
    forget_pruned(basename(folder), imported.registered.removed)


def forget_pruned(name: str, cases: list[str]) -> None:
    """Remove what was preprocessed of the cases that --prune took out."""
    import os
    from os.path import isdir, join

    preprocessed = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112  nnU-Net's name
    if cases and preprocessed and isdir(join(preprocessed, name)):
        from nnunet_ssl.planners.sharing.forget import forget_gone

        print("\n".join(forget_gone(name, cases)))


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_import."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_pretrain_import", "Nothing is half written; the same command completes the import."):
        run(args)


if __name__ == "__main__":
    main()
