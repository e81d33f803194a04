"""Is pre-training worth it? Fine-tuning on few labelled hippocampi against the twin from scratch.

    python benchmarks/hippocampus.py Dataset004_Hippocampus --output /tmp/hippocampus --backbone primus_tiny

Pre-trains on all images without labels (one run per pre-training seed), then, per seed, fine-tunes on a few labelled
cases and trains the twin from scratch with the same plans, schedule, cases and seed, and tests both on cases used by
neither training. Everything through the commands a user types, each in a fresh process. Writes results.json and
results.md into the output folder and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from nnunet_ssl.cli.pretrain import BACKBONES
from nnunet_ssl.demo.steps import Step, run_steps
from nnunet_ssl.report.compare import compare_structures, verdict
from nnunet_ssl.trainers.launch import trainer_class

PLANS = {name: planner.replace("SSLPlanner", "nnUNetSSL") + "Plans" for name, planner in BACKBONES.items()}
CONFIGURATION = "3d_fullres"
POOL, FIRST_FEW = 601, 610  # data set ids
RUNS = {"scratch": "SSLScratchTrainer", "finetuned": "SSLFinetuneTrainer"}


def write_dataset(raw: Path, number: int, name: str, source: Path, cases: Sequence[str], labelled: bool) -> str:
    """Register cases of a source data set by reference, with or without their labels."""
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    entries = {}
    for case in cases:
        entries[case] = {"images": [str(source / "imagesTr" / f"{case}_0000{ending}")]}
        if labelled:
            entries[case]["label"] = str(source / "labelsTr" / f"{case}{ending}")
    folder = raw / f"Dataset{number:03d}_{name}"
    folder.mkdir(parents=True)
    labels = description["labels"] if labelled else {"background": 0}
    content = {**description, "labels": labels, "numTraining": len(cases), "dataset": entries}
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))
    return folder.name


def link_test_cases(folder: Path, source: Path, cases: Sequence[str], ending: str) -> None:
    """imagesTs and labelsTs as links, for nnU-Net's prediction and evaluation commands."""
    for kind, suffix in (("images", "_0000"), ("labels", "")):
        (folder / f"{kind}Ts").mkdir(parents=True)
        for case in cases:
            name = f"{case}{suffix}{ending}"
            os.symlink(source / f"{kind}Tr" / name, folder / f"{kind}Ts" / name)


def command(name: str, line: str) -> Step:
    """A command line as a step."""
    return Step(name, name.replace("_", " "), argv=tuple(line.split()))


def set_schedule(plans_file: str, block: dict[str, int]) -> Step:
    """Write the short schedule both twins share into the plans."""

    def edit(folder: Path) -> None:
        plans = json.loads((folder / plans_file).read_text())
        plans["configurations"][CONFIGURATION]["finetune"].update(block)
        (folder / plans_file).write_text(json.dumps(plans, indent=4))

    return Step("schedule", "set the schedule", edit=edit, shown=(f"{plans_file}: finetune.update({block})",))


def seed_steps(args: argparse.Namespace, seed: int, dataset: str, pool: str) -> list[Step]:
    """Everything one seed does after the pre-training."""
    plans, number = PLANS[args.backbone], int(dataset[7:10])
    pretrained = args.seeds[args.seeds.index(seed) % args.pretraining_runs]
    trainer = trainer_class(args.method).__name__
    run = f"{pool}/{trainer}__{plans}__{CONFIGURATION}/fold_all/checkpoint_final.pth"
    block = {
        "num_epochs": args.finetune_epochs,
        "num_iterations_per_epoch": args.iterations_per_epoch,
        "num_val_iterations_per_epoch": 1,
        "seed": seed,
    }
    steps = [
        command(f"fingerprint_{seed}", f"nnUNetv2_extract_fingerprint -d {number} -np 2"),
        command(f"plan_{seed}", f"nnUNetv2_plan_experiment -d {number} -pl {BACKBONES[args.backbone]}"),
        command(f"preprocess_{seed}", f"nnUNetv2_preprocess -d {number} -plans_name {plans} -c {CONFIGURATION} -np 2"),
        set_schedule(f"preprocessed/{dataset}/{plans}.json", block),
    ]
    for name, trainer in RUNS.items():
        weights = f" -pretrained_weights results_{pretrained}/{run}" if name == "finetuned" else ""
        model = f"-tr {trainer} -p {plans}"
        output = f"predictions/{name}_{seed}"
        steps += [
            command(
                f"train_{name}_{seed}",
                f"nnUNetv2_train {number} {CONFIGURATION} all {model}{weights} -device {args.device}",
            ),
            command(
                f"predict_{name}_{seed}",
                f"nnUNetv2_predict -i test/imagesTs -o {output} -d {number} {model} -c {CONFIGURATION} -f all "
                f"--disable_tta -npp 1 -nps 1 -device {args.device}",
            ),
            command(
                f"evaluate_{name}_{seed}",
                f"nnUNetv2_evaluate_folder test/labelsTs {output} -djfile {output}/dataset.json "
                f"-pfile {output}/plans.json -np 1",
            ),
        ]
    return steps


