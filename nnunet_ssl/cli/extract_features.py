"""nnUNetv2_extract_features: what a pre-trained encoder makes of images, as a table or as maps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_ssl.cli.nnunet_words import add_device
from nnunet_ssl.cli.parser import CommandParser, number, one_of, whole
from nnunet_ssl.errors import SettingsError

if TYPE_CHECKING:
    from pandas import DataFrame

    from nnunet_ssl.features.extraction import Output
    from nnunet_ssl.features.scans import Scan
    from nnunet_ssl.targets.probe import Probed
    from nnunet_ssl.targets.table import Target

EXAMPLES = (
    "nnUNetv2_extract_features -d 4 -pretrained_weights checkpoint_final.pth -o features.parquet",
    "nnUNetv2_extract_features -i /data/scans -pretrained_weights AnonRes/ResEncL-OpenMind-MAE -o scans.csv --html scans.html",
    "nnUNetv2_extract_features -d 4 -pretrained_weights X -o features.parquet --targets targets.csv",
    "nnUNetv2_extract_features -d 4 -pretrained_weights X -o regions.parquet --level region",
    "nnUNetv2_extract_features -i imagesTs -pretrained_weights X -o maps --level patch",
)
NOTES = """\
Images are read, normalised and resampled as those of the pre-training were, whatever they look like; large ones are cut into
windows that overlap. No weight is trained. The same command again continues where it stopped. Beside a table lies its record
(features.parquet.json), in a folder features.json: the settings, and which images were left out and why.

