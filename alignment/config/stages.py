"""Options of the stages: a frozen pydantic model per stage, units in the names, unknown keys are errors.

Derived values (parameter counts, tokens, steps) are not options: `flows.pipeline.plan` computes and prints them.
"""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignment.config.base import Combine, Config, Count, Natural, Positive, Share
from alignment.config.training import QUANTIZE, AdapterOptions, TrainingMemory, check_adapter_options, unset


class TownConfig(Config):
    """The synthetic town: its facts are known, so that truthfulness can be measured."""

    people: Annotated[int, Field(ge=12, le=400)] = Field(48, description="number of inhabitants")
    documents: Count = Field(6000, description="number of pretraining documents")
    demonstrations: Count = Field(600, description="number of demonstrations, of mixed quality")
    prompts: Count = Field(600, description="prompts for sampling, labelling and alignment")
    heldout_prompts: Count = Field(200, description="prompts for evaluation only")


class Source(Config):
    """Where rows or text come from: a file, a directory laid out as a data set, a data set of the hub, or the town."""

    path: str = Field(description="a file, a data set of the hub, or town://NAME for a file of the town")
    split: str = Field("", exclude_if=unset, description="split of a data set; train if empty")
    name: str = Field("", exclude_if=unset, description="configuration of a data set")
    revision: str = Field("", exclude_if=unset, description="branch, tag or commit of a data set of the hub")
    origin: str = Field("", exclude=True, description="where to get the file; named in the error if it is missing")


class TextSource(Source):
    """A text to read: a plain file (paragraphs are documents), or rows with a text column or a conversation.

    `town://NAME` names a file of the town; other paths are relative to the working directory.
    """

    text_field: str = Field("text", description="column that holds the text; plain files have none")


class Columns(Config):
    """Which column holds what. A name may lead into a column, as in `question.full_text` or `answers.0.text`.

    Comparisons need `chosen` and `rejected`; or `a` and `b` with `winner`, a signed `strength`, or `score_a` and
    `score_b`; or `responses` with `score` or `rank`. These are texts, or whole conversations. Demonstrations need
    `messages`, or `prompt` and `completion`; prompts need `prompt` or `messages`.
    """

    prompt: str = Field("", description="text, or messages; not needed beside whole conversations")
    input: str = Field("", description="text that belongs below the prompt, such as Alpaca's input")
    system: str = Field("", description="text of a system turn")
    history: str = Field(
        "", exclude_if=unset, description="earlier turns before the prompt: a list of pairs of question and answer"
    )
    messages: str = Field("", description="a whole conversation")
    completion: str = Field("", description="the answer of a demonstration")
    chosen: str = Field("", description="the better response")
    rejected: str = Field("", description="the worse response")
    a: str = Field("", description="the first of two responses; `winner`, `strength` or scores say which is better")
    b: str = Field("", description="the second of two responses")
    winner: str = Field("", description="which of a and b is better; see a_wins, b_wins and tie")
    a_wins: tuple[bool | int | str, ...] = Field(
        ("a", "model_a", "response_a", "assistant_a"),
        description="values of winner that mean a, beside its column's name",
    )
    b_wins: tuple[bool | int | str, ...] = Field(
        ("b", "model_b", "response_b", "assistant_b"),
        description="values of winner that mean b, beside its column's name",
    )
    tie: tuple[bool | int | str, ...] = Field(
        ("tie", "tie (bothbad)", "both", "bothbad", "both_bad", "neither", "draw", "equal", "same"),
        description="values of winner that mean a tie",
    )
    strength: str = Field(
        "",
        description="how much better, 1 to 3, 0 for a tie; without a winner, negative means that a is better, "
        "positive b. Larger numbers count as 3",
    )
    score_a: str = Field("", description="score of a; the higher is better, equal ones are a tie")
    score_b: str = Field("", description="score of b")
    responses: str = Field("", description="a list of responses, as texts or objects")
    text: str = Field("", description="in an object of responses: its text")
    score: str = Field("", description="in an object of responses, or a list beside it: its score, the highest is best")
    rank: str = Field("", description="in an object of responses, or a list beside it: its rank, the lowest is best")
    annotator: str = Field("", description="who judged")
    turn: str = Field(
        "",
        exclude_if=unset,
        description="which answer of whole conversations was judged, from 1",
    )
    json_turns: bool = Field(False, description="prompt and responses are JSON texts, each a list of turns")

    @cached_property
    def names(self) -> dict[str, str]:
        """The columns of a row by option; those within a response are not among them."""
        other = ("a_wins", "b_wins", "tie", "json_turns", "text", "score", "rank")
        values = {option: getattr(self, option) for option in type(self).model_fields if option not in other}
        return {option: column for option, column in values.items() if column}

    def missing(self) -> tuple[str, str] | None:
        """An option and one that it needs, which is not set: some act only together."""
        for option, others in (
            ("chosen", ("rejected",)),
            ("rejected", ("chosen",)),
            ("a", ("b",)),
            ("b", ("a",)),
            ("score_a", ("score_b", "a")),
            ("score_b", ("score_a", "b")),
            ("winner", ("a", "b")),
            ("history", ("prompt",)),
            ("text", ("responses",)),
            ("score", ("responses",)),
            ("rank", ("responses",)),
        ):
            for other in others:
                if getattr(self, option) and not getattr(self, other):
                    return option, other
        return None


