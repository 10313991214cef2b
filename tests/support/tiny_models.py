"""Tiny transformers with tokenizers, made offline from nothing, as ordinary checkpoint folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()

UNKNOWN, PAD = "[UNK]", "[PAD]"
WORDS = [
    *("red", "green", "blue", "black", "white", "pink"),
    *("one", "two", "three", "four", "five", "six"),
    *("the", "a", "is", "and", "very", "thing"),
]


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate([UNKNOWN, PAD, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD)
    fast.save_pretrained(folder)


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32, *, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    return BertModel(config).eval()


def tuned(model: torch.nn.Module, seed: int, scale: float = 0.02) -> torch.nn.Module:
    """The same model with every parameter moved a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def save_model(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
