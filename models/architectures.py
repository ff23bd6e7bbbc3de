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


class TextNetConfig(PreTrainedConfig):
    """Shape of a TextNet. Kernel widths are in tokens; unk_token_id is what token dropout puts in."""

    model_type = "gatekeeper_text_net"

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


class FoldedTextNet:
    """A TextNet for inference: every embedding through every convolution once, so that a forward pass only adds.

    Costs sum(kernel_sizes) * channels floats of memory for each vocabulary entry. Equal to the TextNet but for the
    order of summation (1e-6); holds the weights as they were when it was made. Not a Module: at one text a call,
    looking up its parts would cost as much as adding them.
    """

    @torch.no_grad()
    def __init__(self, net: TextNet) -> None:
        self._pad = net.config.pad_token_id or 0
        vocabulary, size = net.embedding.weight.shape
        convolutions = [module for module in net.convolutions if isinstance(module, nn.Linear)]
        self._layers: list[tuple[int, Tensor, Tensor]] = []
        for width, convolution in zip(net.config.kernel_sizes, convolutions, strict=True):
            # Rows [place * V, (place + 1) * V): what each token adds when it stands at that place of the window.
            weights = convolution.weight.view(-1, width, size).unbind(dim=1)
            table = torch.cat([net.embedding.weight @ weight.T for weight in weights])
            # A window around padding can never be the maximum; padding beside a token still adds nothing.
            table[(width - 1) // 2 * vocabulary + self._pad] = -torch.inf
            self._layers.append((width, table, torch.arange(0, width * vocabulary, vocabulary)))
        self._convolution_bias = torch.cat([convolution.bias for convolution in convolutions]).clone()
        self._weight, self._bias = net.classifier.weight.detach().clone(), net.classifier.bias.detach().clone()

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids (N, T) -> logits (N, num_labels)."""
        count, length = input_ids.shape
        pooled = []
        for width, table, places in self._layers:
            windows = input_ids.unsqueeze(-1)
            if width > 1:
                padded = F.pad(input_ids, ((width - 1) // 2, width // 2), value=self._pad)
                windows = padded.unfold(1, width, 1) + places
            sums = F.embedding_bag(windows.view(-1, width), table, mode="sum")
            pooled.append(sums.view(count, length, -1).amax(dim=1))
        # Bias and ReLU after the maximum, with which they change places: one row a sentence, not one a token.
        features = F.relu(torch.cat(pooled, dim=-1) + self._convolution_bias)
        return F.linear(features, self._weight, self._bias)


def _windows(embedded: Tensor, width: int) -> Tensor:
    """(N, T, E) -> (N, T, width * E): each position with its neighbours, zeros beyond the ends."""
    if width == 1:
        return embedded
    length = embedded.shape[1]
    padded = F.pad(embedded, (0, 0, (width - 1) // 2, width // 2))
    return torch.cat([padded[:, offset : offset + length] for offset in range(width)], dim=-1)


AutoConfig.register(TextNetConfig.model_type, TextNetConfig, exist_ok=True)
AutoModelForSequenceClassification.register(TextNetConfig, TextNet, exist_ok=True)