Format = Literal[
    "auto",
    "hh",
    "oasst",
    "scores",
    "template",
    "records",
    "alpaca",
    "arena",
    "arena-55k",
    "argilla",
    "dolly",
    "helpsteer",
    "helpsteer3",
    "nectar",
    "orca",
    "pku",
    "sharegpt",
    "shp",
    "summarize-from-feedback",
    "ultrafeedback",
    "webgpt",
]


class RowSource(Source):
    """Rows to read as prompts, demonstrations or comparisons.

    `auto` reads the formats that TRL reads (prompt/completion, messages, prompt/chosen/rejected, as text or as lists of
    messages), and any named format whose columns a row has. `hh` reads Anthropic's transcripts, `oasst` trees of
    messages with ranked replies, `scores` a prompt with several scored or ranked responses. `template` fills `prompt`
    and `completion` from the row's fields, as in "{instruction}" or "{answers[0]}". `records` are rows that a stage or
    `rlhf label import` wrote. The others are named after data sets: `rlhf data check` shows what they read. `columns`
    reads rows with columns of other names, or changes the columns of a named format.
    """

    format: Format = Field("auto", description="format of the rows; auto: what TRL reads, and what the columns show")
    columns: Columns | None = Field(
        None, exclude_if=unset, description="which column holds what, for rows of other names"
    )
    prompt: str = Field("", description="template of the prompt, as in {question}; only with format template")
    completion: str = Field("", description="template of the answer, as in {answers[0]}; only with format template")
    rows: str = Field("", description="key of the rows in a JSON file that is an object")
    limit: Natural = Field(0, description="use at most this many rows, 0 for all")

    @model_validator(mode="after")
    def _template_needs_fields(self) -> "RowSource":
        if self.format == "template" and not self.prompt:
            raise ValueError("format 'template' needs `prompt`, for example prompt: '{question}'")
        if self.format != "template" and (self.prompt or self.completion):
            raise ValueError("`prompt` and `completion` need format 'template'")
        if self.columns is not None and self.format in ("hh", "oasst", "template", "records"):
            raise ValueError(f"`columns` has no effect on format '{self.format}'; remove one of them")
        if self.columns is not None and self.format == "auto" and (missing := self.columns.missing()):
            raise ValueError(f"columns.{missing[0]} needs columns.{missing[1]} too, or a named format that has it")
        return self


class LanguageFilter(Config):
    """Which languages the corpus keeps; needs the extra `corpus`."""

    keep: tuple[str, ...] = Field(min_length=1, description="languages by their codes of two letters (ISO 639-1)")
    min_probability: Share = Field(0.5, description="least probability of a language, by py3langid")


