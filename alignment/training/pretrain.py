"""Stage `pretrain`: next-token prediction on packed text, from scratch or from a checkpoint."""

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from alignment import progress
from alignment.config.stages import ModelConfig, PretrainConfig
from alignment.distributed.collectives import from_main, gathered, on_main, process_index, share_of
from alignment.distributed.devices import autocast, to_device
from alignment.distributed.sharding import split, whole, whole_models, whole_tensor
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.architecture import cache_argument, check_causal, context_length, row_length
from alignment.models.chat import ChatFormat
from alignment.models.encoding import stream_encoded
from alignment.models.heads import exceeds_chunk, head_of, log_likelihoods, trunk_states
from alignment.models.importing import import_checkpoint
from alignment.models.recomputation import recompute_layers
from alignment.models.scalar import save_model, scalar_config
from alignment.models.tokenizer import load_tokenizer
from alignment.plots import curve
from alignment.records import Document, Rejected, shard_files, write_records
from alignment.training.loop import TrainingState, backward, cosine_schedule, is_small, token_budget
from alignment.training.tokens import Encoded as EncodedDocument
from alignment.training.tokens import TokenFile, in_temporary_file, write_tokens

HELDOUT_TOKENS = 8192  # in one forward
HELDOUT_ROW = 512  # tokens of a held-out row, and the longest context whose held-out text is measured as a whole
HELDOUT_SAMPLE = 16_384  # tokens: the standard error of a loss is then about 0.02 nats


