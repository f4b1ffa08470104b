"""The chat format of a checkpoint: how its template opens and closes turns, and which tokens end an answer.

Sampling, training rows, evaluation and imports all read it here. An answer ends at what the chat template writes after
it (`<|im_end|>`, `<end_of_turn>`, …), at every id under `eos_token_id` of the generation config, and at the EOS of the
tokenizer: published checkpoints often name only one of them in each file.

Rows for training equal the template's own rendering of the whole conversation, token for token. Text of a turn never
becomes a special token, whatever it contains.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from alignment.errors import CheckpointError, UnfitRowError
from alignment.models.safe_loading import NEVER_CODE, read_plainly
from alignment.models.tokenizer import check_unicode, load_tokenizer, plain_tokens
from alignment.records import Document, Message

# texts of the conversations that are probed
QUESTION, ANSWER, THOUGHT, INSTRUCTION = "Which one?", "Answer7x1", "Thought7x2", "Instruction7x3"
THOUGHT_MARKS, WHOLE_THOUGHT = ("<think>", "</think>"), re.compile(r"\s*<think>\s*</think>\s*")
OFFSETS = ("input_ids", "offset_mapping")
REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
PRIVATE_USE = range(0xE000, 0xF900)  # characters of Unicode without a meaning


@dataclass(frozen=True)
class Turn:
    """Token ids of a conversation's last answer after its prompt.

    `response` includes the token that ends it, unless the answer was cut off. `rest` is what the template writes after
    that token, such as a line break; no model has to predict it.
    """

    prompt: list[int]
    response: list[int]
    rest: list[int]

    @property
    def ids(self) -> list[int]:
        """The prompt and the answer: what a model reads when the answer has just ended."""
        return self.prompt + self.response


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer, its chat template, and the ids that end an answer.

    closing:     the text that the template writes after an answer, as in "<|im_end|>\\n"
    end_of_turn: the token in it that ends the turn: the first one added to the vocabulary; None if there is none
    dropped:     the end of the generation prompt that a whole conversation lacks, as in "<think>\\n"; prompts leave it
                 out, for an answer would land inside a thought
    header:      the start of an answer that a whole conversation has and the generation prompt lacks, as in
                 "<|im_start|>assistant\\n", or the end of an empty thought; prompts add it
    frame:       what the template writes around a question and an answer
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    closing: str
    end_of_turn: int | None
    dropped: str
    header: str
    frame: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None) -> "ChatFormat":
        """The format of a tokenizer and of its model's generation config.

        Raises CheckpointError for a template that cannot render a question with its answer.
        """
        turns = _turns((Message(role="user", content=QUESTION), Message(role="assistant", content=ANSWER)))
        try:
            whole, prompt = _render(tokenizer, turns), _render(tokenizer, turns[:1], add_generation_prompt=True)
        except UnfitRowError as error:
            raise CheckpointError(f"the tokenizer cannot render a question and an answer: {error}") from error
        before, answer, closing = whole.rpartition(ANSWER)
        if not answer:
            raise CheckpointError(
                "the chat template leaves answers out or rewrites them: set another `chat_template` in the tokenizer"
            )
        added = {int(i): token.content for i, token in tokenizer.added_tokens_decoder.items()}
        end_of_turn = next((i for i in _tokens(tokenizer, closing) if added.get(i, "").strip()), None)
        configured = (*configured_eos_ids(generation_config), tokenizer.eos_token_id)
        dropped, header = _prompt_repair(tokenizer, prompt, before, whole)
        return cls(
            tokenizer=tokenizer,
            end_ids=frozenset(int(i) for i in (*configured, end_of_turn) if i is not None),
            closing=closing,
            end_of_turn=end_of_turn,
            dropped=dropped,
            header=header,
            frame=before + closing,
        )

    @cached_property
    def pad_token_id(self) -> int:
        """The id of PAD."""
        return int(self.tokenizer.pad_token_id)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The ids of the tokens that are special or mark turns. Those around thoughts do not count as such."""
        added = self.tokenizer.added_tokens_decoder.items()
        ids = {
            token.content: int(i)
            for i, token in added
            if token.special or (token.content.strip() and token.content in self.frame)
        }
        return {token: i for token, i in ids.items() if token not in THOUGHT_MARKS}

    @cached_property
    def _special_without_thoughts(self) -> frozenset[int] | None:
        """The special tokens that decoding leaves out, if those around thoughts are special too; else None."""
        special = {token.content: int(i) for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        if not special.keys() & {*THOUGHT_MARKS}:
            return None
        return frozenset(i for token, i in special.items() if token not in THOUGHT_MARKS)

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Matches these tokens in a text, the longest first."""
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _ends_after_answer(self) -> int:
        """How often the template writes the end of a turn after an answer; only the first is for the model."""
        return sum(token == self.end_of_turn for token in _tokens(self.tokenizer, self.closing))

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """The token ids of a conversation, ready for the assistant's answer. Raises UnfitRowError."""
        text = _Guarded(self, messages)
        return text.encode(self._prompt_text(text.turns))

    def turn(self, messages: Iterable[Message], answer: str, *, ended: bool = True) -> Turn:
        """The token ids of a conversation and its answer; an answer that was cut off (not `ended`) has no end.

        Raises UnfitRowError for a conversation that the template refuses, or renders in another way with the answer.
        """
        text = _Guarded(self, (*messages, Message(role="assistant", content=answer)))
        prompt_text, whole_text = self._prompt_text(text.turns[:-1]), _render(self.tokenizer, text.turns)
        if not whole_text.startswith(prompt_text) or not whole_text.endswith(self.closing):
            raise UnfitRowError("the chat template renders this conversation in another way once there is an answer")
        if not ended:
            whole_text = whole_text.removesuffix(self.closing)
        prompt, whole = text.encode(prompt_text), text.encode(whole_text)
        if whole[: len(prompt)] != prompt:  # a token reaches from the prompt into the answer
            whole = prompt + text.encode(whole_text[len(prompt_text) :])
        if not ended:
            return Turn(prompt, whole[len(prompt) :], [])
        if self.end_of_turn is None:
            return Turn(prompt, [*whole[len(prompt) :], int(self.tokenizer.eos_token_id)], [])
        ends = [index for index, token in enumerate(whole) if token == self.end_of_turn]
        end = ends[-self._ends_after_answer] + 1
        return Turn(prompt, whole[len(prompt) : end], whole[end:])

    def document(self, document: Document) -> list[int]:
        """The token ids of a document for pretraining: text between BOS (if any) and EOS, or turns."""
        tokenizer = self.tokenizer
        if document.messages:
            text = _Guarded(self, document.messages)
            return text.encode(_render(tokenizer, text.turns))
        bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        return [*bos, *plain_tokens(tokenizer, document.text), int(tokenizer.eos_token_id)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the token that ended it and other special ones. Thoughts keep their marks."""
        text = list(tokens[:-1] if len(tokens) and tokens[-1] in self.end_ids else tokens)
        left_out = self._special_without_thoughts
        if left_out is not None:
            text = [token for token in text if int(token) not in left_out]
        return str(self.tokenizer.decode(text, skip_special_tokens=left_out is None)).strip()

    def notes(self) -> list[str]:
        """What of the template cannot be honoured, or may surprise, and what is done about it."""
        notes = []
        if self.end_of_turn is None:
            notes.append(
                f"the chat template writes no special token after an answer; {self.tokenizer.eos_token} is added there"
            )
        if self.dropped.strip():
            notes.append(
                f"the generation prompt ends with {self.dropped!r}, which the template leaves out of a finished "
                "answer; prompts leave it out too, or answers would land inside it"
            )
        if self.header.strip():
            notes.append(
                f"the generation prompt lacks {self.header!r}, which the template writes before an answer; "
                "prompts add it"
            )
        if self._leaves_out_thoughts():
            notes.append("the chat template leaves out what an answer has before </think>, and so do training rows")
        return [*notes, *self._notes_on_system_turns()]

    def _notes_on_system_turns(self) -> list[str]:
        messages = Message(role="system", content=INSTRUCTION), Message(role="user", content=QUESTION)
        try:
            self.turn(messages, ANSWER)
        except UnfitRowError as error:
            return [f"conversations with a system turn are put aside: {error}"]
        if INSTRUCTION not in self._prompt_text(_turns(messages)):
            return ["the chat template leaves out system turns, and so do training rows"]
        return []

    def _prompt_text(self, turns: list[dict[str, str]]) -> str:
        return _render(self.tokenizer, turns, add_generation_prompt=True).removesuffix(self.dropped) + self.header

    def _leaves_out_thoughts(self) -> bool:
        answer = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
        turns = _turns((Message(role="user", content=QUESTION), Message(role="assistant", content=answer)))
        return THOUGHT not in _render(self.tokenizer, turns)


def load_chat(directory: str | Path) -> ChatFormat:
    """The chat format of a checkpoint in a directory or on the hub."""
    with read_plainly("no generation config", directory):
        try:
            generation_config = GenerationConfig.from_pretrained(directory)
        except OSError:
            if (Path(directory) / "generation_config.json").exists():
                raise
            # there is none: what `config.json` says is what generation would use
            model_config = AutoConfig.from_pretrained(directory, **NEVER_CODE)
            generation_config = GenerationConfig.from_model_config(model_config)
    return ChatFormat.of(load_tokenizer(directory), generation_config)


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> frozenset[int]:
    """All ids that end an answer of a model, for a tokenizer with or without a chat template (one for answers)."""
    eos = tokenizer.eos_token_id
    ids = frozenset([*configured_eos_ids(generation_config), *([] if eos is None else [int(eos)])])
    if tokenizer.chat_template:
        with suppress(CheckpointError):
            ids |= ChatFormat.of(tokenizer, generation_config).end_ids
    return ids


def configured_eos_ids(generation_config: GenerationConfig | None) -> list[int]:
    """The ids under `eos_token_id`, which is a number, a list or null, in rising order. Raises CheckpointError."""
    ids: object = getattr(generation_config, "eos_token_id", None)
    several = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if any(type(i) is not int or i < 0 for i in several):
        raise CheckpointError(f"eos_token_id of the generation config is {ids!r}, not a token id or a list of them")
    return sorted(set(several))


class _Guarded:
    """Turns whose text cannot become a special token, and the encoding of what a template makes of them.

    A character without a meaning is put inside every special token that a text contains. The template reads the text
    almost as it is (it may look for "</think>", or strip blanks); the encoding takes the character out again.
    """

    def __init__(self, chat: ChatFormat, messages: Iterable[Message]) -> None:
        messages = tuple(messages)
        self._chat, self._mark = chat, ""
        texts = "".join(message.content for message in messages)
        if chat.special.search(texts):
            self._mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in texts)
            messages = tuple(
                m.model_copy(update={"content": chat.special.sub(self._marked, m.content)}) for m in messages
            )
        self.turns = _turns(messages)

    def _marked(self, token: re.Match[str]) -> str:
        return token[0][0] + self._mark + token[0][1:]

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Raises UnfitRowError for a lone surrogate.

        The text is tokenized with the characters in it, so that the other turns have the same tokens as ever, and the
        tokens of the characters are taken out; where one is part of a larger token, the text is cut there instead.
        """
        tokenizer = self._chat.tokenizer
        if not self._mark:
            return _tokens(tokenizer, text)
        check_unicode(text)
        if tokenizer.is_fast:
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            pieces = [(int(i), text[start:end]) for i, (start, end) in zip(*map(encoded.get, OFFSETS), strict=True)]
            if all(piece == self._mark or self._mark not in piece for _, piece in pieces):
                return [i for i, piece in pieces if piece != self._mark]
        return [i for part in text.split(self._mark) for i in _tokens(tokenizer, part)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    check_unicode(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _prompt_repair(tokenizer: PreTrainedTokenizerBase, prompt: str, before: str, whole: str) -> tuple[str, str]:
    """What to drop from a generation prompt and what to add to it, so that it is what a finished conversation has.

    Blanks and a thought before the answer belong to the answer, unless the generation prompt opens the thought.

    `prompt` ends with the generation prompt, `whole` has an answer after `before`.
    """
    shared = len(commonprefix([prompt, before]))  # noqa: RUF071 - of characters is right: these are not paths
    dropped, header = prompt[shared:], before[shared:]
    in_thought = prompt.count("<think>") > prompt.count("</think>")
    if not dropped.strip() and (not header.strip() or (WHOLE_THOUGHT.fullmatch(header) and not in_thought)):
        header = ""
        start = prompt.removesuffix(dropped)
    else:
        start = before
    ids = _tokens(tokenizer, whole)
    for kept in (start.rstrip(" "), start):  # a blank at the end of a prompt is part of an answer's first token
        first = _tokens(tokenizer, kept)
        if ids[: len(first)] == first:
            start = kept
            break
    shared = len(commonprefix([prompt, start]))  # noqa: RUF071
    return prompt[shared:], start[shared:]


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, add_generation_prompt: bool = False
) -> str:
    """The text of turns under the chat template. Raises UnfitRowError with the template's own words if it refuses."""
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, tokenize=False))
    except (MemoryError, *REFUSALS) as error:
        reason = str(error) or type(error).__name__
        raise UnfitRowError(f"the chat template does not take this conversation: {reason}") from error