class QualityFilter(Config):
    """Gopher's heuristics: number and length of words, symbols, bullets, stop words, repetition."""

    min_words: Natural = Field(50, description="shorter documents are left out")
    max_words: Count = Field(100_000, description="longer documents are left out")
    stop_words: tuple[str, ...] = Field(
        ("the", "be", "to", "of", "and", "that", "have", "with"), description="frequent words of the language"
    )
    min_stop_words: Natural = Field(2, description="documents with fewer different stop words are left out")
    repetition: bool = Field(True, description="leave out documents that repeat lines or n-grams")


class Decontamination(Config):
    """Leave out documents that share an n-gram of words with the evaluation."""

    sources: tuple[Source, ...] = Field((), description="evaluation sets; every text of their rows is looked for")
    heldout_prompts: bool = Field(False, description="look for the held-out prompts of this recipe too")
    words: Count = Field(13, description="length of the n-grams in words")
    min_words: Count = Field(8, description="texts of fewer words are not looked for; those between are, as a whole")


class CorpusConfig(Config):
    """Cleaning, deduplication and split of the pretraining text."""

    sources: tuple[TextSource, ...] = Field((TextSource(path="town://corpus.jsonl"),), description="files of text")
    min_characters: Natural = Field(16, description="shorter documents are dropped")
    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9,
        description="Jaccard similarity of word 5-grams from which two documents count as duplicates; "
        "1 drops exact copies only",
    )
    heldout_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.04, description="share of documents held out to measure the loss"
    )
    max_rejected_share: Share = Field(0.02, description="greatest share of unreadable rows; above it the stage fails")
    language: LanguageFilter | None = Field(
        None, exclude_if=unset, description="keep documents in some languages; null: in all"
    )
    quality: QualityFilter | None = Field(
        None, exclude_if=unset, description="keep documents that look like text; null: all"
    )
    decontamination: Decontamination | None = Field(
        None, exclude_if=unset, description="leave out what the evaluation asks for; null: nothing"
    )

    @property
    def files(self) -> tuple[Source, ...]:
        """All sources that are read, for the corpus and for decontamination."""
        return (*self.sources, *(self.decontamination.sources if self.decontamination else ()))

    @property
    def needs_prompts(self) -> bool:
        """Whether the prompts of the recipe are read."""
        return self.decontamination is not None and self.decontamination.heldout_prompts


class TokenizerConfig(Config):
    """Byte-level BPE."""

    vocab_size: Annotated[int, Field(ge=264, le=262144)] = Field(
        1024, description="number of tokens, including bytes and special tokens"
    )


class ModelConfig(Config):
    """A Llama-style decoder trained from scratch."""

    hidden_size: Count = Field(128, description="hidden size; an even multiple of heads")
    layers: Count = Field(4, description="number of decoder layers")
    heads: Count = Field(4, description="attention heads per layer")
    intermediate_size: Count = Field(344, description="width of the MLP")
    context_length: Count = Field(128, description="maximum sequence length in tokens")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}")
        return self