-i takes what nnUNetv2_pretrain_import takes: folders, patterns, single files, DICOM, tables (.csv, .tsv, .parquet), BIDS trees. A
folder of CASE_0000, CASE_0001, ... is one of nnU-Net: a case has a file per channel."""
LEVELS = ("image", "region", "patch")


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_extract_features",
        "(-d DATASET | -i IMAGES) -pretrained_weights X -o OUTPUT [flags]",
        "Features of images from a frozen pre-trained encoder: one row per image or region, or a map per image.",
        EXAMPLES,
        NOTES,
        understand=understand,
    )
    usual = parser.usual
    usual.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of a data set in nnUNet_raw")
    usual.add_argument("-i", dest="sources", nargs="+", metavar="IMAGES", help="or images that lie anywhere")
    usual.add_argument(
        "-pretrained_weights",
        required=True,
        metavar="X",
        help="checkpoint: a file, ORG/NAME on the Hugging Face Hub, or a name that nnUNetv2_pretrain_models lists",
    )
    usual.add_argument(
        "-o", dest="output", required=True, metavar="OUTPUT", help="features.parquet, features.csv, or a folder"
    )
    usual.add_argument(
        "--level",
        default="image",
        type=one_of(LEVELS),
        metavar="L",
        help="image (default): a row per image, in a folder a .npy per image; region: a row per label of its segmentation; "
        "patch: the feature map",
    )
    usual.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="with -i: where in a file's path the subject stands, as a named group",
    )
    usual.add_argument(
        "--labels", metavar="FOLDER", help="with -i and --level region: segmentations, called as the cases"
    )
    add_device(usual)
    usual.add_argument("--html", metavar="PAGE", help="also a page with a picture of where the images lie")
    usual.add_argument(
        "--colour", metavar="COLUMN", help="of that picture: a column of the corpus table, or subject, or region"
    )
    probing = parser.add_argument_group("what is in them: a linear model, judged on people it has not seen")
    probing.add_argument(
        "--targets",
        metavar="FILE",
        help="table (.csv, .tsv, .parquet) with a column case, or subject, and a column per target: classes or numbers",
    )
    probing.add_argument("--target", nargs="+", metavar="COLUMN", help="only these columns (default: all)")
    probing.add_argument(
        "--kind",
        nargs="+",
        default=[],
        metavar="COLUMN=KIND",
        help="of columns whose kind is not to be inferred: binary, multiclass or regression",
    )
    more = parser.add_argument_group("features")
    more.add_argument(
        "--layer",
        default=-1,
        type=lambda text: text if text == "all" else whole(text),
        metavar="N",
        help="feature map: 0 (finest), 1, ... or -1 (the coarsest, default); all, one after the other",
    )
    more.add_argument(
        "--pool",
        nargs="+",
        default=["mean"],
        type=one_of(("mean", "max")),
        metavar="P",
        help="mean (default), max, or both",
    )
    more.add_argument(
        "--maps", default="nifti", type=one_of(("nifti", "npz")), metavar="F", help="nifti (default) or npz"
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--spacing",
        type=number,
        nargs=3,
        metavar="MM",
        help="instead of the pre-training's, in the network's order of axes",
    )
    images.add_argument("--normalization", metavar="SCHEME", help="nnU-Net's scheme, instead of the pre-training's")
    images.add_argument(
        "--patch-size", type=whole, nargs="+", metavar="N", help="voxels, instead of the pre-training's"
    )
    images.add_argument(
        "--overlap", type=number, default=0.5, metavar="X", help="of windows, as a share (default: 0.5)"
    )
    images.add_argument("--stem", metavar="ID", help="of weights with a stem for every data set")
    images.add_argument("--with-test-images", action="store_true", help="with -d: images in imagesTs as well")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "-np",
        dest="num_processes",
        type=whole,
        default=3,
        metavar="N",
        help="to read images ahead (default: 3; 0: none)",
    )
    machine.add_argument("--batch-size", type=whole, default=1, metavar="N", help="windows at once (default: 1)")
    return parser


def understand(args: argparse.Namespace) -> None:
    """Raise SettingsError for what contradicts itself."""
    if (args.dataset is None) == (args.sources is None):
        raise SettingsError("which images? Either -d DATASET or -i IMAGES")
    if args.subject_pattern is not None and args.sources is None:
        raise SettingsError("--subject-pattern is about the paths of -i; a data set (-d) knows its subjects")
    if args.labels is not None and (args.sources is None or args.level != "region"):
        raise SettingsError("--labels goes with -i and --level region; a data set (-d) has its own")
    if args.sources is not None and args.level == "region" and args.labels is None:
        raise SettingsError("--level region needs segmentations: --labels FOLDER, or a data set with -d")
    if args.colour is not None and args.html is None:
        raise SettingsError("--colour is for the picture on a page: add --html PAGE")
    if args.html is not None and args.level == "patch":
        raise SettingsError("--html shows rows of a table: --level image or region")
    if args.targets is not None and args.level != "image":
        raise SettingsError("--targets are known of images: --level image")
    if (args.target or args.kind) and args.targets is None:
        raise SettingsError("--target and --kind are about a table: add --targets FILE")
    if wrong := [text for text in args.kind if text.count("=") != 1]:
        raise SettingsError(f"--kind wants COLUMN=KIND, found {wrong[0]}", found=wrong[0])
    if args.batch_size < 1 or args.num_processes < 0:
        raise SettingsError(
            f"--batch-size wants at least 1 and -np at least 0, found {args.batch_size} and {args.num_processes}"
        )


def run(args: argparse.Namespace) -> None:
    """Find the images, open the weights, extract, and say where everything is."""
    from pathlib import Path

    import torch

    from nnunet_ssl.cli.import_corpus import read_pattern
    from nnunet_ssl.corpus.images import shortened
    from nnunet_ssl.errors import CorpusError
    from nnunet_ssl.features.encoder import load_encoder
    from nnunet_ssl.features.extraction import Output, Wanted, extract, settings_of
    from nnunet_ssl.features.scans import scans_in, scans_of_dataset
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.messages import counted
    from nnunet_ssl.trainers.device.devices import require_device

    device = torch.device(args.device)
    require_device(device)
    output = Path(args.output)
    require_writable(str(output.parent), *([str(Path(args.html).parent)] if args.html else []))
    wanted = Wanted(args.level, args.layer, tuple(args.pool), args.overlap, args.maps)
    notes: list[str] = []
    if args.dataset:
        scans = scans_of_dataset(args.dataset)
    else:
        scans, notes = scans_in(args.sources, args.labels, read_pattern(args.subject_pattern))
    print("\n".join([f"{counted(len(scans), 'image')}.", *notes]))
    (channels, *others) = sorted({len(scan.files) for scan in scans})
    if others:
        raise CorpusError(
            f"The images have {channels} to {others[-1]} channels. Take those of one number at a time: -i FOLDER for each."
        )
    targets = targets_of(args, scans)
    known = known_of(args, scans, targets)
    encoder = load_encoder(
        args.pretrained_weights,
        input_channels=channels,
        patch_size=patch_of(args.patch_size),
        spacing=args.spacing,
        normalization=args.normalization,
        stem=args.stem,
    ).to(device)
    layers = encoder.layers_of(wanted.layer)
    size = sum(encoder.feature_channels[n] for n in layers) * (1 if args.level == "patch" else len(wanted.pool))
    print(f"{encoder.origin}\n{encoder.report.source.family}: {size} features per {args.level}")
    for note in encoder.preparation.notes:
        print(f"NOTE: {note}")
    target = Output(output, wanted, settings_of(encoder, wanted))
    done = extract(encoder, scans, wanted, target, args.num_processes, args.batch_size)
    if target.left_out:
        lines = [f"{case}: {reason}" for case, reason in sorted(target.left_out.items())]
        were = "was" if len(lines) == 1 else "were"
        print(
            f"{counted(len(lines), 'image')} {were} left out:\n{shortened(lines)}\nAll of them are in {target.record}."
        )
    if not done:
        raise CorpusError("None of the images could be used, so there are no features.")
    more = len(target.known - {scan.case for scan in scans})
    before = f" ({more:,} of other images are in it from before)" if more else ""
    print(f"Features of {counted(done, 'image')}: {output}{before}")
    probed = probe_targets(target, targets, scans)
    if args.html:
        write_page(args, target, known, probed)
        print(f"The page: {args.html}")


def targets_of(args: argparse.Namespace, scans: Sequence[Scan]) -> list[Target]:
    """What is known of the images, checked before hours go into features; said in a line each."""
    if args.targets is None:
        return []
    from nnunet_ssl.targets.folds import target_folds
    from nnunet_ssl.targets.table import read_targets

    subjects = {scan.case: scan.subject for scan in scans}
    kinds = dict(text.split("=") for text in args.kind)
    targets = read_targets(args.targets, subjects, columns=args.target, kinds=kinds)
    for target in targets:
        target_folds(target, subjects)
    print("Targets (another kind: --kind COLUMN=KIND):\n" + "\n".join(f"  {target}" for target in targets))
    return targets


def probe_targets(output: Output, targets: Sequence[Target], scans: Sequence[Scan]) -> list[Probed]:
    """What a linear model finds in the features; said, and written beside them."""
    if not targets:
        return []
    from nnunet_ssl.files.atomic import write_json
    from nnunet_ssl.targets.probe import probe

    features, subjects = output.features(), {scan.case: scan.subject for scan in scans}
    probed = [probe(features, target, subjects) for target in targets]
    file = output.record.with_name(f"{output.path.name}.probe.json" if output.is_table else "probe.json")
    write_json(
        {p.target.name: {"kind": p.target.kind, "cases": len(p.cases), "measures": p.measures} for p in probed}, file
    )
    print("\n".join([*map(str, probed), f"All measures: {file}"]))
    return probed


def patch_of(size: list[int] | None) -> list[int] | None:
    """Three numbers of one, None of none."""
    return size * 3 if size is not None and len(size) == 1 else size


def known_of(args: argparse.Namespace, scans: Sequence[Scan], targets: Sequence[Target]) -> DataFrame | None:
    """A row per image with the columns that --colour may name; raises SettingsError where it names another one.

    None without --colour. Of a data set, the corpus table's columns are among them.
    """
    if args.colour is None:
        return None
    import pandas as pd

    from nnunet_ssl.corpus.folders import find_raw_dataset
    from nnunet_ssl.corpus.overview.describe import describe_dataset
    from nnunet_ssl.nearest import did_you_mean

    known = pd.DataFrame([{"case": s.case, "subject": s.subject, "modality": s.modality} for s in scans])
    for target in targets:
        values = known["case"].map(target.values)
        known[target.name] = values.map(dict(enumerate(target.classes))) if target.classes else values
    folder = find_raw_dataset(args.dataset) if args.dataset else None
    if folder is not None and args.colour not in known:
        about = describe_dataset(folder, show_progress=False)
        known = known.merge(about[[c for c in about if c == "case" or c not in known]], on="case", how="left")
    columns = [*known, *(["region", "voxels"] if args.level == "region" else [])]
    if args.colour not in columns:
        raise SettingsError(
            f"--colour {args.colour}: there is no such column.{did_you_mean(args.colour, columns)} Known: {', '.join(columns)}.",
            found=args.colour,
        )
    return known


def write_page(args: argparse.Namespace, output: Output, known: DataFrame | None, probed: Sequence[Probed]) -> None:
    """The picture of the rows, coloured by a column of the features' own table or of what is known of the images."""
    from nnunet_ssl.report.embedding_page import write_embedding_page

    table, features = output.table()
    colour = None
    if known is not None:
        own = args.colour in table
        colour = (
            table[args.colour] if own else table["case"].map(known.set_index("case")[args.colour]).rename(args.colour)
        )
    write_embedding_page(args.html, table, features, colour, f"Features in {output.path.name}", probed)


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_extract_features."""
    from nnunet_ssl.cli.errors import one_line_errors
    from nnunet_ssl.corpus.environment import environment
    from nnunet_ssl.corpus.images import TEST_IMAGES
    from nnunet_ssl.signals import start_tracker

    args = build_parser().parse_args(argv)
    start_tracker()
    with one_line_errors("nnUNetv2_extract_features"), environment({TEST_IMAGES: "1"} if args.with_test_images else {}):
        run(args)


if __name__ == "__main__":
    main()
