"""The engine that the options name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.rollout import RolloutConfig
from alignment.distributed.collectives import from_main, gathered, on_main, process_index
from alignment.errors import ConfigError
from alignment.rollout.engine import Engine, NativeEngine, TransformersEngine
from alignment.rollout.server_process import COMMAND, ServerProcess, command
from alignment.rollout.vllm import VLLMEngine, write_weights

URL = "RLHF_VLLM_URL"


@contextmanager
def open_engine(
    options: RolloutConfig, directory: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Engine]:
    """The engine, closed afterwards; a server that was started for it ends. A collective where several processes run.

    `directory` gets the weights for a server, which must see it under the same path.
    """
    with ExitStack() as stack:
        engine: Engine
        if options.engine == "vllm":
            url = options.url or os.environ.get(URL) or _started(options, directory, policy, tokenizer, stack)
            engine = VLLMEngine(url, options, directory, tokenizer)
        else:
            engine = NativeEngine() if options.engine == "native" else TransformersEngine()
        stack.callback(engine.close)
        yield engine
        on_main(shutil.rmtree, directory, ignore_errors=True)  # not after an error: the server's log says why


def _started(
    options: RolloutConfig,
    directory: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stack: ExitStack,
) -> str:
    """The address of a server that the main process starts on the policy's weights."""
    text = command()
    if not text:
        raise ConfigError(
            f"ppo.rollout.engine is vllm and no server is named: set ppo.rollout.url or {URL} to its address, or "
            f"{COMMAND} to the command that starts one (docs/rollout.md)"
        )

    def start() -> str:
        if process_index() != 0:
            return ""
        write_weights(policy, directory / "model", tokenizer)
        server = ServerProcess(text, directory / "model", directory / "vllm.log")
        stack.callback(server.stop)
        server.wait(options.patience_seconds)
        return server.url

    return from_main(gathered(start)[0])
