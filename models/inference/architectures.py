"""Small nets of our own as transformers models; importing this module registers them with the Auto classes.

TextNet: token embeddings -> parallel convolutions -> max over time -> linear (Kim 2014, arXiv 1408.5882). It costs
a few microseconds a sentence, because a sentence is short and each convolution is one matrix product.

SmallCNN: the small image classifier of the Gatekeeper paper; wider and deeper by its config, it is a large one too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention, SequenceClassifierOutput

from models.inference.folded import MODEL_TYPE
from models.inference.folded_cnn import MODEL_TYPE as CNN_MODEL_TYPE


class TextNetConfig(PreTrainedConfig):
    """Shape of a TextNet. Kernel widths are in tokens; unk_token_id is what token dropout puts in."""

    model_type = MODEL_TYPE

    vocab_size: int = 6000
    embedding_size: int = 96
    channels: int = 256
    kernel_sizes: tuple[int, ...] | list[int] = (1, 3)
    embedding_dropout: float = 0.2
    token_dropout: float = 0.1
    dropout: float = 0.5
    pad_token_id: int | None = 0
    unk_token_id: int = 1


class TextNet(PreTrainedModel):
    """input_ids (N, T) int64, padded with pad_token_id -> logits (N, num_labels).

    Padding has no influence: its embedding is zero, as is what lies beyond the sentence, and the maximum ignores it.
    """

    config_class = TextNetConfig
    config: TextNetConfig
    base_model_prefix = "text_net"

    def __init__(self, config: TextNetConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.convolutions = nn.ModuleList(
            nn.Linear(width * config.embedding_size, config.channels) for width in config.kernel_sizes
        )
        self.classifier = nn.Linear(len(config.kernel_sizes) * config.channels, len(config.id2label or ()))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """labels (N,) add the plain cross-entropy as `loss`; extra inputs such as attention_mask are not needed."""
        mask = input_ids.ne(self.config.pad_token_id or 0)
        if self.training and self.config.token_dropout > 0:
            hidden = torch.rand(input_ids.shape, device=input_ids.device) < self.config.token_dropout
            input_ids = input_ids.masked_fill(hidden & mask, self.config.unk_token_id)
        embedded = F.dropout(self.embedding(input_ids), self.config.embedding_dropout, self.training)
        # Half of a padded batch is no token: it is left out before the convolutions, which are most of the work.
        tokens, lengths = mask.flatten().nonzero().squeeze(1), mask.sum(dim=1)
        features = [
            F.relu(_maximum(convolution(_windows(embedded, width).flatten(0, 1)[tokens]), lengths))
            for width, convolution in zip(self.config.kernel_sizes, self.convolutions, strict=True)
        ]
        pooled = F.dropout(torch.cat(features, dim=-1), self.config.dropout, self.training)
        logits = self.classifier(pooled)
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def _maximum(rows: Tensor, lengths: Tensor) -> Tensor:
    """(tokens of all sentences, channels), lengths (N,) -> (N, channels): the maximum over each sentence's tokens."""
    return torch.segment_reduce(rows, "max", lengths=lengths, axis=0, unsafe=True)


def _windows(embedded: Tensor, width: int) -> Tensor:
    """(N, T, E) -> (N, T, width * E): each position with its neighbours, zeros beyond the ends."""
    if width == 1:
        return embedded
    length = embedded.shape[1]
    padded = F.pad(embedded, (0, 0, (width - 1) // 2, width // 2))
    return torch.cat([padded[:, offset : offset + length] for offset in range(width)], dim=-1)


class SmallCNNConfig(PreTrainedConfig):
    """Shape of a SmallCNN; the defaults are the paper's (136,970 parameters for 32x32 RGB and 10 classes).

    One block per entry of `channels`: `convolutions` times 3x3 convolution, batch norm, ReLU; then a 2x2 maximum.
    shift (pixels, up or down, left or right) and flip (left-right) are what training does to an image at random.
    """

    model_type = CNN_MODEL_TYPE

    image_size: tuple[int, int] | list[int] = (32, 32)
    num_channels: int = 3
    channels: tuple[int, ...] | list[int] = (16, 32)
    convolutions: int = 1
    hidden_size: int = 64
    dropout: float = 0.0
    shift: int = 0
    flip: bool = False


class SmallCNN(PreTrainedModel):
    """pixel_values (N, num_channels, height, width) -> logits (N, num_labels)."""

    config_class = SmallCNNConfig
    config: SmallCNNConfig
    base_model_prefix = "small_cnn"
    main_input_name = "pixel_values"

    def __init__(self, config: SmallCNNConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        width = config.num_channels
        for channels in config.channels:
            for _ in range(config.convolutions):
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                width = channels
            layers.insert(-1, nn.MaxPool2d(2))  # the two change places: the ReLU has a quarter of the work
        height, length = (side // 2 ** len(config.channels) for side in config.image_size)
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(width * height * length, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)  # type: ignore[arg-type]  # it has one: track_running_stats is on
            nn.init.ones_(module.running_var)  # type: ignore[arg-type]

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """labels (N,) add the plain cross-entropy as `loss`."""
        if self.training:
            pixel_values = _jitter(pixel_values, self.config.shift, flip=self.config.flip)
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)  # a quarter less time for colour
        features = F.relu(self.hidden(self.features(pixel_values).flatten(1)))
        logits = self.classifier(F.dropout(features, self.config.dropout, self.training))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def _jitter(pixels: Tensor, shift: int, *, flip: bool) -> Tensor:
    """Each image moved by up to `shift` pixels, its edge repeated, and every other one mirrored."""
    count, _, height, width = pixels.shape
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, device=pixels.device) < 0.5
        pixels = torch.where(mirrored, pixels.flip(-1), pixels)
    if shift:
        rows, columns = (torch.randint(0, 2 * shift + 1, (count,), device=pixels.device) for _ in range(2))
        rows = rows[:, None] + torch.arange(height, device=pixels.device)
        columns = columns[:, None] + torch.arange(width, device=pixels.device)
        # (N, H, W, C): the advanced indices come first.
        moved = F.pad(pixels, (shift,) * 4, mode="replicate").permute(0, 2, 3, 1)[
            torch.arange(count, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        pixels = moved.permute(0, 3, 1, 2).contiguous()
    return pixels


AutoConfig.register(TextNetConfig.model_type, TextNetConfig, exist_ok=True)
AutoModelForSequenceClassification.register(TextNetConfig, TextNet, exist_ok=True)
AutoConfig.register(SmallCNNConfig.model_type, SmallCNNConfig, exist_ok=True)
AutoModelForImageClassification.register(SmallCNNConfig, SmallCNN, exist_ok=True)
