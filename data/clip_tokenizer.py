"""A small byte-level BPE of our own, in the form transformers' CLIPTokenizer reads.

Words of the training captions become tokens of their own where the vocabulary has room; every other word falls apart
into pieces and at last into its bytes, so any prompt in any script encodes. Layout of the ids as in OpenAI's CLIP: 256
bytes, the same 256 ending a word, the merges in the order learned, then BOS and EOS, which makes EOS the highest id
(the older convention of transformers finds it by that) as well as the one named in the configuration.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from star.data.errors import InputError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
SMALLEST_VOCABULARY = 2 * 256 + 2


def learn_tokenizer(captions: Iterable[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """Learns at most `vocabulary` tokens from captions; the same captions, in whatever order, give the same tokenizer.

    max_tokens: BOS and EOS included, written as the tokenizer's `model_max_length`. Padding is with EOS, to the right.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise InputError(
            f"A vocabulary of {vocabulary} tokens cannot hold all bytes; give at least {SMALLEST_VOCABULARY}."
        )
    alphabet = sorted(ByteLevel.alphabet())
    base = alphabet + [byte + END_OF_WORD for byte in alphabet]

    untrained = CLIPTokenizer().backend_tokenizer  # CLIP's own normaliser and word pattern
    learner = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer = untrained.normalizer
    learner.pre_tokenizer = untrained.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocabulary - 2,
        # Naming every byte as a special token fixes the ids of the word-ending ones too; the library would hand those
        # out in the order of a hash table, and ties between merges, which ids decide, would differ from run to run.
        special_tokens=base,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator(sorted(captions), trainer)
    learned = json.loads(learner.to_str())["model"]  # the only view of the merges that the library gives
    tokens = [*sorted(learned["vocab"], key=learned["vocab"].__getitem__), BOS, EOS]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,  # type: ignore[arg-type]  # annotated as list[str]; what it hands on are pairs
        model_max_length=max_tokens,
        padding_side="right",
    )
