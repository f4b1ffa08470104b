"""The work that both sides do: a policy whose responses end by themselves, a reward model of its size, and prompts.

Run by itself, `python benchmarks/workload.py DIR`, it needs torch and transformers alone.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

WORDS, PAD, EOS = 1022, 1022, 1023
PROMPT_TOKENS = (8, 32)


@dataclass(frozen=True)
class Shape:
    """Size of the models, and the mean length in tokens of the responses that the policy ends by itself."""

    hidden_size: int = 256
    layers: int = 6
    response_tokens: int = 20

    @property
    def name(self) -> str:
        return f"h{self.hidden_size}-l{self.layers}-r{self.response_tokens}"


def make_workload(out: Path, shape: Shape, prompts: int = 4096) -> Path:
    """Write `policy`, `reward` and `prompts.jsonl` to `out`; nothing is done where they are already."""
    if not (out / "shape.json").exists():
        torch.manual_seed(0)
        policy = LlamaForCausalLM(_config(shape))
        _teach_ending(policy, shape)
        config = _config(shape)
        config.num_labels = 1
        reward = LlamaForSequenceClassification(config)
        reward.model.load_state_dict(policy.model.state_dict())
        policy.save_pretrained(out / "policy")
        reward.save_pretrained(out / "reward")
        lines = (json.dumps(prompt) + "\n" for prompt in random_prompts(prompts))
        (out / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
        (out / "shape.json").write_text(json.dumps(asdict(shape)), encoding="utf-8")
    return out


def _config(shape: Shape) -> LlamaConfig:
    """Llama with heads of 32 and a feed-forward network of 8/3 the width, in steps of 16."""
    return LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=shape.hidden_size,
        intermediate_size=-(-shape.hidden_size * 8 // 48) * 16,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden_size // 32,
        max_position_embeddings=512,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=EOS,
    )


def _teach_ending(policy: LlamaForCausalLM, shape: Shape, steps: int = 80) -> None:
    """Train on random words until EOS comes with probability 1 / response_tokens a token."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for _ in range(steps):
        tokens = torch.randint(0, WORDS, (16, 64))
        tokens[torch.rand(16, 64) < 1 / shape.response_tokens] = EOS
        optimizer.zero_grad()
        policy(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def random_prompts(count: int) -> list[list[int]]:
    """Prompts of 8 to 32 random words, as token ids."""
    generator = torch.Generator().manual_seed(1)
    shortest, longest = PROMPT_TOKENS
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, WORDS, (length,), generator=generator).tolist() for length in lengths]


def read_prompts(workload: Path, count: int) -> list[list[int]]:
    """The first `count` prompts."""
    with (workload / "prompts.jsonl").open(encoding="utf-8") as lines:
        prompts = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    if len(prompts) < count:
        raise SystemExit(f"{workload} has {len(prompts)} prompts and {count} episodes were asked for: ask for fewer")
    return prompts


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, padding on the left."""
    ids = {**{f"w{i}": i for i in range(WORDS)}, "<pad>": PAD, "<eos>": EOS}
    backend = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def response_length(tokens: Sequence[int]) -> int:
    """Tokens up to the first EOS, which counts."""
    return list(tokens).index(EOS) + 1 if EOS in tokens else len(tokens)


def run_arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options of a run on either side; each side adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--name", default=name)
    return parser


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the weights and prompts of the benchmark")
    parser.add_argument("out", type=Path)
    print(make_workload(parser.parse_args().out, Shape()))
