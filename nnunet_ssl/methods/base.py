"""The contract of a pretext task: five answers, and nothing about data, optimisers or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.errors import BackboneError, CheckpointError
from nnunet_ssl.views.spec import Views


class MethodOutput(NamedTuple):
    """Result of one step.

    loss: scalar to minimise. terms: named scalars to log, detached. preview: named images of the batch,
    [B, C, *spatial] each, in the order in which a person wants to see them; bool tensors are masks, and what others are
    tell their names (`nnunet_ssl.report.pictures.draw_preview`). statistics: sums over the
    batch that `Method.after_step` is given, detached; of a batch in micro-batches, means over them.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    preview: dict[str, Tensor]
    statistics: Mapping[str, Tensor] = {}


class Method(nn.Module):
    """A pretext task around a backbone.

    A subclass gives five answers: `Config` (a frozen dataclass whose defaults are the published recipe), `views`
    (what the loader reads), `prepare` (what happens to it: batched, on the device, from an explicit generator),
    `__init__` (which heads it adds) and `forward` (the loss). Everything whose name does not start with `backbone.`
    counts as a head and is stored apart from the network.

    A loss over the images one by one is written as `forward`. A loss that compares images is written as `encode` and
    `compare`, so that a batch too large for the memory can be encoded part by part and still be compared as one.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    Config: ClassVar[type]
    Inputs: ClassVar[type | None] = None  # a TypedDict: what `prepare` returns (`methods/tensors.py`)
    Encoded: ClassVar[type | None] = None  # likewise of `encode`
    backbones: ClassVar[tuple[str, ...]] = ("unet", "primus")
    crop_setting: ClassVar[str | None] = (
        None  # "method.field" that sets what the network sees, where not the patch does
    )
    trivial_answer: ClassVar[str] = "an answer that does not depend on the image"  # whose loss is the `yardstick`
    keeps_orientation: ClassVar[bool] = True  # of the images in its previews; not where the task turns them
    images_needed: int = 1  # that the loss has to see together to mean anything; more where it compares images
    progress: float = 0.0  # share of the training that is done, 0 to 1; set by the trainer before each of its steps

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__()
        if backbone.kind not in self.backbones:
            raise BackboneError(
                f"{self.name} works on {' and '.join(self.backbones)} networks, not on {backbone.kind}. "
                f"Choose plans with another network."
            )
        self.backbone = backbone
        self.config = config
        self.teacher: Backbone | None = None  # a slower twin of `backbone` without gradients, where a task has one

    @classmethod
    def output_channels(cls, config: Any, in_channels: int) -> int:
        """Channels the network's own decoder shall have; reconstruction tasks give back what they are given."""
        return in_channels

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        """What one sample consists of for plans with this patch size [voxels]."""
        raise NotImplementedError

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Make the network's inputs and targets from a batch.

        batch: "image" [B, C, *region] and "excluded" [B, 1, *region] (True: never ask for this voxel, e.g. because it
        was anonymised); [B, R, ...] where the method's views have R > 1 regions. Runs without gradients.

        Tensors of the result have as their first axis the images, or V views of each: the first views of all images,
        then the second ones, and so on. Scalars concern the batch as a whole. The network has to be given them in this
        order too: stochastic depth drops its paths by image, and knows images by their place.
        """
        raise NotImplementedError

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars that the loss divides by and that add up over the micro-batches of a batch, e.g. the number of hidden voxels.

        In training they come back as entries of `inputs`, as means over all micro-batches of the global batch: the mean of the
        micro-batches' losses is then the loss of the whole, however unevenly the counts are spread.
        """
        return {}

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        """Loss of prepared inputs."""
        return self.compare(self.encode(inputs), inputs)

    def after_step(self, statistics: Mapping[str, Tensor], moved: Tensor) -> None:
        """What follows every step of the optimiser, once: a teacher moves, a running mean takes in the batch.

        `forward` must change nothing: a batch may go through it in micro-batches, again after an error, or be computed
        anew in the backward pass. statistics: what this process' batch gave as `MethodOutput.statistics`. moved: bool on the
        device, False where the step was left out because it was not finite; then nothing may change here either. Schedules are
        functions of `progress`, so that a resumed run needs no other state than buffers. Runs without gradients, in all
        processes alike, and must not wait for the device.
        """

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Loss of the best answer that does not depend on the image, for what `prepare` made: the line to get below.

        The mean grey value, guessing, handing the input back. None, the default, says that nobody knows it; the log then
        has no such line, and nothing warns of a run that learns nothing. Runs without gradients, on a few held-out batches.
        """
        return None

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the network makes of each image; first axes as in `prepare`. Only of methods that compare images."""
        raise NotImplementedError

    def compare(self, encoded: dict[str, Tensor], inputs: dict[str, Tensor]) -> MethodOutput:
        """Loss of a batch that was encoded, in one or in several micro-batches."""
        raise NotImplementedError

    def recomputing(self) -> AbstractContextManager[object]:
        """Context that brings back, in the backward pass, what blocks of the network are told now beside their arguments.

        Entered where `recompute` computes a block again. Only of methods whose `forward` tells them anything that way.
        """
        return nullcontext()

    @property
    def compares(self) -> bool:
        """Whether the loss is written as `encode` and `compare`."""
        return type(self).encode is not Method.encode

    @property
    def bare_network(self) -> nn.Module:
        """The nnU-Net network, which is what fine-tuning wants to have."""
        return self.backbone.network

    @property
    def networks(self) -> list[Any]:
        """The nnU-Net networks in here: the one that is trained, and the teacher's where there is one."""
        return [self.backbone.network] if self.teacher is None else [self.backbone.network, self.teacher.network]

    def heads(self) -> dict[str, Tensor]:
        """State of everything that is not an nnU-Net network."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(("backbone.", "teacher."))}

    def load_heads(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `heads` returned; raises CheckpointError naming the keys that differ."""
        expected = self.heads()
        if set(expected) != set(state):
            raise CheckpointError(
                f"The heads of the checkpoint do not belong to {self.name} with this configuration: "
                f"missing {sorted(set(expected) - set(state))}, unknown {sorted(set(state) - set(expected))}."
            )
        self.load_state_dict(dict(state), strict=False)
