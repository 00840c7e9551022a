"""How unlike two sounds are, by their spectra at several resolutions."""

from functools import cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

RESOLUTIONS = ((128, 12), (256, 24), (512, 40), (1024, 64), (2048, 96))
"""FFT size and mel bands of each; hops are a quarter of the size."""

_RATE_HZ = 24000
_FLOOR = 2e-5
"""Of a magnitude, for each sample of the FFT: differences far below what is heard do not count."""


def spectral_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Sounds [B, n] → one number: log-mel, log-magnitude and relative magnitude differences, averaged."""
    total = made.new_zeros(())
    for size, bands in RESOLUTIONS:
        a, b = magnitudes(made, size), magnitudes(wanted, size)
        filters, floor = mel_filters(size, bands), _FLOOR * size
        mel = ((filters @ a + floor).log10() - (filters @ b + floor).log10()).abs().mean()
        log = ((a + floor).log10() - (b + floor).log10()).abs().mean()
        relative = (a - b).abs().mean() / (b.mean() + 1e-3)
        total = total + mel + 0.25 * log + 0.15 * relative
    return total / len(RESOLUTIONS)


def mel_distance(made: Tensor, wanted: Tensor) -> float:
    """Mean difference of the log10 of 80 mel bands."""
    a, b = magnitudes(made, 1024), magnitudes(wanted, 1024)
    filters = mel_filters(1024, 80)
    return float(((filters @ a + 0.02).log10() - (filters @ b + 0.02).log10()).abs().mean())


def log_mel(sound: Tensor, bands: int, hop: int) -> Tensor:
    """sound [B, n] → [B, bands, n // hop + 1], log10."""
    return (mel_filters(1024, bands) @ magnitudes(sound, 1024, hop) + 0.02).log10()


def magnitudes(sound: Tensor, size: int, hop: int | None = None) -> Tensor:
    """sound [B, n] → magnitudes of its short-time spectra, [B, size / 2 + 1, frames]."""
    spectrum = torch.stft(sound, size, hop or size // 4, window=_window(size), return_complex=True)
    return (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt()


@cache
def mel_filters(size: int, bands: int) -> Tensor:
    """[bands, size / 2 + 1], each row's sum 1."""
    filters = mel_filter_bank(size // 2 + 1, bands, 0.0, _RATE_HZ / 2, _RATE_HZ, mel_scale="htk")
    rows = torch.from_numpy(filters).float().T
    return rows / (rows.sum(dim=1, keepdim=True) + 1e-6)


@cache
def _window(size: int) -> Tensor:
    return torch.hann_window(size)