@dataclass(frozen=True)
class PackedText:
    """Concatenated documents, each followed by EOS, split into rows, shape (n, context), and those put aside.

    The rows are 32-bit integers in a file that is mapped into memory.

    The last `filling` tokens are the first ones again, which fill up the last row.
    """

    rows: Tensor
    bytes_per_token: float
    filling: int = 0
    rejected: Sequence[Rejected] = ()
    documents: int = 0

    def first(self, count: int) -> "PackedText":
        """The first rows, at most `count`."""
        return self if count >= len(self.rows) else replace(self, rows=self.rows[:count], filling=0)

    def sample(self, tokens: int) -> "PackedText":
        """Whole rows of at most so many tokens (but one row), evenly spaced over the text; all rows for 0 tokens."""
        count = max(1, tokens // self.rows.shape[1])
        if not tokens or count >= len(self.rows):
            return self
        whole = len(self.rows) - 1 if self.filling else len(self.rows)
        return replace(self, rows=self.rows[torch.arange(count) * whole // count], filling=0)


def pretrain(
    config: PretrainConfig, out: Path, journal: Journal, *, seed: int, corpus: Path, tokenizer: Path | None = None
) -> dict[str, float]:
    """Train on `corpus/train.jsonl`, measure on `corpus/heldout.jsonl`, and write `model/` with its tokenizer.

    Cross-entropy per token (nats), AdamW, linear warm-up and cosine decay. Started again in the
    same directory after a kill, it resumes from its last checkpoint.
    """
    torch.manual_seed(seed)
    model, words = starting_point(config, tokenizer, journal)
    chat = ChatFormat.of(words, model.generation_config)
    length = row_length(model) if config.checkpoint else config.model.context_length
    train = pack(corpus / "train.jsonl", chat, length, out / "tokens" / "train")
    heldout = heldout_text(corpus, chat, length, config.heldout_row_tokens, config.heldout_tokens)
    on_main(write_records, out / "rejected.jsonl", [*train.rejected, *heldout.rejected])
    if config.epochs:
        model = train_packed(model, train, heldout, config, out, journal, seed)
    loss = heldout_loss(model, heldout)
    on_main(save_model, model, out / "model", words)
    on_main(shutil.rmtree, out / "tokens")
    return {
        "heldout_loss": loss,
        "bits_per_byte": loss / math.log(2) / heldout.bytes_per_token,
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "tokens_per_epoch": float(train.rows.numel()),
        "rejected": float(len(train.rejected) + len(heldout.rejected)),
    }


def starting_point(
    config: PretrainConfig, tokenizer: Path | None, journal: Journal
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A new Llama with the tokenizer of this pipeline, or an imported checkpoint with its tokenizer."""
    if config.checkpoint is not None:
        model, words, changes = import_checkpoint(config.checkpoint)
        check_pipeline(model)
        ends = words.convert_ids_to_tokens(sorted(ChatFormat.of(words, model.generation_config).end_ids))
        notes = [*changes, f"answers end at {' or '.join(map(str, ends))}", *rows_note(model)]
        journal.note("imported", [f"from {config.checkpoint}", *notes])
        return model, words
    assert tokenizer is not None, "a model from scratch needs the tokenizer stage"
    words = load_tokenizer(tokenizer)
    return to_device(build_model(config.model, words)), words


def check_pipeline(model: PreTrainedModel) -> None:
    """Raise CheckpointError for an architecture that a later stage cannot use."""
    check_causal(model)
    cache_argument(model)
    scalar_config(model)


def rows_note(model: PreTrainedModel) -> list[str]:
    """A sentence if text is packed into shorter rows than the model could read."""
    context, length = context_length(model), row_length(model)
    if context == length:
        return []
    limit = "has no limit" if context is None else f"is {context}"
    return [f"the model's context {limit}; text is packed into rows of {length} tokens"]


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama-style decoder with tied embeddings and random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context_length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def heldout_text(
    corpus: Path, chat: ChatFormat, length: int, row_tokens: int | None = None, tokens: int | None = None
) -> PackedText:
    """The held-out text of a corpus for a model that is trained on rows of `length`; see the options of pretrain."""
    if tokens is None:
        tokens = HELDOUT_SAMPLE if length > HELDOUT_ROW else 0
    return pack(corpus / "heldout.jsonl", chat, min(length, row_tokens or HELDOUT_ROW)).sample(tokens)


def pack(path: Path, chat: ChatFormat, context: int, tokens: Path | None = None) -> PackedText:
    """Documents of a file and those in which it continues, packed without conversations that the chat template refuses.

    The main process writes their token ids to the file `tokens`, and all map it into memory; see `packed`.
    """
    if tokens is None:
        return packed((row for shard in shard_files(path) for row in encoded_documents(shard, chat)), context, path)
    shards = [partial(encoded_documents, shard, chat) for shard in shard_files(path)]
    file = from_main(gathered(lambda: write_tokens(shards, tokens, context) if process_index() == 0 else None)[0])
    assert file is not None
    check_text(file, path)
    rows, filling = file.rows(context)
    return PackedText(rows, file.text_bytes / file.tokens, filling, file.rejected, file.documents)


def packed(documents: Iterable[EncodedDocument], context: int, source: Path, near: Path | None = None) -> PackedText:
    """Concatenate documents and split them into rows; a shorter last row is filled up from the start, so that no token
    is lost. The tokens are in a temporary file in the directory `near`. `source` is named in errors."""
    file, rows, filling = in_temporary_file(documents, context, near)
    check_text(file, source)
    return PackedText(rows, file.text_bytes / file.tokens, filling, file.rejected, file.documents)


def encoded_documents(path: Path, chat: ChatFormat) -> Iterator[EncodedDocument]:
    """The documents of a file with their token ids, one by one."""
    return stream_encoded(path, Document, chat.document)


def check_text(file: TokenFile, path: Path) -> None:
    """Raise DataError if there is no text."""
    if not file.documents:
        first = file.rejected[0] if file.rejected else None
        reason = f"First: line {first.line}: {first.reason}" if first else "There is no row"
        raise DataError(f"{path} has no text; check `corpus.sources`. {reason}")


def train_packed(
    model: PreTrainedModel,
    train: PackedText,
    heldout: PackedText,
    config: PretrainConfig,
    out: Path,
    journal: Journal,
    seed: int,
) -> PreTrainedModel:
    """The training loop: resume, step, log, checkpoint. Each process takes its share of every batch.

    Returns the trained model: `model` itself, unless its weights were sharded over the processes.
    """
    if config.gradient_checkpointing:
        recompute_layers(model)
    shards = split((model,))
    per_epoch = math.ceil(len(train.rows) / config.batch_sequences)
    steps = max(1, round(per_epoch * config.epochs))
    weights = list(model.parameters())
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = cosine_schedule(optimizer, steps, config.warmup_share, config.min_learning_rate_share)
    state = TrainingState(out / "checkpoint", model, optimizer, schedule)
    first = state.resume()
    journal.rewind(first)
    budget = token_budget(config.micro_batch_tokens, model, recompute=config.gradient_checkpointing)
    model.eval()  # no dropout: halves in parallel threads would draw random numbers in any order
    for step in progress.steps("pretrain", first, steps):
        batch = batch_rows(step, len(train.rows), config.batch_sequences, seed)
        parts = micro_batches(train.rows[share_of(batch)], budget, at_least=2 if is_small(weights) else 1)
        losses = [partial(next_token_loss, model, part, len(part) / len(batch)) for part in parts]
        idle = partial(next_token_loss, model, train.rows[batch[:1]], 0.0)
        loss = backward(losses, weights, shards, idle)
        norm = whole_tensor(torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm))
        state.check(loss, norm, step, "pretrain.learning_rate")
        optimizer.step()
        schedule.step()
        if step % config.log_every_steps == 0 or step == steps:
            journal.log(
                {"loss": loss.item(), "grad_norm": float(norm), "learning_rate": float(schedule.get_last_lr()[0])},
                step,
            )
        if step % config.checkpoint_every_steps == 0 and step < steps:
            with whole_models(shards, model) as (read,):
                journal.log({"heldout_loss": heldout_loss(read, heldout.first(64))}, step)
            state.save(step)
    journal.figure("loss", curve(journal.read(), ["loss", "heldout_loss"], "pretraining loss (nats per token)"))
    return whole(shards, model)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The trainable parameters: with weight decay for matrices, without for gains and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def batch_rows(step: int, rows: int, batch: int, seed: int) -> list[int]:
    """The rows of step 1, 2, …: a new order each epoch, a function of seed and epoch, not of resuming."""
    per_epoch = math.ceil(rows / batch)
    epoch, number = divmod(step - 1, per_epoch)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return [int(row) for row in order[number * batch : (number + 1) * batch]]


def micro_batches(rows: Tensor, token_budget: int, at_least: int = 1) -> list[Tensor]:
    """The rows of a batch in order, in parts of about the same size that stay within the budget; none without rows."""
    size = max(1, token_budget // rows.shape[1])
    return [part for part in rows.chunk(max(at_least, math.ceil(len(rows) / size))) if len(part)]


def next_token_loss(model: PreTrainedModel, batch: Tensor, share: float = 1.0) -> Tensor:
    """`share` times the mean over positions of −log p(x_t | x_<t). Shape of batch: (b, context)."""
    batch = batch.to(model.device).long()
    targets = batch[:, 1:].reshape(-1)
    with autocast():
        if exceeds_chunk(model, batch.numel()):
            hidden = trunk_states(model, batch)[:, :-1].flatten(0, 1)
            return share * -log_likelihoods(head_of(model), hidden, targets).mean()
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
    return share * functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, text: PackedText, batch: int = 32) -> float:
    """Mean negative log-likelihood per token in nats, without the tokens that fill up the last row."""
    rows = text.rows
    batch = max(1, min(batch, HELDOUT_TOKENS // rows.shape[1]))
    was_training = model.training
    model.eval()
    whole = rows[:-1] if text.filling else rows
    last = [rows[-1:, : rows.shape[1] - text.filling]] if text.filling else []
    parts = [part for part in (*batches(whole, batch), *last) if part.shape[1] > 1]
    predicted = [len(part) * (part.shape[1] - 1) for part in parts]
    total = sum(float(next_token_loss(model, part)) * count for part, count in zip(parts, predicted, strict=True))
    model.train(was_training)
    return total / sum(predicted)


def batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive batches of at most `size` rows."""
    yield from (rows[i : i + size] for i in range(0, len(rows), size))
