"""The bytes of a token. A token of GPT-2 may be part of a character, and then it is not text on its own.

A byte-level tokenizer writes each byte as one printable character: bytes that are printable in Latin-1 stand for
themselves, and the others, in order, for the characters from 256 on (Radford et al., GPT-2, 2019).
"""

from __future__ import annotations

from minipage.model.tokenizer import Tokenizer

THEMSELVES = {*range(33, 127), *range(161, 173), *range(174, 256)}
OTHERS = [byte for byte in range(256) if byte not in THEMSELVES]
BYTE_OF = {chr(byte): byte for byte in THEMSELVES} | {chr(256 + i): byte for i, byte in enumerate(OTHERS)}


def token_bytes(tokenizer: Tokenizer | None, token_id: int) -> bytes:
    """What a token adds to a text; without a tokenizer, its number."""
    if tokenizer is None:
        return b" %d" % token_id
    text = tokenizer.token_text(token_id)
    raw = tokenizer.token(token_id)
    if tokenizer.is_byte(token_id):  # <0xE2>, as Llama's tokenizers write one
        return bytes.fromhex(raw[3:5])
    if "\N{REPLACEMENT CHARACTER}" in text and all(char in BYTE_OF for char in raw):
        return bytes(BYTE_OF[char] for char in raw)
    return text.encode()
