"""Training the codec: first without quantisation, then its decoder alone on the codes that it will be given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MimiConfig, MimiModel

from mini.codebooks import fit
from mini.recordings import Recording, Recordings
from mini.sizes import CODEC, FRAME_SAMPLES, LATENT
from mini.spectra import log_mel, mel_distance, spectral_loss
from mini.training import Plan, Scores, Training, reduced_precision

CONTINUOUS = Plan("codec_continuous", steps=6200, learning_rate=1e-3, clip=2.0, weight_decay=1e-3)
DECODER = Plan("codec_decoder", steps=9000, learning_rate=8e-4, clip=2.0, weight_decay=1e-3)

_BATCH, _CROP_FRAMES = 4, 12
_PATCH_BANDS, _PATCH_COLUMNS = 40, 8
_SCORED, _AT_ONCE = 24, 32


class Continuous(nn.Module):
    """The codec with its latents as they are, and a head that reads the log-mel picture of each frame from them.

    The head makes the latents hold what is heard before the decoder can use it.
    """

    def __init__(self) -> None:
        super().__init__()
        # As the modules come, much of them may be None.
        self.codec: Any = MimiModel(MimiConfig(**CODEC))
        self.head = nn.Linear(LATENT, _PATCH_BANDS * _PATCH_COLUMNS)
        for codebook in self.codec.quantizer.parameters():
            codebook.requires_grad_(False)
        acoustic: Any = self.codec.quantizer.acoustic_residual_vector_quantizer
        self.inward, self.outward = acoustic.input_proj, acoustic.output_proj
        for projection in (self.inward, self.outward):
            projection.requires_grad_(True)

    def forward(self, sound: Tensor) -> tuple[Tensor, Tensor]:
        """sound [B, 1, frames * FRAME_SAMPLES] → the same again, and its latents [B, latent, frames]."""
        latents = self.latents(sound)
        return self.codec.decoder(self.outward(latents)).audio_values, latents

    def latents(self, sound: Tensor) -> Tensor:
        """sound [B, 1, n] → [B, latent, frames]."""
        latents: Tensor = self.inward(self.codec.encoder(sound).latents)
        return latents

    def picture_loss(self, latents: Tensor, sound: Tensor) -> Tensor:
        """How far off the head's picture of each frame is."""
        frames = latents.shape[2]
        wanted = log_mel(sound[:, 0], _PATCH_BANDS, FRAME_SAMPLES // _PATCH_COLUMNS)[..., : frames * _PATCH_COLUMNS]
        wanted = wanted.unflatten(2, (frames, _PATCH_COLUMNS)).permute(0, 2, 3, 1)
        difference: Tensor = (self.head(latents.transpose(1, 2)).view_as(wanted) - wanted).abs().mean()
        return difference

    @torch.no_grad()
    def balance(self, sound: Tensor) -> None:
        """Scales a fresh codec so that signals are of size one inside: as it comes they fade to a constant."""
        for name, parameter in self.codec.named_parameters():
            if name.endswith("conv.bias"):
                parameter.zero_()
        self.codec.encoder.encoder_seanet.layers[0].conv.weight.mul_(8)
        self.codec.decoder.decoder_seanet.layers[-1].conv.weight.mul_(0.1)
        self.codec.encoder.downsample.conv.weight.div_(self.codec.encoder(sound).latents.std())
        self.inward.weight.div_(self.latents(sound).std())


class Decoder(nn.Module):
    """The half of the codec that turns codes into sound."""

    def __init__(self, codec: MimiModel) -> None:
        super().__init__()
        self.decoder: Any = codec.decoder
        self.quantizer: Any = codec.quantizer
        self.quantizer.requires_grad_(False)
        self.quantizer.acoustic_residual_vector_quantizer.output_proj.requires_grad_(True)

    def forward(self, codes: Tensor) -> Tensor:
        """codes [B, codebooks, frames] → sound [B, 1, n]."""
        sound: Tensor = self.decoder(self.quantizer.decode(codes)).audio_values
        return sound


def train(folder: Path) -> None:
    """Both trainings, whatever of them is left; the codec is then in `folder`/codec."""
    recordings = Recordings(folder / "answers")
    torch.manual_seed(0)
    continuous = Continuous()
    first = Training(folder, CONTINUOUS, continuous)
    if not first.is_resumed:
        continuous.balance(_crops(recordings, np.random.default_rng(0), 16))
    first.run(lambda step: _continuous_loss(continuous, recordings, step), lambda: _score(continuous, recordings))
    codec = continuous.codec
    quantized = folder / "codec_quantized"
    if quantized.exists():
        codec = MimiModel.from_pretrained(quantized)
    else:
        continuous.eval()
        print("variance left:", fit(codec, _all_latents(continuous, recordings)), flush=True)  # noqa: T201
        rounded(codec).save_pretrained(quantized)
    codes = codes_of_answers(folder)
    decoder = Decoder(codec)
    second = Training(folder, DECODER, decoder)
    second.run(
        lambda step: _decoder_loss(decoder, codes, recordings, step),
        lambda: _score_decoder(decoder, codes, recordings),
    )
    rounded(codec).save_pretrained(folder / "codec")


def rounded(module: MimiModel) -> MimiModel:
    """The module with every weight as bfloat16 keeps it, in float32: what will be loaded once it is shipped."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(tensor.bfloat16().float())
    return module


def codes_of_answers(folder: Path) -> list[Tensor]:
    """The codes of each of the answers' recordings, kept once they are worked out: [codebooks, frames] int64."""
    path = folder / "answers_codes.pt"
    if path.exists():
        kept: list[Tensor] = torch.load(path, weights_only=True)
        return kept
    codes = encode_all(MimiModel.from_pretrained(folder / "codec_quantized"), Recordings(folder / "answers"))
    torch.save([each.clone() for each in codes], path)
    return codes


@torch.no_grad()
def encode_all(codec: MimiModel, recordings: Recordings) -> list[Tensor]:
    """The codes of each recording: [codebooks, frames] int64."""
    codec.eval()
    return _each(recordings, lambda sound: codec.encode(sound).audio_codes)


def _each(recordings: Recordings, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What is computed of each recording, those of the same length at a time."""
    lengths = np.array([item.count for item in recordings.items])
    found: dict[int, Tensor] = {}
    for length in np.unique(lengths):
        for alike in np.array_split(np.flatnonzero(lengths == length), 1 + (lengths == length).sum() // _AT_ONCE):
            sounds = torch.cat([_sound(recordings, recordings.items[index]) for index in alike])
            found |= dict(zip(alike.tolist(), compute(sounds), strict=True))
    return [found[index] for index in range(len(lengths))]


def _sound(recordings: Recordings, item: Recording) -> Tensor:
    samples = torch.from_numpy(recordings.samples(item))
    return functional.pad(samples, (0, -len(samples) % FRAME_SAMPLES))[None, None]


def _crops(recordings: Recordings, chance: np.random.Generator, count: int) -> Tensor:
    samples, length = recordings.all, _CROP_FRAMES * FRAME_SAMPLES
    starts = chance.integers(0, len(samples) - length, count)
    crops = np.stack([samples[start : start + length] for start in starts]).astype(np.float32) / 32768
    gains = 10 ** chance.uniform(-0.2, 0.1, (count, 1)).astype(np.float32)
    return torch.from_numpy(crops * gains)[:, None]


def _continuous_loss(model: Continuous, recordings: Recordings, step: int) -> tuple[Tensor, Scores]:
    sound = _crops(recordings, np.random.default_rng((1, step)), _BATCH)
    with reduced_precision("cpu"):
        made, latents = model(sound)
        picture = model.picture_loss(latents, sound)
    spectral = spectral_loss(made[:, 0].float(), sound[:, 0])
    return spectral + picture, {"spectral": spectral.item(), "picture": picture.item()}


def _score(model: Continuous, recordings: Recordings) -> Scores:
    scored = recordings.items[:: len(recordings.items) // _SCORED]
    sounds = [_sound(recordings, item) for item in scored]
    return {"mel": float(np.mean([mel_distance(model(sound)[0][0], sound[0]) for sound in sounds]))}


def _all_latents(model: Continuous, recordings: Recordings) -> Tensor:
    with torch.no_grad():
        return torch.cat([latents.T for latents in _each(recordings, model.latents)])


def _decoder_loss(model: Decoder, codes: list[Tensor], recordings: Recordings, step: int) -> tuple[Tensor, Scores]:
    # Whole recordings from their start, as they are decoded, cut to the shortest of the batch.
    chance = np.random.default_rng((2, step))
    chosen = chance.integers(0, len(codes), _BATCH)
    first = [int(chance.integers(0, max(1, codes[index].shape[1] - _CROP_FRAMES))) for index in chosen]
    frames = min(codes[index].shape[1] - at for index, at in zip(chosen, first, strict=True))
    frames = min(frames, _CROP_FRAMES)
    some = torch.stack([codes[index][:, at : at + frames] for index, at in zip(chosen, first, strict=True)])
    wanted = torch.cat(
        [
            _sound(recordings, recordings.items[index])[0, :, at * FRAME_SAMPLES : (at + frames) * FRAME_SAMPLES]
            for index, at in zip(chosen, first, strict=True)
        ]
    )
    with reduced_precision("cpu"):
        made = model(some)[:, 0]
    spectral = spectral_loss(made.float(), wanted)
    return spectral, {"spectral": spectral.item()}


def _score_decoder(model: Decoder, codes: list[Tensor], recordings: Recordings) -> Scores:
    stride = len(codes) // _SCORED
    found = [
        mel_distance(model(codes[index][None])[0], _sound(recordings, recordings.items[index])[0])
        for index in range(0, len(codes), stride)
    ]
    return {"mel": float(np.mean(found))}
