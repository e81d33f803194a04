"""A made-up organ in a volume: brightness alone does not tell what to segment, the surroundings do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SHAPE = (32, 40, 32)  # voxels of 1 mm
NUM_DISTRACTORS = 4


@dataclass(frozen=True)
class Phantom:
    """image: float32 [D, H, W] in arbitrary units; labels: uint8 [D, H, W], 0 background, 1 core, 2 tail."""

    image: np.ndarray
    labels: np.ndarray


def make_phantom(generator: np.random.Generator) -> Phantom:
    """Draw one phantom.

    An ellipsoidal organ with a rim and texture holds a dark, bent duct that is thick at one end. Bright lobes sit at
    its ends: the "core" (label 1) at the thick, the "tail" (label 2) at the thin one. Up to NUM_DISTRACTORS
    equally bright lobes of the same sizes lie far from both ends and are background. Pose, shape, contrast, field
    inhomogeneity, gain and noise differ between phantoms.
    """
    position, axes = _organ_frame(generator)
    radius = np.sqrt(sum((position[i] / axes[i]) ** 2 for i in range(3)))
    organ = _soft(1 - radius, 0.04)
    rim = np.exp(-(((radius - 0.93) / 0.06) ** 2))
    duct, thick_end, thin_end = _duct(position, axes, generator)
    core = _lobe(position, thick_end, generator.uniform(3.2, 4.2), generator)
    tail = _lobe(position, thin_end, generator.uniform(2.6, 3.6), generator)
    bright = np.maximum(core, tail)
    for centre in _distractor_centres(axes, thick_end, thin_end, generator):
        bright = np.maximum(bright, _lobe(position, centre, generator.uniform(2.6, 4.2), generator))

    texture = _smooth_noise(generator, 2.0)
    brightness = 0.50 + 0.05 * texture
    image = 0.06 + organ * (brightness - 0.06) + 0.18 * rim
    lobes = _soft(bright, 0.1)
    image += lobes * (generator.uniform(0.28, 0.36) + 0.04 * _smooth_noise(generator, 1.5))
    image -= _soft(duct, 0.1) * (1 - lobes) * organ * generator.uniform(0.28, 0.36)
    image *= np.exp(0.15 * _smooth_noise(generator, 10.0))
    image = generator.uniform(300, 900) * (image + generator.normal(0, 0.045, SHAPE))

    labels = np.zeros(SHAPE, np.uint8)
    labels[tail > 0] = 2
    labels[core > 0] = 1
    return Phantom(image.astype(np.float32), labels)


def _organ_frame(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Voxel positions [3, D, H, W] in the organ's own frame [mm], and its half axes [3]."""
    axes = np.array([13.2, 16.8, 13.2]) * generator.uniform(0.88, 1.05, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")).astype(np.float32)
    grid -= generator.uniform(-1.5, 1.5, 3)[:, None, None, None]
    warp = np.stack([_smooth_noise(generator, 5.0) for _ in range(3)])
    angles = np.deg2rad(generator.uniform(-25, 25, 3))
    return np.tensordot(_rotation(angles), grid + 0.9 * warp, axes=1), axes


def _duct(
    position: np.ndarray, axes: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The duct (> 0 inside) and its thick and thin end [3], in mm; which way round it lies is left to chance."""
    direction = generator.choice([-1.0, 1.0])
    bend, tilt = generator.uniform(2, 5) * generator.choice([-1.0, 1.0]), generator.uniform(-3, 3)
    along = np.linspace(-1, 1, 15)
    curve = np.stack([tilt * along, direction * 0.52 * axes[1] * along, bend * (1 - along**2) - bend / 2], axis=1)
    radii = np.linspace(3.6, 1.3, 15)
    inside = np.full(SHAPE, -np.inf, np.float32)
    for centre, radius in zip(curve, radii, strict=True):
        distance = np.sqrt(((position - centre[:, None, None, None]) ** 2).sum(axis=0))
        inside = np.maximum(inside, 1 - distance / radius)
    return inside, curve[0], curve[-1]


def _lobe(position: np.ndarray, centre: np.ndarray, size: float, generator: np.random.Generator) -> np.ndarray:
    """An irregular ellipsoid around a centre, > 0 inside; `size`: its mean half axis [mm]."""
    half_axes = size * generator.uniform(0.8, 1.25, 3)
    turned = np.tensordot(
        _rotation(generator.uniform(-np.pi, np.pi, 3)), position - centre[:, None, None, None], axes=1
    )
    return 1 - np.sqrt(((turned / half_axes[:, None, None, None]) ** 2).sum(axis=0))


def _distractor_centres(
    axes: np.ndarray, thick_end: np.ndarray, thin_end: np.ndarray, generator: np.random.Generator
) -> list[np.ndarray]:
    """Places within the organ that are far from both ends of the duct and from one another [mm]."""
    taken = [thick_end, thin_end]
    candidates = generator.uniform(-0.75, 0.75, (400, 3)) * axes
    candidates = candidates[np.sqrt(((candidates / axes) ** 2).sum(axis=1)) < 0.75]
    for candidate in candidates:
        if len(taken) == NUM_DISTRACTORS + 2:
            break
        if min(np.linalg.norm(candidate - other) for other in taken) > 9:
            taken.append(candidate)
    return taken[2:]


def _smooth_noise(generator: np.random.Generator, sigma: float) -> np.ndarray:
    """Gaussian random field of unit variance, smooth over `sigma` mm."""
    field = ndimage.gaussian_filter(generator.standard_normal(SHAPE, dtype=np.float32), sigma, truncate=3)
    return (field - field.mean()) / field.std()


def _soft(inside: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, with an edge of about `width`, as partial volumes blur it."""
    return 1 / (1 + np.exp(np.clip(-4 * inside / width, -30, 30)))


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] of three successive turns [radians] around the axes."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, j, i, j], [i, j, j, i]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
