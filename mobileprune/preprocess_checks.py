"""Does another implementation of the preprocessing give the contract's numbers? If not, what does it do instead?

Training code, an app and this library each turn a photograph into numbers. A file that is perfect is wrong in the app
when two of them differ, and nothing but their numbers for the same encoded image shows it.
"""

import numpy as np

from mobileprune.errors import VerificationError
from mobileprune.records import Preprocess

# In grey levels of 0 to 255, on average: two JPEG decoders differ by less, another way of resizing photographs hardly
# by more; BGR for RGB makes 20 and more, the contract's mean that is forgotten 127.
MOST_LEVELS = 3.0


def preprocess_faults(theirs: np.ndarray, ours: np.ndarray, contract: Preprocess) -> list[str]:
    """How another implementation's numbers differ from the contract's, as sentences; none where they agree.

    Args:
        theirs: float32 (N, H, W, C), the other implementation's.
        ours: the contract's for the same images.
        contract: the contract.

    Raises:
        VerificationError: images of another shape, or numbers that are NaN or infinite.

    Example:
        >>> ours = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
        >>> preprocess_faults(ours[..., ::-1], ours, Preprocess(8, 8))[0][:49]
        'The channels come in reverse order (BGR for RGB):'
    """
    if theirs.shape != ours.shape:
        raise VerificationError(
            f"The other preprocessing gives {theirs.shape[1:]} for {len(theirs)} images, the contract {ours.shape[1:]} "
            f"for {len(ours)}. Size or colours differ."
        )
    if not np.isfinite(theirs).all():
        raise VerificationError("The other preprocessing gives NaN or infinity.")
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    std = np.abs(np.asarray(contract.std, np.float64))
    levels = _levels(theirs - ours, std)
    if levels <= MOST_LEVELS:
        return []
    figure = f"{levels:.1f} grey levels on average; decoders explain {MOST_LEVELS:g}"
    if ours.shape[-1] == 3 and _levels(theirs[..., ::-1] - ours, std) <= MOST_LEVELS:
        return [f"The channels come in reverse order (BGR for RGB): off by {figure}."]
    # theirs = factor · ours + shift, as another mean and std make it.
    centred = ours - ours.mean()
    factor = float((centred * theirs).mean() / max(float((centred**2).mean()), np.finfo(np.float64).tiny))
    shift = float(theirs.mean() - factor * ours.mean())
    if factor and _levels((theirs - shift) / factor - ours, std) <= MOST_LEVELS:
        own_mean, own_std = float(np.mean(contract.mean)), float(np.mean(contract.std))
        other_std = own_std / factor
        other_mean = round(own_mean - shift * other_std, 3) + 0.0  # no -0
        return [
            f"The normalisation is another one: as if mean were {other_mean:.4g} and std {other_std:.4g} in place of "
            f"{own_mean:.4g} and {own_std:.4g}; off by {figure}."
        ]
    if _levels(theirs[:, :, ::-1] - ours, std) <= MOST_LEVELS:
        return [f"The images come mirrored: off by {figure}."]
    return [f"Other pixels come out (crop, resize, orientation or colours): off by {figure}."]


def _levels(difference: np.ndarray, std: np.ndarray) -> float:
    """The mean size of a difference of normalised numbers, in grey levels."""
    return float(np.abs(difference * std).mean())
