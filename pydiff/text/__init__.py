"""Words for networks: captions and prompts become arrays of a Condition, and words can be added and subtracted.

encoder = text.named("glove")
encoder.encode(["a red heart", ""])     {"encoder_hidden_states": (2, 24, 50)}; "" is the null prompt
text.named("learned")                    an encoder that is trained with the U-Net, in any language
encoder.remarks("ein rotes Herz")       sentences on what was not understood or was cut off
"""

from pydiff.text.bert import Bert, MiniLM
from pydiff.text.clip import Clip
from pydiff.text.encoder import ENCODERS, PromptWarning, TextEncoder, from_config, kinds, named, register
from pydiff.text.glove import Glove
from pydiff.text.learned import Learned
from pydiff.text.prompt import arithmetic

__all__ = [
    "ENCODERS",
    "Bert",
    "Clip",
    "Glove",
    "Learned",
    "MiniLM",
    "PromptWarning",
    "TextEncoder",
    "arithmetic",
    "from_config",
    "kinds",
    "named",
    "register",
]
