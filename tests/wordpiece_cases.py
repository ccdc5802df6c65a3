"""A tokenizer like BERT's over a few words."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def wordpiece(
    words: str, longest: int, pad_token: str | None = SPECIAL[0]
) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer of special tokens and these words for `longest` positions."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words.split()))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token=pad_token,
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=longest,
    )
