"""Chat templates in the shapes of the families that people use, and a tokenizer that knows their special tokens.

Each is written for these tests: what matters is where turns open and close, what a template refuses, and what it does
with thoughts.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tests.alignment.tiny_world import make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_2_5 = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
QWEN_3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_3_THINKING = QWEN_3.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
MISTRAL_SYSTEM_LAST = (
    "{% set ns = namespace(system='') %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {% if loop.last %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1].lstrip('\n') }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
WITHOUT_GENERATION_PROMPT = CHATML[: CHATML.index("{% if add_generation_prompt")]
CHATML_TWICE = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")


@dataclass(frozen=True)
class Family:
    """A template, the tokens around its turns, and what the tokenizer and the checkpoint call EOS."""

    template: str
    special: tuple[str, ...]
    end: str
    eos: str = "<eos>"
    bos: str | None = None
    generation_eos: tuple[str, ...] = ()


PHI_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end_of_text|>")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "chatml": Family(CHATML, CHATML_TOKENS, "<|im_end|>", eos="<|im_end|>"),
    "qwen 2.5 base": Family(QWEN_2_5, CHATML_TOKENS, "<|im_end|>", generation_eos=("<eos>",)),
    "qwen 3": Family(QWEN_3, CHATML_TOKENS, "<|im_end|>", eos="<|im_end|>", generation_eos=("<|im_end|>", "<eos>")),
    "qwen 3 thinking": Family(QWEN_3_THINKING, CHATML_TOKENS, "<|im_end|>", eos="<|im_end|>"),
    "llama 3": Family(
        LLAMA_3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        "<|eot_id|>",
        bos="<bos>",
        generation_eos=("<eos>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "gemma": Family(
        GEMMA,
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        bos="<bos>",
        generation_eos=("<eos>", "<end_of_turn>"),
    ),
    "phi 3": Family(PHI_3, PHI_TOKENS, "<|end_of_text|>"),
    "phi 3, closed twice": Family(PHI_3, PHI_TOKENS, "<|end_of_text|>", eos="<|end_of_text|>"),
    "chatml, closed twice": Family(CHATML_TWICE, CHATML_TOKENS, "<|im_end|>", eos="<|im_end|>"),
    "mistral": Family(MISTRAL, ("[INST]", "[/INST]"), "<eos>", bos="<bos>"),
    "r1": Family(R1, ("<|User|>", "<|Assistant|>"), "<eos>", bos="<bos>"),
    "without generation prompt": Family(WITHOUT_GENERATION_PROMPT, CHATML_TOKENS, "<|im_end|>", eos="<|im_end|>"),
}


def family_tokenizer(directory: Path, family: Family, *, special_thoughts: bool = False) -> PreTrainedTokenizerBase:
    """A small byte-level tokenizer with the special tokens and the template of a family; <think> is special or not."""
    tokenizer = make_tokenizer(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.add_special_tokens({"eos_token": family.eos} | ({} if family.bos is None else {"bos_token": family.bos}))
    tokenizer.add_tokens(["<eos>"], special_tokens=True)
    tokenizer.add_tokens([AddedToken(mark, special=special_thoughts) for mark in ("<think>", "</think>")])
    tokenizer.chat_template = family.template
    return tokenizer


def generation_config(tokenizer: PreTrainedTokenizerBase, family: Family) -> GenerationConfig:
    """What the checkpoint of a family says about EOS."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in family.generation_eos]
    return GenerationConfig(eos_token_id=ids or None)
