"""What sets the families of video-language models apart: classes, prompts, pixels, and how a video is laid out in text.

One description per ``model_type`` of config.json. Whoever finetunes a model of one of these classes keeps its type, so its
weights load the same (TimeChat-Online, StreamingVLM: Qwen2.5-VL; LiveCC: Qwen2-VL).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from models.pixels import CLIP_PIXELS, HALF_PIXELS, Color
from models.prompts import QWEN_CHAT, PromptTemplate
from models.rekv.config import Axes

__all__ = ["FAMILIES", "Family", "VideoForm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoForm:
    """How blocks of a video stand in the text of a family that takes frames of any size."""

    axes: Axes
    before: str = ""
    """Words before each block; ``{seconds}`` is its time from the stream's first frame."""
    behind: str = ""
    """Words behind each block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family."""

    class_name: str
    """Of transformers."""
    prompts: PromptTemplate
    """What is said around the video and the question. The prefix is encoded once before the video."""
    mean_std: tuple[Color, Color]
    crop: bool = False
    """Frames keep their aspect ratio and the center is cut out."""
    video: VideoForm | None = None
    """None: all frames are brought to the one size of the tower."""


_CHAT_START = "<|im_start|>system \nYou are a helpful assistant.<|im_end|><|im_start|>user "
_CHAT_END = "<|im_end|><|im_start|>assistant\n"
_CHAT = PromptTemplate(prefix=_CHAT_START, suffix=_CHAT_END)  # as ReKV's code has it for LLaVA-OneVision

_QWEN2 = dataclasses.replace(QWEN_CHAT, prefix=QWEN_CHAT.prefix + "<|vision_start|>", after_video="<|vision_end|>")
_QWEN3 = dataclasses.replace(QWEN_CHAT, prefix="<|im_start|>user\n", after_video="")

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ONE_VIDEO = VideoForm(axes="timeline")
_TIMES = VideoForm(axes="segments", before="<{seconds:.1f} seconds><|vision_start|>", behind="<|vision_end|>")

FAMILIES = {
    "llava_onevision": Family(class_name="LlavaOnevisionForConditionalGeneration", prompts=_CHAT, mean_std=HALF_PIXELS),
    "video_llava": Family(
        class_name="VideoLlavaForConditionalGeneration",
        prompts=PromptTemplate(prefix="USER: ", suffix=" ASSISTANT:", letter_lead=" Best option: ("),
        mean_std=CLIP_PIXELS,
        crop=True,
    ),
    "internvl": Family(class_name="InternVLForConditionalGeneration", prompts=_CHAT, mean_std=_IMAGENET),
    "qwen2_vl": Family(class_name="Qwen2VLForConditionalGeneration", prompts=_QWEN2, mean_std=CLIP_PIXELS, video=_ONE_VIDEO),
    "qwen2_5_vl": Family(
        class_name="Qwen2_5_VLForConditionalGeneration", prompts=_QWEN2, mean_std=CLIP_PIXELS, video=_ONE_VIDEO
    ),
    "qwen3_vl": Family(class_name="Qwen3VLForConditionalGeneration", prompts=_QWEN3, mean_std=HALF_PIXELS, video=_TIMES),
}
"""``model_type`` of config.json → family. Prompts are the published ones of ReKV for LLaVA-OneVision and Video-LLaVA, those of
the chat templates for Qwen-VL, the chat form of the same decoder for InternVL."""
