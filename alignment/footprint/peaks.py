"""The peak memory of a stage that runs models, predicted from the sizes of model and batches, in bytes.

A stage has several instants with much memory: an update, sampling, writing the model. The peak is their maximum: what
is released before an instant is not counted in it. Libraries and the data are not counted either.
"""

from alignment.config.stages import PretrainConfig, RewardConfig
from alignment.config.training import AdapterOptions
from alignment.footprint.model import Footprint

READ_TOKENS = 8192  # of a forward without gradients: scores of rewards, held-out text
LIBRARIES = 600 * 2**20  # bytes of a process before it holds a model: Python, PyTorch, transformers and TRL


def of_pretraining(config: PretrainConfig, model: Footprint, row_tokens: int) -> int:
    """An update, or where nothing is trained the held-out loss."""
    reading = model.weights + model.logits(READ_TOKENS) + model.reading(READ_TOKENS)
    if not config.epochs:
        return reading
    recompute = config.gradient_checkpointing
    tokens = model.micro_batch(config.micro_batch_tokens, config.batch_sequences, row_tokens, recompute=recompute)
    activations = model.activations(tokens, recompute=recompute, adapter=False)
    return max(reading, model.weights + model.training_state(None) + activations + model.logits(tokens))


def of_adapter_training(
    config: AdapterOptions, model: Footprint, batch_rows: int, row_tokens: int, reference: bool = False
) -> int:
    """An update of a trainer, with a second model as `reference` unless it is the base of the adapter."""
    recompute, adapter = config.gradient_checkpointing, config.lora_rank is not None
    tokens = model.micro_batch(config.micro_batch_tokens, batch_rows, row_tokens, recompute=recompute)
    weights = model.weights * (2 if reference and not adapter else 1)
    activations = model.activations(tokens, recompute=recompute, adapter=adapter)
    return weights + model.training_state(config.lora_rank) + activations + model.logits(tokens)


def of_reward_training(config: RewardConfig, model: Footprint, rows_per_prompt: int) -> int:
    """An update; or the scores of all responses; or the merged model beside its adapter, when it is written."""
    recompute, adapter = config.gradient_checkpointing, config.lora_rank is not None
    prompt_tokens = rows_per_prompt * config.max_length_tokens
    tokens = model.micro_batch(config.micro_batch_tokens, config.batch_prompts, prompt_tokens, recompute=recompute)
    reads_words = bool(config.likelihood or config.lm_coef)
    heads = model.head * (config.likelihood + (reads_words and not adapter))
    update = model.training_state(config.lora_rank) + model.activations(tokens, recompute=recompute, adapter=adapter)
    update += model.logits(tokens) if reads_words else 0
    scores = model.reading(READ_TOKENS) + (model.logits(READ_TOKENS) if config.likelihood else 0)
    writing = model.weights - model.head if adapter else 0
    gradients = model.training_state(config.lora_rank) // 3
    return model.weights + heads + max(update, gradients + max(scores, writing))


def of_reading(model: Footprint, models: int, rows: int, row_tokens: int) -> int:
    """Sampling from one of several models that are held at the same time, or its held-out loss."""
    reading = model.reading(READ_TOKENS) + model.logits(READ_TOKENS)
    return models * model.weights + max(reading, model.cache(rows, row_tokens))
