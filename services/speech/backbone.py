"""The backbone: from the voice, the reasoner's steps and the frames so far to the next frame's state and first code."""

from torch import Tensor, nn

from services.inference.transformer import Transformer, TransformerConfig


class Backbone(nn.Module):
    """The stack and the head of codebook 0."""

    def __init__(self, config: TransformerConfig, logit_count: int) -> None:
        super().__init__()
        self.stack = Transformer(config)
        self.codebook0_head = nn.Linear(config.hidden_size, logit_count, bias=False)

    def first_logits(self, hidden: Tensor, code_count: int) -> Tensor:
        """Logits of the codes that may be drawn: hidden [S, hidden] → [S, code_count] float32."""
        return self.codebook0_head(hidden)[:, :code_count].float()
