"""Fine-tuning schedules: for every epoch, what trains and with which learning rate.

Names and order of the phases follow the ablation of the OpenMind benchmark (https://arxiv.org/abs/2412.17041); its sawtooth
of 1000 epochs is 25 + 25 epochs of the decoder, 50 of warm-up, then the decay; of 150 epochs 7 + 8, 15, then the decay.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.recipes import Recipe, falling_lr, rising_lr, short_phase
from nnunet_ssl.settings.blocks import FinetuneSettings

# The settings with a meaning in each schedule, of those that are about phases.
USED = {
    "poly": (),
    "warmup": ("warmup_epochs",),
    "valley": ("decoder_epochs", "decoder_lr", "warmup_epochs"),
    "sawtooth": ("decoder_epochs", "decoder_lr", "warmup_epochs"),
    "frozen": ("decoder_lr",),
    "layer_decay": ("warmup_epochs", "layer_decay"),
}
SCHEDULE_NAMES = tuple(USED)


@dataclass(frozen=True)
class Phase:
    """Epochs `first` to `first + length - 1`, in which the same parameters train and the learning rate goes one way."""

    first: int
    length: int
    decoder_only: bool
    rising: bool
    peak: float  # highest learning rate

    @property
    def last(self) -> int:
        return self.first + self.length - 1

    def lr(self, epoch: int) -> float:
        """Learning rate of an epoch of this phase: linear up to the peak, or polynomial from the peak down to zero."""
        curve = rising_lr if self.rising else falling_lr
        return curve(self.peak, epoch - self.first, self.length)

    def __str__(self) -> str:
        epochs = f"epoch {self.first}" if self.length == 1 else f"epochs {self.first} to {self.last}"
        way = "linear" if self.rising else "polynomial"
        what = "decoder only, the encoder is frozen" if self.decoder_only else "the whole network"
        return f"{epochs}: {what}; learning rate {self.lr(self.first):.3g} to {self.lr(self.last):.3g}, {way}"


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, one after the other from epoch 0 to the last; all is a pure function of the epoch."""

    name: str
    phases: tuple[Phase, ...]
    layer_decay: float | None = None  # factor on the learning rate per layer away from the decoder
    ignored: tuple[str, ...] = ()  # settings that somebody made and that mean nothing in this schedule

    def phase(self, epoch: int) -> Phase:
        """The phase of an epoch; the last one for an epoch behind the end."""
        return next((p for p in self.phases if epoch <= p.last), self.phases[-1])

    def lr(self, epoch: int) -> float:
        """Learning rate of an epoch, before any layer decay."""
        return self.phase(epoch).lr(epoch)

    def __str__(self) -> str:
        lines = [f"Schedule {self.name}:", *(f"  {phase}" for phase in self.phases)]
        if self.layer_decay is not None:
            lines.append(
                f"  the learning rate falls by a factor of {self.layer_decay:g} per layer, from the decoder down"
            )
        if self.ignored:
            lines.append(f"  without effect in this schedule: {', '.join(self.ignored)}")
        return "\n".join(lines)


def make_schedule(name: str, recipe: Recipe, settings: FinetuneSettings) -> Schedule:
    """The schedule `name` (one of SCHEDULE_NAMES) for a resolved recipe.

    Short phases are as long as `short_phase` says, where the settings do not say otherwise; phases without epochs are
    left out. Raises SettingsError when the short phases leave nothing of the run.
    """
    if name not in USED:
        raise ValueError(f"There is no schedule {name!r}. Known schedules: {', '.join(SCHEDULE_NAMES)}.")
    length, warmup = recipe.num_epochs, recipe.warmup_epochs if "warmup_epochs" in USED[name] else 0
    decoder = 0
    if "decoder_epochs" in USED[name]:
        asked = settings.decoder_epochs
        decoder = short_phase(length) if asked is None else asked
        if decoder + warmup >= length > 1:
            raise SettingsError(
                f"{decoder} epochs of the decoder alone and {warmup} of warm-up leave nothing of a run of {length}. "
                "Set decoder_epochs and warmup_epochs so that their sum is below num_epochs."
            )
    alone = recipe.initial_lr if settings.decoder_lr is None else settings.decoder_lr
    rest = max(0, length - decoder - warmup)
    phases: list[Phase] = []

    def add(epochs: int, decoder_only: bool, rising: bool) -> None:
        if epochs > 0:
            first = phases[-1].last + 1 if phases else 0
            phases.append(Phase(first, epochs, decoder_only, rising, alone if decoder_only else recipe.initial_lr))

    if name == "sawtooth":
        add(decoder // 2, decoder_only=True, rising=True)
        add(decoder - decoder // 2, decoder_only=True, rising=False)
    else:
        add(decoder, decoder_only=True, rising=False)
    add(warmup, decoder_only=False, rising=True)
    add(rest, decoder_only=name == "frozen", rising=False)
    return Schedule(
        name, tuple(phases), settings.layer_decay if name == "layer_decay" else None, _without_effect(name, settings)
    )


def _without_effect(name: str, settings: FinetuneSettings) -> tuple[str, ...]:
    phase_settings = {s for used in USED.values() for s in used}
    made = {f.name for f in fields(settings) if f.default is not MISSING and getattr(settings, f.name) != f.default}
    return tuple(sorted(made & phase_settings - set(USED[name])))
