"""nnUNetv2_pretrain_corpus: look at a data set before training on it."""

from __future__ import annotations

import argparse

from nnunet_ssl.cli.nnunet_words import add_dataset, take_dataset
from nnunet_ssl.cli.parser import CommandParser, whole
from nnunet_ssl.errors import SettingsError

EXAMPLES = (
    "nnUNetv2_pretrain_corpus -d 745",
    "nnUNetv2_pretrain_corpus -d 745 --html corpus.html",
    'nnUNetv2_pretrain_corpus -d 745 --filter \'modality in ("T1w", "T2w") and iqs <= 2.5 and slices >= 32\'',
    "nnUNetv2_pretrain_corpus -d 745 --export-pretrain-data pretrain_data.json --sample 0",
    "nnUNetv2_pretrain_corpus -d 745 --check",
    "nnUNetv2_pretrain_corpus -d 745 --forget sub-01_T1w sub-02_T1w",
)
NOTES = """\
Works on every nnU-Net data set. For those that nnUNetv2_pretrain_import did not make, the table is made from dataset.json,
the headers and the names, and not stored."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_corpus",
        "DATASET [flags]",
        "Show what is in a data set: counts, shapes, intensities, duplicates, bad files, costs.",
        EXAMPLES,
        NOTES,
        understand=take_dataset,
    )
    add_dataset(parser)
    parser.usual.add_argument("--html", metavar="PAGE", help="also write a page with histograms and a contact sheet")
    parser.usual.add_argument("--filter", dest="expression", metavar="EXPR", help="only images that match")
    parser.usual.add_argument(
        "--sample",
        type=whole,
        default=200,
        metavar="N",
        help="open N images for intensities and pictures (default: 200)",
    )
    parser.usual.add_argument("--no-duplicates", action="store_true", help="do not compare the content of files")
    parser.usual.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="of files with the same content, keep the first registered (imported data sets; files stay where they are)",
    )
    parser.usual.add_argument("--columns", action="store_true", help="list the columns that filters can use, and stop")
    parser.usual.add_argument(
        "--export-pretrain-data", metavar="FILE", help="write the images as nnssl's pretrain_data.json"
    )
    parser.usual.add_argument(
        "--check",
        action="store_true",
        help="what of the preprocessed cases the next start will make anew or drop, and stop",
    )
    parser.usual.add_argument(
        "--forget",
        nargs="+",
        metavar="CASE",
        help='remove what was preprocessed of these cases, or of "all", and stop; images are never touched',
    )
    parser.usual.add_argument("-np", dest="num_processes", type=whole, default=8, metavar="N", help="default: 8")
    return parser


def run(args: argparse.Namespace) -> None:
    """Describe, and write what is asked for."""
    from os.path import basename, dirname, normpath

    from nnunet_ssl.corpus.filters import matching
    from nnunet_ssl.corpus.folders import find_raw_dataset, raw_datasets
    from nnunet_ssl.corpus.overview.build import build_overview, describe_columns
    from nnunet_ssl.corpus.overview.describe import describe_dataset
    from nnunet_ssl.corpus.overview.drop import drop_duplicates
    from nnunet_ssl.corpus.overview.sections import as_text
    from nnunet_ssl.corpus.sources.pretrain_data import write_pretrain_data
    from nnunet_ssl.errors import CorpusError
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.report.corpus_page import write_corpus_page

    if args.sample < 0:
        raise SettingsError(f"--sample wants 0 or more, found {args.sample}.")
    if args.check or args.forget:
        build_overview_of_preprocessed(args)
        return
    require_writable(*(dirname(path) for path in (args.html, args.export_pretrain_data) if path))
    folder = find_raw_dataset(args.dataset)
    if folder is None:
        raise CorpusError(
            f"There is no data set {args.dataset} in nnUNet_raw. There are: {', '.join(raw_datasets()) or 'none'}."
        )
    name = basename(normpath(folder))
    if args.drop_duplicates:
        dropped = drop_duplicates(folder, args.num_processes)
        shown = f", e.g. {', '.join(dropped[:3])}" if dropped else ""
        print(f"{len(dropped)} images repeat the content of others and are taken out{shown}.")
    table = describe_dataset(folder, args.num_processes)
    if args.columns:
        print(describe_columns(table))
        return
    if args.expression:
        before = len(table)
        table = table[matching(table, args.expression)].reset_index(drop=True)
        print(f"{len(table)} of {before} images match {args.expression}")
        if not len(table):
            raise CorpusError("Nothing is left to show. The columns and their values: --columns")
    if args.export_pretrain_data:
        usable = table[table["problem"].isna()]
        unfit = write_pretrain_data(usable, name, args.export_pretrain_data)
        print(f"{len(usable) - len(unfit)} images written to {args.export_pretrain_data}.")
        if unfit:
            print(
                f"{len(unfit)} are volumes of series or have several channels, which it cannot hold, e.g. {unfit[0]}."
            )
    sections, samples = build_overview(
        folder, table, num_samples=args.sample, duplicates=not args.no_duplicates, num_processes=args.num_processes
    )
    print(f"{name}\n\n{as_text(sections)}")
    if args.html:
        write_corpus_page(args.html, name, table, sections, samples)
        print(f"\nThe page: {args.html}")


def build_overview_of_preprocessed(args: argparse.Namespace) -> None:
    """--check and --forget; these need no raw images."""
    from nnunet_ssl.corpus.datasets import resolve_datasets
    from nnunet_ssl.planners.sharing.forget import ALL, check, forget

    if args.check and args.forget:
        raise SettingsError("--check changes nothing, --forget removes. Use one of the two.")
    (name,) = resolve_datasets([args.dataset])
    print("\n".join(check(name) if args.check else forget(name, None if args.forget == [ALL] else args.forget)))


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_corpus."""
    from nnunet_ssl.cli.errors import one_line_errors
    from nnunet_ssl.cli.pipes import until_nobody_reads

    args = build_parser().parse_args(argv)
    with (
        one_line_errors("nnUNetv2_pretrain_corpus", "Nothing is half written; the same command begins anew."),
        until_nobody_reads(),
    ):
        run(args)


if __name__ == "__main__":
    main()
