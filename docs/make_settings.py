"""Write docs/settings.md from the dataclasses: their hints, defaults and the comments beside them.

python docs/make_settings.py            # --check: exit with 1 when the page is out of date
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import sys
import textwrap
import tokenize
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.recipes import DEVIATIONS, FINETUNING, PRETRAINING, SCRATCH, Recipe, pretraining
from nnunet_ssl.settings.blocks import FinetuneSettings, PretrainSettings
from nnunet_ssl.settings.checker import rules

RECIPE = {field.name for field in fields(Recipe)}
PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

*Made by `python docs/make_settings.py` from the code; edit the comments there, not this page.*

All of these live in the plans file, in `plans["configurations"][CONFIGURATION]`, in an `ssl` block for pre-training and a
`finetune` block for fine-tuning. Every key is optional, unknown ones are refused. `nnUNetv2_pretrain --set KEY=VALUE`
sets any key of the `ssl` block for one run (`--set mae.mask_ratio=0.6`), and has flags of its own for the common ones, which go
into the `plans.json` of the result folder.

```json
"ssl":      {"num_epochs": 500, "batch_size": 4, "mae": {"mask_ratio": 0.6}},
"finetune": {"num_epochs": 150, "transfer": "encoder+decoder"}
```

Everything has the published recipe as its default.

Values are checked before any image is read, and all that are wrong are named at once. What can mean one thing alone is
converted: a whole number where any number is allowed, one number where one per axis is, a name where a list of names is, and in
texts, upper or lower case, numbers, true, yes, on, false, no, off, none and null. NaN and infinity are refused.
"""


def comments(cls: type) -> dict[str, str]:
    """The comments above and behind every field of a dataclass and of the dataclasses it derives from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        notes = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while lines[first - 2].lstrip().startswith("#"):
                    first -= 1
                text = " ".join(notes[n] for n in range(first, (node.end_lineno or first) + 1) if n in notes)
                found[node.target.id] = text
    return found


def default(field: Any) -> str:
    """A field's default as it would stand in JSON; null of what is in the table of recipes means the value there."""
    if field.default is MISSING:
        return ""
    if field.default is None:
        return "the recipe's" if field.name in RECIPE else "`null`"
    return f"`{json.dumps(field.default)}`"


def table(cls: type) -> str:
    """A Markdown table of a dataclass' fields."""
    notes = comments(cls)
    allowed = {name: rule.text().replace("|", "/") for name, rule in rules(cls).items()}
    rows = [
        f"| `{f.name}` | {allowed[f.name]} | {default(f)} | {notes.get(f.name, '').replace('|', '/')} |"
        for f in fields(cls)
    ]
    return "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *rows])


def recipes() -> str:
    """The recipes side by side."""
    lines = [
        "| run | network | optimiser | learning rate | weight decay | epochs | warm-up | gradient clipping | source |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    rows = [("pre-training", PRETRAINING), ("fine-tuning", FINETUNING), ("from scratch", SCRATCH)]
    rows += [
        (f"`{method}`", {network: pretraining(method)[network]}) for method, network in DEVIATIONS
    ]  # what differs by task
    for run, group in rows:
        for network, r in group.items():
            lines.append(
                f"| {run} | {network} | {r.optimizer} | {r.initial_lr:g} | {r.weight_decay:g} | {r.num_epochs} | "
                f"{r.warmup_epochs} | {r.grad_clip or 'none'} | {r.source} |"
            )
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Recipes\n", recipes(), "\n## `ssl`\n", table(PretrainSettings)]
    for name in method_names():
        method = get_method(name)
        if method.__module__.startswith("nnunet_ssl."):
            parts += [f"\n### `ssl.{name}`\n", table(method.Config)]
    parts += ["\n## `finetune`\n", table(FinetuneSettings), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text() == text else "docs/settings.md is out of date: make docs")
    PAGE.write_text(text)
