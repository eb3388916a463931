"""Models of other libraries, built from small configurations.

Their packages serve these cases only: transformers, diffusers, segmentation-models-pytorch, monai, and ultralytics with opencv-python-headless.
Install them with torch held at the version of ``constraints.txt``. Cases whose package is not there are skipped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.cases import Case, Make, images

TOKENS = 16
WORDS = 99
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
LLAMA: dict[str, Any] = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
VIEW: dict[str, Any] = {name: size for name, size in TEXT.items() if name != "vocab_size"} | {"image_size": 64, "patch_size": 16}
VISIBLE = images((3, 64, 64))


def words(*names: str) -> Make:
    """Token numbers under each of these argument names; an attention mask hides the last two."""

    def make(batch: int, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG001 - token numbers are integers
        rng = torch.Generator().manual_seed(batch)
        made = {name: torch.randint(1, WORDS, (batch, TOKENS), generator=rng) for name in names}
        if "attention_mask" in made:
            made["attention_mask"] = (torch.arange(TOKENS) < TOKENS - 2).long().expand(batch, TOKENS).contiguous()
        return made

    return make


def pixels(batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """An image under the name that transformers give it."""
    return {"pixel_values": VISIBLE(batch, dtype)}


def _spectrogram(batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"input_features": images((20, 64))(batch, dtype)}


def _both(batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return words("input_ids")(batch, dtype) | pixels(batch, dtype)


def _noisy(batch: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"sample": images((3, 32, 32))(batch, dtype), "timestep": torch.arange(batch) + 7}


def huggingface(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A model class of transformers with a configuration; no key-value cache, which would be an output of its own."""

    def build() -> nn.Module:
        import transformers

        configuration = getattr(transformers, config)(**options)
        if hasattr(configuration, "use_cache"):
            configuration.use_cache = False
        return getattr(transformers, model)(configuration)

    return build


def _detr() -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    configuration = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        num_queries=10,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
    )
    return transformers.DetrForObjectDetection(configuration)


def _whisper() -> nn.Module:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(
        transformers.WhisperConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, num_mel_bins=20, max_source_positions=32
        )
    )


def _clip() -> nn.Module:
    import transformers

    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=TEXT | {"max_position_embeddings": 32, "eos_token_id": WORDS - 1, "bos_token_id": 0, "pad_token_id": 0},
            vision_config=VIEW,
            projection_dim=48,
        )
    )


def segmentation(architecture: str, encoder: str) -> Callable[[], nn.Module]:
    """A model of segmentation_models_pytorch without weights."""

    def build() -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, architecture)(encoder, encoder_weights=None, classes=5)

    return build


def _diffusion() -> nn.Module:
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def yolo(name: str) -> Callable[[], nn.Module]:
    """A detector of ultralytics, from its yaml."""

    def build() -> nn.Module:
        os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
        os.environ.setdefault("YOLO_OFFLINE", "1")
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(f"{name}.yaml", verbose=False)

    return build


def _volume() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm="BATCH"
    )


def _cases() -> dict[str, Case]:
    hub, smp = ("transformers",), ("segmentation_models_pytorch",)
    swin = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    listed = [
        Case("transformers ViT", huggingface("ViTForImageClassification", "ViTConfig", **VIEW), pixels, packages=hub),
        Case("transformers DeiT", huggingface("DeiTForImageClassification", "DeiTConfig", **VIEW), pixels, packages=hub),
        Case("transformers Swin", huggingface("SwinForImageClassification", "SwinConfig", **swin), pixels, packages=hub),
        Case(
            "transformers ConvNeXt",
            huggingface("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 2, 1]),
            pixels,
            packages=hub,
        ),
        Case(
            "transformers SegFormer",
            huggingface(
                "SegformerForSemanticSegmentation", "SegformerConfig", hidden_sizes=[16, 32, 48, 64], decoder_hidden_size=32
            ),
            pixels,
            packages=hub,
        ),
        Case("transformers DETR", _detr, pixels, packages=hub),
        Case(
            "transformers BERT",
            huggingface("BertModel", "BertConfig", **TEXT),
            words("input_ids", "attention_mask"),
            packages=hub,
        ),
        Case(
            "transformers DistilBERT",
            huggingface("DistilBertModel", "DistilBertConfig", vocab_size=WORDS, dim=64, n_layers=2, n_heads=4, hidden_dim=128),
            words("input_ids"),
            packages=hub,
        ),
        Case(
            "transformers GPT-2",
            huggingface("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=64),
            words("input_ids"),
            packages=hub,
        ),
        Case("transformers Llama", huggingface("LlamaForCausalLM", "LlamaConfig", **LLAMA), words("input_ids"), packages=hub),
        Case("transformers Qwen2", huggingface("Qwen2ForCausalLM", "Qwen2Config", **LLAMA), words("input_ids"), packages=hub),
        Case(
            "transformers Qwen3",
            huggingface("Qwen3ForCausalLM", "Qwen3Config", head_dim=16, **LLAMA),
            words("input_ids"),
            packages=hub,
        ),
        Case(
            "transformers T5",
            huggingface("T5Model", "T5Config", vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
            words("input_ids", "decoder_input_ids"),
            packages=hub,
        ),
        Case("transformers Whisper encoder", _whisper, _spectrogram, packages=hub),
        Case("transformers CLIP", _clip, _both, packages=hub),
        *[
            Case(f"smp {architecture} {encoder}", segmentation(architecture, encoder), images((3, 128, 128)), packages=smp)
            for architecture in ("Unet", "FPN", "DeepLabV3Plus")
            for encoder in ("resnet18", "mobilenet_v2", "efficientnet-b0")
        ],
        Case("diffusers UNet2D", _diffusion, _noisy, packages=("diffusers",)),
        Case("ultralytics YOLOv8n", yolo("yolov8n"), images((3, 128, 128)), packages=("ultralytics", "cv2")),
        Case("ultralytics YOLO11n", yolo("yolo11n"), images((3, 128, 128)), packages=("ultralytics", "cv2")),
        Case("MONAI 3-D UNet", _volume, images((1, 32, 32, 32)), packages=("monai",)),
    ]
    return {case.name: case for case in listed}


CASES = _cases()


def names() -> list[str]:
    """Names of the suite."""
    return list(CASES)


def case(name: str) -> Case:
    """The model and inputs of a name."""
    return CASES[name]