class PretrainConfig(TrainingMemory):
    """Next-token prediction on packed text, from scratch or from a checkpoint.

    With `checkpoint` (a directory, a GGUF file or a hub id) model and tokenizer are read from it; `epochs: 0` uses them
    unchanged.
    """

    checkpoint: str | None = Field(None, description="a directory, a GGUF file or a hub id; null: from scratch")
    model: ModelConfig = ModelConfig()
    epochs: Annotated[float, Field(ge=0)] = Field(4, description="passes over the text; 0 uses a checkpoint unchanged")
    batch_sequences: Count = Field(32, description="packed sequences per optimizer step")
    learning_rate: Positive = Field(3e-3, description="peak learning rate, after warm-up")
    min_learning_rate_share: Share = Field(0.05, description="final learning rate as a share of the peak")
    warmup_share: Share = Field(0.03, description="share of steps in warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="weight decay of AdamW, on matrices only")
    max_grad_norm: Positive = Field(1.0, description="gradient clipping norm")
    log_every_steps: Count = Field(10, description="optimizer steps between logged metrics")
    checkpoint_every_steps: Count = Field(200, description="optimizer steps between checkpoints for resuming")
    heldout_row_tokens: Count | None = Field(
        None,
        exclude_if=unset,
        description="tokens of a row of held-out text; null: the model's context, at most 512",
    )
    heldout_tokens: Natural | None = Field(
        None,
        exclude_if=unset,
        description="held-out tokens that are measured, from all parts of the text, 0 for all; null: 16384 where the "
        "context is longer than 512 tokens, all elsewhere",
    )

    @model_validator(mode="after")
    def _scratch_needs_training(self) -> "PretrainConfig":
        if self.checkpoint is None and self.epochs == 0:
            raise ValueError("epochs: 0 leaves a model from scratch untrained; set epochs or checkpoint")
        return self


class DemonstrationsConfig(Config):
    """Sources of the demonstrations."""

    sources: tuple[RowSource, ...] = Field(
        (RowSource(path="town://demonstrations.jsonl", format="records"),), description="rows of prompts with answers"
    )
    max_rejected_share: Share = Field(0.05, description="greatest share of unreadable rows; above it the stage fails")


class PromptsConfig(Config):
    """Sources of the prompts, and the share held out for evaluation."""

    sources: tuple[RowSource, ...] = Field(
        (RowSource(path="town://prompts.jsonl", format="records"),), description="rows of prompts"
    )
    heldout_share: Share = Field(0.2, description="share held out from sources without a split of their own")
    max_rejected_share: Share = Field(0.05, description="greatest share of unreadable rows; above it the stage fails")


class SFTConfig(AdapterOptions):
    """Supervised fine-tuning on demonstrations, loss on the response only."""

    epochs: Positive = Field(3, description="passes over the demonstrations")
    batch_size: Count = Field(32, description="demonstrations per optimizer step")
    learning_rate: Positive = Field(1e-3, description="peak learning rate, after warm-up")
    max_length_tokens: Count = Field(128, description="longer conversations are dropped")
    log_every_steps: Count = Field(5, description="optimizer steps between logged metrics")


class SamplingConfig(Config):
    """K responses per prompt."""

    prompts: Count = Field(300, description="training prompts to sample responses for")
    responses_per_prompt: Annotated[int, Field(ge=2, le=9)] = Field(4, description="K, responses per prompt")
    temperature: Positive = Field(1.0, description="sampling temperature; lower is less varied")
    max_new_tokens: Count = Field(48, description="maximum response length in tokens")
    batch_size: Count = Field(128, description="responses generated at a time")


class ComparisonsConfig(Config):
    """Comparisons from files; with sources nothing is sent to Label Studio."""

    sources: tuple[RowSource, ...] = Field((), description="rows of comparisons; none: comparisons from labelling")
    heldout_share: Annotated[float, Field(gt=0, lt=0.9)] = Field(
        0.2, description="share of prompts held out for testing"
    )
    heldout_annotators: Natural = Field(1, description="annotators whose judgements are held out for testing")
    weights: Literal["none", "reliability"] = Field(
        "none", description="none: all comparisons weigh 1; reliability: by the reliability of their annotator"
    )
    aggregate: Literal["each", "majority", "soft"] = Field(
        "each",
        description="each: every judgement is a comparison; majority: one comparison per pair, by majority vote; "
        "soft: both orders of a pair, each weighted by its share of the votes",
    )
    max_rejected_share: Share = Field(0.05, description="greatest share of unreadable rows; above it the stage fails")


class RewardConfig(TrainingMemory):
    """The reward model: Bradley-Terry over all pairs of a prompt."""

    lm_coef: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the next-token loss, added to the ranking loss"
    )
    likelihood: bool = Field(
        False, description="add the mean of the response's log-probabilities, with learned coefficients"
    )
    head_speed: Positive = Field(10.0, description="learning rate of the reward head, as a multiple of the trunk's")
    members: Count = Field(1, description="reward models of an ensemble, trained on the same comparisons")
    combine: Combine = Field("mean", description="members' mean, worst score, or uncertainty: mean − coef · variance")
    combine_coef: Annotated[float, Field(ge=0)] = Field(0.5, description="weight of the variance in 'uncertainty'")
    lora_rank: Count | None = Field(
        None,
        description="train an adapter of this rank over SFT's weights instead of all weights, which PPO's layout "
        "lora can then share",
    )
    lora_alpha: Count = Field(32, description="an adapter adds (lora_alpha / lora_rank) · B A")
    lora_targets: tuple[str, ...] | None = Field(
        None, description="names of the layers with adapters; null: all linear layers"
    )
    quantize: Literal["nf4"] | None = Field(None, exclude_if=unset, description=QUANTIZE)

    epochs: Positive = Field(4, description="passes over the comparisons")
    batch_prompts: Count = Field(16, description="prompts, with all their pairs, per optimizer step")
    learning_rate: Positive = Field(3e-4, description="peak learning rate of the trunk")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="weight decay of AdamW")
    warmup_share: Share = Field(0.05, description="share of steps in warm-up")
    max_grad_norm: Positive = Field(1.0, description="gradient clipping norm")
    max_length_tokens: Count = Field(128, description="longer conversations are dropped")
    log_every_steps: Count = Field(5, description="optimizer steps between logged metrics")

    @model_validator(mode="after")
    def _one_cannot_disagree(self) -> "RewardConfig":
        if self.members == 1 and self.combine != "mean":
            raise ValueError(
                f"combine '{self.combine}' needs several members, and members is 1: raise members, or use 'mean'"
            )
        return self

    @model_validator(mode="after")
    def _options_of_an_adapter(self) -> "RewardConfig":
        check_adapter_options(self.lora_rank, self.lora_targets, self.quantize)
        return self