def dice(folder: Path, name: str, seed: int, labels: dict[str, int]) -> dict[str, list[float]]:
    """Dice per structure and test case of one run, plus their mean."""
    summary = json.loads((folder / f"predictions/{name}_{seed}/summary.json").read_text())
    cases = sorted(summary["metric_per_case"], key=lambda c: c["reference_file"])
    scores = {s: [c["metrics"][str(v)]["Dice"] for c in cases] for s, v in labels.items()}
    return {**scores, "mean": [fmean(values) for values in zip(*scores.values(), strict=True)]}


def main() -> None:
    """Parse, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="nnU-Net raw data set with imagesTr and labelsTr")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--backbone", default="resenc_tiny", choices=sorted(BACKBONES))
    parser.add_argument("--method", default="mae")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretraining-runs", type=int, default=1, help="pre-trainings, shared by the seeds in turn")
    parser.add_argument("--labelled", type=int, default=10)
    parser.add_argument("--test", type=int, default=80)
    parser.add_argument("--iterations-per-epoch", type=int, default=50)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--finetune-epochs", type=int, default=10)
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    folder, source = args.output.resolve(), args.data.resolve()
    folder.mkdir(parents=True)
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    cases = sorted(p.name.removesuffix(ending) for p in (source / "labelsTr").glob(f"*{ending}"))
    random.Random(0).shuffle(cases)
    test, candidates = cases[: args.test], cases[args.test :]
    pool = write_dataset(folder / "raw", POOL, "Pool", source, cases, labelled=False)
    link_test_cases(folder / "test", source, test, ending)
    base = {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_n_proc_DA": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }
    for seed in args.seeds[: args.pretraining_runs]:
        line = (
            f"nnUNetv2_pretrain {POOL} --method {args.method} --backbone {args.backbone} --seed {seed} -np 2 "
            f"--epochs {args.pretrain_epochs} --iterations-per-epoch {args.iterations_per_epoch} "
            f"--val-iterations-per-epoch 4 -device {args.device}"
        )
        run_steps([command(f"pretrain_{seed}", line)], folder, {**base, "nnUNet_results": f"{folder}/results_{seed}"})
    for position, seed in enumerate(args.seeds):
        few = random.Random(seed).sample(candidates, args.labelled)
        dataset = write_dataset(folder / "raw", FIRST_FEW + position, f"Few{position}", source, few, labelled=True)
        steps = seed_steps(args, seed, dataset, pool)
        run_steps(steps, folder, {**base, "nnUNet_results": str(folder / "results")})
    labels = {name: value for name, value in description["labels"].items() if value > 0}
    scores = {run: [dice(folder, run, seed, labels) for seed in args.seeds] for run in RUNS}
    rows = compare_structures(
        {s: ([d[s] for d in scores["scratch"]], [d[s] for d in scores["finetuned"]]) for s in (*labels, "mean")}
    )
    (folder / "results.json").write_text(json.dumps({"arguments": sys.argv[1:], "rows": rows}, indent=2))
    table = markdown(args, rows, scores)
    (folder / "results.md").write_text(table)
    print(table)


def markdown(args: argparse.Namespace, rows: Sequence[dict], scores: dict[str, list[dict[str, list[float]]]]) -> str:
    """The table for people."""
    lines = [
        f"{args.method} on {args.backbone}: {args.pretrain_epochs * args.iterations_per_epoch} pre-training steps, "
        f"{args.finetune_epochs * args.iterations_per_epoch} training steps on {args.labelled} labelled cases, "
        f"{args.test} test cases, seeds {args.seeds}, {args.pretraining_runs} pre-training run(s).",
        "",
        "| structure | from scratch | fine-tuned | difference (95 % interval over cases) | std over seeds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['structure']} | {r['scratch_mean']:.3f} | {r['finetuned_mean']:.3f} | {r['difference']:+.3f} "
        f"({r['difference_low']:+.3f} to {r['difference_high']:+.3f}) | {r['seed_std']:.3f} |"
        for r in rows
    ]
    per_seed = [
        f"seed {seed}: {fmean(s['mean']):.3f} from scratch, {fmean(f['mean']):.3f} fine-tuned"
        for seed, s, f in zip(args.seeds, scores["scratch"], scores["finetuned"], strict=True)
    ]
    return "\n".join([*lines, "", "; ".join(per_seed), "", verdict(rows[-1])]) + "\n"


if __name__ == "__main__":
    main()
