"""Small nets of our own as transformers models; importing this module registers them with the Auto classes.

TextNet: token embeddings -> parallel convolutions -> max over time -> linear (Kim 2014, arXiv 1408.5882). It costs
a few microseconds a sentence, because a sentence is short and each convolution is one matrix product.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from models.folded import MODEL_TYPE


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
        features = [
            (F.relu(convolution(_windows(embedded, width))) * mask.unsqueeze(-1)).amax(dim=1)
            for width, convolution in zip(self.config.kernel_sizes, self.convolutions, strict=True)
        ]
        pooled = F.dropout(torch.cat(features, dim=-1), self.config.dropout, self.training)
        logits = self.classifier(pooled)
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def _windows(embedded: Tensor, width: int) -> Tensor:
    """(N, T, E) -> (N, T, width * E): each position with its neighbours, zeros beyond the ends."""
    if width == 1:
        return embedded
    length = embedded.shape[1]
    padded = F.pad(embedded, (0, 0, (width - 1) // 2, width // 2))
    return torch.cat([padded[:, offset : offset + length] for offset in range(width)], dim=-1)


AutoConfig.register(TextNetConfig.model_type, TextNetConfig, exist_ok=True)
AutoModelForSequenceClassification.register(TextNetConfig, TextNet, exist_ok=True)