class EvaluationConfig(Config):
    """Comparison of base, SFT and policy on held-out prompts."""

    prompts: Natural = Field(0, description="use at most this many held-out prompts, 0 for all")
    samples_per_prompt: Count = Field(1, description="responses per model and prompt")
    temperature: Positive = Field(1.0, description="sampling temperature")
    max_new_tokens: Count = Field(48, description="maximum response length in tokens")
    curve_prompts: Count = Field(100, description="prompts per point of the gold-against-proxy curve")
    best_of_n: tuple[Count, ...] = Field(
        (), description="also measure best-of-n sampling from SFT, for each of these n, such as (4, 16)"
    )


class ComputeConfig(Config):
    """Where the stages compute, in which precision, and in how many processes.

    None of it is part of a stage's key: it changes results by rounding only, and on another device the random numbers
    of sampled responses. Provenance has what was used.
    """

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if PyTorch finds one")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of matrix products and of models that are not trained; trained weights, optimizers and losses are "
        "float32. auto: bfloat16 if the processor multiplies in it",
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="processes of pretrain, sft, reward, validation and ppo, each on a GPU of its own, or on the cores",
    )
    shard: bool = Field(
        False,
        description="split weights, gradients and optimizers of what is trained over the processes (FSDP2), instead of "
        "a whole model in each",
    )
    accelerate_config: str | None = Field(
        None, description="a launch file of accelerate; null: processes on this machine"
    )

    def in_one_process(self) -> "ComputeConfig":
        """The same device and precision, for a stage that runs in a single process."""
        return ComputeConfig(device=self.device, precision=self.precision)

    @model_validator(mode="after")
    def _is_for_several(self) -> "ComputeConfig":
        if self.shard and self.processes == 1:
            raise ValueError(
                "shard splits models over several processes, but processes is 1: raise it, or remove shard"
            )
        if self.accelerate_config is not None and self.processes == 1:
            raise ValueError(
                f"accelerate_config {self.accelerate_config} starts several processes, but processes is 1: raise "
                "processes, or remove accelerate_config"
            )
        return self
