"""A small server that speaks as much of vLLM's protocol as `alignment.rollout.vllm` relies on.

    python -m tests.alignment.rollout.stand_in MODEL PORT     # as a process of its own

It samples with a model of transformers on the CPU, from the seed of each request, and can be told to be slow, to fail,
to answer something else, to break connections, and to keep its old weights.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignment.models.generation import Sample, generate

Answer = dict[str, Any]
NEEDED = {  # of a completion request: what must be said, as vLLM has other defaults
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": True,
    "logprobs": 0,
    "return_token_ids": True,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def uniforms_of(seed: int, count: int) -> Tensor:
    """The random numbers of a response."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sampled(model: PreTrainedModel, prompt: list[int], seed: int, request: Mapping[str, Any]) -> Sample:
    """What the server samples for a request."""
    (sample,) = generate(
        model,
        [prompt],
        max_new_tokens=request["max_tokens"],
        eos_token_ids=request["stop_token_ids"],
        temperature=request["temperature"],
        uniforms=uniforms_of(seed, request["max_tokens"]).unsqueeze(0),
    )
    return sample


class StandIn:
    """The server and how it behaves; a context manager that runs it in a thread."""

    def __init__(self, model: PreTrainedModel, port: int = 0, max_model_len: int = 32) -> None:
        self.first_model = self.model = model.eval()
        self.max_model_len = max_model_len
        self.seconds = 0.0  # that each completion takes longer
        self.errors = 0  # so many completions fail with status 500
        self.broken = 0  # so many connections are broken, after which the server has its first weights again
        self.stale = False  # it does as if it loaded weights
        self.changed: Callable[[Answer], Any] = lambda answer: answer  # what becomes of a completion
        self.calls: list[str] = []
        self.loaded: list[str] = []
        self.at_once = self.most_at_once = 0
        self.paused = False
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: Answer) -> tuple[int, Any]:
        """Status and content for a request."""
        self.calls.append(path)
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "max_model_len": self.max_model_len, "object": "model"}]}
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
            return 200, {"status": path}
        if path == "/collective_rpc":
            return self._load(body)
        if path == "/v1/completions":
            return self._complete(body)
        return 404, {"detail": "Not Found"}

    def _load(self, body: Answer) -> tuple[int, Any]:
        if not self.paused or body["method"] != "reload_weights":
            return 400, {"error": f"not paused, or another method: {body}"}
        self.loaded.append(body["kwargs"]["weights_path"])
        model = AutoModelForCausalLM.from_pretrained(self.loaded[-1], local_files_only=True).eval()
        if not self.stale:
            self.model = model
        return 200, {"results": [None]}

    def _complete(self, body: Answer) -> tuple[int, Any]:
        wrong = {name for name, value in NEEDED.items() if body.get(name) != value}
        if wrong or self.paused:
            return 400, {"error": f"paused: {self.paused}; wrong: {sorted(wrong)}"}
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return 400, {"error": "the prompt is too long"}
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        with self.lock:
            self.at_once -= 1
            if self.errors:
                self.errors -= 1
                return 500, {"error": "out of memory"}
            sample = sampled(self.model, body["prompt"], body["seed"], body)
        return 200, self.changed(
            {
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "text": "",
                        "token_ids": sample.tokens,
                        "logprobs": {"token_logprobs": sample.logprobs, "tokens": [""] * len(sample.tokens)},
                        "finish_reason": "stop" if sample.ended else "length",
                    }
                ],
            }
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._do({})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self._do(json.loads(self.rfile.read(length) or b"{}"))

            def _do(self, body: Answer) -> None:
                if self.path == "/v1/completions" and stand_in.broken:
                    stand_in.broken -= 1
                    stand_in.model = stand_in.first_model
                    self.close_connection = True
                    return
                status, content = stand_in.answer(self.path, body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def main(path: Path, port: int) -> None:
    """Serve a checkpoint until the process is ended."""
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    StandIn(model, port).server.serve_forever()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
