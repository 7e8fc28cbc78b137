"""Byte-level BPE: any Unicode text becomes ids and comes back exactly.

Ids 0 and 1 are the special tokens `<|endoftext|>` and `<|pad|>`; their spelling inside a text is ordinary text. The
other tokens are byte strings, among them all 256 single bytes.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.files import write_file

__all__ = ["CMRNTokenizer", "StreamDecoder", "TokenizedText"]

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
FILE_NAME = "tokenizer.json"
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

# A line break takes the punctuation before it and the indentation after it, less the one space that belongs to the
# word: 8 % fewer tokens of code than GPT-2's pattern. Digits go in pairs, so that numbers cost few entries.
SPLIT_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)\b"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"| ?\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+(?:[\r\n]\s*(?= \S)|[\r\n]\s*)?"
    r"|[\r\n]\s*(?= \S)|[\r\n]\s*"
    r"|\s+(?!\S)|\s+"
)


def _byte_of_character() -> dict[str, int]:
    """The printable alphabet byte-level BPE spells bytes with (GPT-2's), as character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + position): byte for position, byte in enumerate(others)}


@dataclass(frozen=True)
class TokenizedText(Mapping[str, Any]):
    """Ids and their mask, by attribute and by key.

    input_ids and attention_mask: lists for one text, lists of lists for several, or int64 tensors (B,T); the mask is 1
    on tokens and 0 on padding.
    """

    input_ids: Any
    attention_mask: Any

    def __getitem__(self, key: str) -> Any:
        if key not in ("input_ids", "attention_mask"):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(("input_ids", "attention_mask"))

    def __len__(self) -> int:
        return 2


class StreamDecoder:
    """Text of ids that arrive one by one; an incomplete UTF-8 sequence is held back until it is whole."""

    def __init__(self, tokenizer: CMRNTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished, and for special tokens."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is still held back, as replacement characters."""
        return self._decoder.decode(b"", final=True)


class CMRNTokenizer:
    """Turns text into token ids and back, without loss.

    >>> tokenizer = CMRNTokenizer.train(["to be or not to be"] * 4, vocab_size=270)
    >>> tokenizer.decode(tokenizer.encode("to be, 🙂"))
    'to be, 🙂'
    """

    eos_token_id: int = 0
    pad_token_id: int = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer that `train` or `from_json` made."""
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> CMRNTokenizer:
        """Learn at most `vocab_size` tokens from `texts`; the same texts give the same tokenizer.

        Raises:
            UsageError: vocab_size has no room for the 256 bytes and the special tokens.
            DataError: the texts are empty, or one holds a lone surrogate.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UsageError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens need "
                f"{SMALLEST_VOCABULARY}"
            )
        checked = [_checked(text) for text in texts]
        if not any(checked):
            raise DataError("no text to train a tokenizer on")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(checked, trainer)
        return cls(tokenizer)

    def __call__(
        self, text: str | Sequence[str], return_tensors: Literal["pt"] | None = None, padding: bool = False
    ) -> TokenizedText:
        """Ids and mask of one text or several; tensors are always padded, on the right.

        Raises:
            DataError: a text holds a lone surrogate.
            UsageError: return_tensors is neither None nor "pt".
        """
        rows = self.encode_batch([text] if isinstance(text, str) else text)
        if return_tensors not in (None, "pt"):
            raise UsageError(f'return_tensors is {return_tensors!r}; it may be "pt" or None')
        width = max((len(row) for row in rows), default=0) if padding or return_tensors else 0
        masks = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        rows = [row + [self.pad_token_id] * (width - len(row)) for row in rows]
        if return_tensors == "pt":
            import torch

            shape = (len(rows), width)
            return TokenizedText(
                torch.tensor(rows, dtype=torch.int64).view(shape), torch.tensor(masks, dtype=torch.int64).view(shape)
            )
        return TokenizedText(rows[0], masks[0]) if isinstance(text, str) else TokenizedText(rows, masks)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; nothing is added. Raises DataError on a lone surrogate."""
        ids: list[int] = self._tokenizer.encode(_checked(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, computed on all cores. Raises DataError on a lone surrogate."""
        encodings = self._tokenizer.encode_batch_fast([_checked(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`, a list or a tensor of one row; bytes that are not UTF-8 become replacement characters."""
        specials = () if skip_special_tokens else SPECIAL_TOKENS
        pieces = (
            specials[token_id].encode() if 0 <= token_id < len(specials) else self.token_bytes(token_id)
            for token_id in map(int, ids)
        )
        return b"".join(pieces).decode("utf-8", errors="replace")

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each token of `text`, in characters; tokens that share a character all get its span."""
        lengths = self.byte_lengths[self.encode(text)]
        ends = np.cumsum(lengths)
        bytes_of_text = np.frombuffer(text.encode(), dtype=np.uint8)
        character_of_byte = np.cumsum((bytes_of_text & 0xC0) != 0x80) - 1
        starts, stops = character_of_byte[ends - lengths], character_of_byte[ends - 1] + 1
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def chunk_text(self, text: str, chunk_size: int) -> list[str]:
        """Pieces of `text` of at most `chunk_size` tokens each, whose concatenation is `text`.

        Raises:
            UsageError: chunk_size is less than one, or less than the tokens of a single character (at most four).
            DataError: the text holds a lone surrogate.
        """
        if chunk_size < 1:
            raise UsageError(f"chunk_size is {chunk_size}; it must be at least 1")
        cuts = [end for _, end in self.offsets(text)]
        pieces: list[str] = []
        start = token = 0
        while start < len(text):
            while token < len(cuts) and cuts[token] <= start:
                token += 1
            end = self._piece_end(text, start, cuts[token : token + chunk_size], chunk_size)
            pieces.append(text[start:end])
            start = end
        return pieces

    def _piece_end(self, text: str, start: int, cuts: Sequence[int], chunk_size: int) -> int:
        """The last of `cuts` at which text[start:cut], encoded on its own, has at most `chunk_size` tokens."""
        for end in (*sorted(set(cuts), reverse=True), start + 1):
            if len(self.encode(text[start:end])) <= chunk_size:
                return end
        raise UsageError(
            f"the character {text[start]!r} takes more than {chunk_size} tokens", hint="use a chunk_size of at least 4"
        )

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def _bytes_of_token(self) -> tuple[bytes, ...]:
        byte_of = _byte_of_character()
        spelled = {token_id: token for token, token_id in self._tokenizer.get_vocab().items()}
        ordered = (spelled[token_id] for token_id in range(len(SPECIAL_TOKENS), len(spelled)))
        return (b"",) * len(SPECIAL_TOKENS) + tuple(bytes(byte_of[letter] for letter in token) for token in ordered)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each token, (V,); 0 for special tokens."""
        lengths = np.array([len(token) for token in self._bytes_of_token], dtype=np.int64)
        lengths.setflags(write=False)
        return lengths

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; empty for special tokens. Raises UsageError where there is no such token."""
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"token id {token_id} is outside the vocabulary of {self.vocab_size} tokens")
        return self._bytes_of_token[token_id]

    def to_json(self) -> str:
        """The whole tokenizer, in the `tokenizers` library's own format."""
        return str(self._tokenizer.to_str())

    @classmethod
    def from_json(cls, text: str, where: str | None = None) -> CMRNTokenizer:
        """The tokenizer that `to_json` wrote. Raises CheckpointError where it is corrupt or of another kind."""
        try:
            problem = _incompatibility(json.loads(text))
            tokenizer = None if problem else Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception, and malformed JSON raises many kinds
            raise CheckpointError(f"not a tokenizer: {error}", where=where) from error
        if tokenizer is None:
            raise CheckpointError(f"not a CMRN tokenizer: {problem}", where=where)
        return cls(tokenizer)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` into `folder`, which is made where it is missing."""
        target = Path(folder) / FILE_NAME
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, self.to_json().encode())

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> CMRNTokenizer:
        """The tokenizer in a folder, in a tokenizer.json, or on the Hugging Face hub (`owner/name`).

        Raises:
            CheckpointError: there is none, or the file is corrupt or of another kind.
        """
        path = Path(name)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            file = _download(str(name))
        try:
            return cls.from_json(file.read_text(encoding="utf-8"), where=str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot be read: {error}", where=str(file)) from error

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of `to_json()`, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CMRNTokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _checked(text: str) -> str:
    """`text` itself, if UTF-8 can express it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}",
            hint="read the text as UTF-8, with errors replaced if it must be",
        ) from error
    return text


def _incompatibility(fields: Any) -> str | None:
    """What keeps a tokenizer.json from being one of ours, or None."""
    model = fields["model"]
    vocabulary = model["vocab"]
    if model["type"] != "BPE" or model.get("dropout") or fields.get("normalizer") is not None:
        return "it is not a byte-level BPE without normalizer and dropout"
    if {token["content"]: token["id"] for token in fields["added_tokens"]} != {END_OF_TEXT: 0, PADDING: 1}:
        return f"its special tokens are not {END_OF_TEXT} (0) and {PADDING} (1)"
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        return "its ids are not 0, 1, 2, …"
    letters = _byte_of_character()
    if not letters.keys() <= vocabulary.keys():
        return "its vocabulary lacks single bytes"
    if any(not letters.keys() >= set(token) for token, token_id in vocabulary.items() if token_id > 1):
        return "its vocabulary is not spelled in bytes"
    return None


def _download(name: str) -> Path:
    """The tokenizer file of a hub repository, fetched into the hub's cache."""
    owner, slash, repository = name.partition("/")
    if not slash or not owner or not repository or "/" in repository or name.startswith((".", "~")):
        raise CheckpointError(
            "no such tokenizer file or folder", where=name, hint=f"give a folder that holds {FILE_NAME}, or owner/name"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, FILE_NAME))
    except Exception as error:  # the hub raises network, HTTP and validation errors of several libraries
        raise CheckpointError(f"neither a local tokenizer nor one on the hub: {error}", where=name) from error
