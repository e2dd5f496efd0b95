"""A small transformer that reads captions, trained together with the U-Net.

Every subword of a caption attends to all others (Vaswani et al. 2017, the encoder of figure 1, with the normalisations
before the layers, Xiong et al. 2020); unlike CLIP's text tower it is not causal, as it predicts nothing.
"""

from pydiff.mistakes import at_least_one
from pydiff.models.registry import twin
from pydiff.nn import BasicTransformerBlock, LayerNorm, Module, TokenEmbedding, blank


class TextTransformer(Module):
    """Numbers of subwords (N, tokens) -> their states (N, tokens, width).

    pieces: how many subwords there are. tokens: length of every caption, padded. heads must divide width.
    """

    def __init__(self, *, pieces, tokens, width=64, layers=2, heads=4, seed=0):
        self.config = {"pieces": pieces, "tokens": tokens, "width": width, "layers": layers, "heads": heads}
        for name, count in self.config.items():
            at_least_one(name, count)
        if width % heads:
            raise ValueError(f"{width} channels do not divide into {heads} heads")
        self.token_embedding, self.position_embedding = TokenEmbedding(pieces, width), TokenEmbedding(tokens, width)
        self.blocks = [
            BasicTransformerBlock(width, heads, width // heads, activation="gelu", bias=True) for _ in range(layers)
        ]
        self.final_layer_norm = LayerNorm(width)
        self.initialize(seed)

    def forward(self, ids):
        tokens = ids.shape[1]
        if tokens != self.config["tokens"]:
            raise ValueError(f"this text transformer reads {self.config['tokens']} pieces of a caption, got {tokens}")
        h = self.token_embedding(ids) + self.position_embedding.weight
        for block in self.blocks:
            h = block(h)
        return self.final_layer_norm(h)

    def twin(self) -> "TextTransformer":
        """A second one with the same configuration, without the weights."""
        with blank():
            return TextTransformer(**self.config)


class ReadingUNet(Module):
    """A network together with the one that reads its captions: model(x, t, token_ids=(N, tokens), ...), for training.

    unet: takes encoder_hidden_states. text_encoder: computes them from token_ids, integers on the host; has `twin`.
    """

    def __init__(self, unet, text_encoder):
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, x, t, *, token_ids, **condition):
        return self.unet(x, t, encoder_hidden_states=self.text_encoder(token_ids), **condition)

    def twin(self) -> "ReadingUNet":
        """A second one with the same configuration, without the weights."""
        return ReadingUNet(twin(self.unet), self.text_encoder.twin())
