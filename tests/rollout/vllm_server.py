"""A small server that speaks vLLM's HTTP interface over a real model, for tests.

It samples in its own way: one full pass of transformers per token, ``torch.multinomial`` with a
generator of the request's seed. What a prefix cache does wrong it does too: the logits after a
prompt are kept until ``/reset_prefix_cache``.
"""

import json
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


class Quiet(ThreadingHTTPServer):
    """Says nothing of a client that no longer listens."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class VllmServer:
    """A model with a version of its weights; ``faults`` make it misbehave."""

    def __init__(self, folder):
        self.folder = folder
        self.faults = {}
        self.asked = []
        self.versions = []
        self.lock = threading.Lock()
        self.restart()

    def restart(self):
        """Be what a server is that has just been started."""
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.version, self.paused, self.cache = "default", False, {}

    def answer(self, method, path, body):
        """Return the status and the content of an answer."""
        path = path.partition("?")[0]
        self.asked.append(path)
        fault = self.faults.get(path)
        if fault is not None:
            answered = fault(self, body)
            if answered is not None:
                return answered
        return getattr(self, f"{method}{path.replace('/', '_')}")(body)

    def get_v1_models(self, _):
        room = self.model.config.max_position_embeddings
        return 200, {"data": [{"id": "policy", "max_model_len": room}]}

    def get_version(self, _):
        return 200, {"version": "0.33.0"}

    def get_weight_info(self, _):
        return 200, {"weight_version": self.version}

    def post_update_weight_version(self, body):
        self.version = body["new_version"]
        self.versions.append(self.version)
        return 200, {"success": True, "new_version": self.version}

    def post_pause(self, _):
        self.paused = True
        return 200, {"status": "paused"}

    def post_resume(self, _):
        self.paused = False
        return 200, {"status": "resumed"}

    def post_reset_prefix_cache(self, _):
        self.cache = {}
        return 200, None

    def post_collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        assert self.paused
        folder = Path(body["kwargs"]["weights_path"])
        if not folder.is_dir():
            return 500, {"error": {"message": f"cannot find {folder}", "code": 500}}
        tensors = {
            k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()
        }
        with self.lock:
            missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        assert not unexpected
        assert all("lm_head" in name for name in missing)
        return 200, {"results": [None]}

    @torch.no_grad()
    def post_v1_completions(self, body):
        assert not self.paused
        prompt = body["prompt"]
        if max(prompt) >= self.model.config.vocab_size:
            said = f"Token id {max(prompt)} is out of vocabulary"
            return 400, {"error": {"message": said, "type": "BadRequestError", "code": 400}}
        generator = torch.Generator().manual_seed(body["seed"])
        tokens, logprobs, reason = [], [], "length"
        while len(tokens) < body["max_tokens"]:
            logits = self._logits(prompt, tokens).clone()
            for token, bias in body.get("logit_bias", {}).items():
                logits[int(token)] += bias
            logits = logits / (body["temperature"] or 1.0)
            spread = logits.log_softmax(-1)
            token = int(
                torch.multinomial(spread.exp(), 1, generator=generator)
                if body["temperature"]
                else spread.argmax()
            )
            tokens.append(token)
            logprobs.append(float(spread[token]))
            if token in body.get("stop_token_ids", ()):
                reason = "stop"
                break
        said = {"token_logprobs": logprobs, "tokens": [str(token) for token in tokens]}
        choice = {"index": 0, "text": "", "token_ids": tokens, "finish_reason": reason}
        choice |= {"logprobs": said, "prompt_token_ids": prompt}
        return 200, {"model": "policy", "choices": [choice]}

    def _logits(self, prompt, tokens):
        if not tokens and tuple(prompt) in self.cache:
            return self.cache[tuple(prompt)]
        with self.lock:
            logits = self.model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float()
        if not tokens:
            self.cache[tuple(prompt)] = logits
        return logits


@contextmanager
def serving(folder):
    """Yield a server in a thread, with its ``url``; it ends with the block."""
    vllm = VllmServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, method):
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = vllm.answer(method, self.path, body)
            if status is None:  # it dies in the middle of an answer
                self.close_connection = True
                return
            said = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def do_GET(self):
            self.answer("get")

        def do_POST(self):
            self.answer("post")

        def log_message(self, *arguments):
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    vllm.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield vllm
    finally:
        server.shutdown()
        server.server_close()


def once(answer):
    """A fault of the first request alone."""
    left = [answer]
    return lambda server, body: left.pop()(server, body) if left else None


def hang(seconds):
    """A fault: no answer for so long."""
    return lambda server, body: time.sleep(seconds)
