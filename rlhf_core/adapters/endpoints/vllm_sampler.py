"""Responses from a vLLM server, over its public HTTP interface; weights go there as files.

A request a row, with a seed of its own: what is answered does not depend on what else is asked for.
The server names the version of its weights before and after a batch (``/weight_info``); if that is
not the digest of the model's, the batch is thrown away, the weights are sent and it is asked again.
Interface as documented by vLLM: ``/v1/completions``, and with ``VLLM_SERVER_DEV_MODE=1``
``/collective_rpc`` (``reload_weights``), ``/reset_prefix_cache``, ``/pause``, ``/resume``,
``/weight_info`` and ``/update_weight_version``.
"""

import copy
import hashlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

import torch
from torch import nn

from rlhf_core.adapters.endpoints.vllm_answers import (
    Answer,
    OtherWeightsError,
    decoded,
    excerpt,
    read_answer,
)
from rlhf_core.adapters.http_client import JsonClient
from rlhf_core.adapters.retries import retry_while
from rlhf_core.config import OwnRolloutsConfig, VllmRolloutsConfig
from rlhf_core.errors import LabelError, ModelError, RolloutError
from rlhf_core.models import device_of, unwrapped
from rlhf_core.models.dropout import as_published
from rlhf_core.models.known_ids import num_embeddings, unknown_ids
from rlhf_core.models.library_output import hide_transformers_output
from rlhf_core.rollout.decode import Decoded, Sampling
from rlhf_core.rollout.sampler import TRANSFORMERS_SAMPLER, Draws, Sampler
from rlhf_core.storage.folders import replacing_directory
from rlhf_core.storage.locks import is_held, locked
from rlhf_core.tokenization import TokenIds

logger = logging.getLogger(__name__)

FIRST_PATIENCE_SECONDS = 10.0
"""How long a server is looked for that has not answered yet: a forgotten one is told soon."""
_LOADING = "loading"
_FOLDER = "rollouts-"
"""What the folders of weights are called, with the machine and a number of the process's own: two
runs may sample from the same weights, and each deletes its own."""
_DIGITS = 16
_NEVER = -100.0
"""Least bias of a logit that the interface takes: exp(-100) of a token's chance is left."""
Result = TypeVar("Result")


@contextmanager
def open_sampler(settings: OwnRolloutsConfig | VllmRolloutsConfig) -> Iterator[Sampler]:
    """Yield who samples by ``policy.rollouts``, and close its connections afterwards.

    Raises:
        RolloutError: the server does not answer, or lacks what is needed of it.
    """
    if isinstance(settings, OwnRolloutsConfig):
        yield TRANSFORMERS_SAMPLER
        return
    sampler = VllmSampler(settings)
    try:
        sampler.look()
        yield sampler
    finally:
        sampler.close()


class VllmSampler:
    """Asks a vLLM server; ``close`` closes its connections and deletes the weights it wrote."""

    def __init__(self, settings: VllmRolloutsConfig) -> None:
        """Connect to nothing yet."""
        self._settings = settings
        self._server = JsonClient(
            settings.url,
            auth=None,
            variable=None,
            timeout=settings.timeout_seconds,
            patience=settings.patience_seconds,
        )
        self._place = f"policy.rollouts: {self._server.place}"
        self._served = ""
        self._room: int | None = None
        self._vocabulary: int | None = None
        self._left_out: list[int] = []
        self._folder: Path | None = None
        self._held = ExitStack()
        self._written: list[Path] = []

    def look(self) -> str:
        """Ask the server who it is; return it in words.

        Raises:
            RolloutError: it does not answer, or lacks what is needed of it.
        """
        patience = min(FIRST_PATIENCE_SECONDS, self._settings.patience_seconds)
        timeout = min(FIRST_PATIENCE_SECONDS, self._settings.timeout_seconds)
        with JsonClient(
            self._settings.url, auth=None, variable=None, timeout=timeout, patience=patience
        ) as server:
            listed = self._ask("GET", "v1/models", server=server)
            version = self._ask("GET", "version", server=server)
            self._weights_version(server)
        models = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(models, list) or not models or not isinstance(models[0], dict):
            raise RolloutError(f"{self._place}: /v1/models lists no model: {excerpt(listed)}")
        self._served, self._room = str(models[0].get("id")), models[0].get("max_model_len")
        number = version.get("version") if isinstance(version, dict) else None
        return f"vLLM {number} with {self._served} at {self._server.place}"

    def require_vocabulary(self, size: int) -> None:
        """Check that the server's model has as many tokens as ours embeds, at least.

        It may read more: a tokenizer's special tokens can lie past the embeddings. Weights of
        another shape are refused by the server when they are handed over.

        Raises:
            RolloutError: it has fewer.
        """
        if self._vocabulary == size:
            return
        if not self._served:
            self.look()
        body = self._request([size - 1], seed=0) | {"max_tokens": 1, "temperature": 0.0}
        try:
            self._server.request("POST", "v1/completions", json=body)
        except LabelError as error:
            if "vocabulary" not in str(error):
                raise self._error(error) from error
            raise RolloutError(
                f"{self._place}: it serves another model than is trained: its vocabulary has fewer "
                f"than the {size} tokens of ours; start it with the folder of the model that "
                f"training begins from: {start_line(self.port)}"
            ) from error
        self._vocabulary = size

    @property
    def port(self) -> str:
        """Port of the server's address, for the line that starts one."""
        place = self._server.url.rpartition(":")[2].partition("/")[0]
        return place if place.isdigit() else "8000"

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[TokenIds],
        *,
        draws: Draws,
        sampling: Sampling,
        budget: int,
    ) -> Decoded:
        """As ``Sampler`` says; a server that is lost or has other weights is asked again."""
        if self._vocabulary is None:
            self._resume_after_kill()
        self.require_vocabulary(num_embeddings(model))
        self._left_out = unknown_ids(model)
        self._require_room(prompts, draws.max_new_tokens)
        version = weights_version(model)

        def attempt() -> list[Answer]:
            if self._weights_version() != version:
                self._send(model, version)
            answers = self._ask_all(prompts, draws, sampling)
            if (found := self._weights_version()) != version:
                raise OtherWeightsError(
                    f"{self._place}: its weights changed while it answered: expected {version}, "
                    f"found {found}; is somebody else using it? Give each run a server of its own"
                )
            return answers

        answers = self._repeated(attempt)
        return decoded(answers, draws.max_new_tokens, device_of(model))

    def close(self) -> None:
        """Close the connections, and delete the weights that were written for the server."""
        self._server.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            _lock_of(self._folder).unlink(missing_ok=True)
        self._held.close()

    def _repeated(self, call: Callable[[], Result]) -> Result:
        def announce(error: BaseException, wait: float) -> None:
            logger.warning("rollouts_discarded retry_in_seconds=%.1f why=%s", wait, error)

        return retry_while(
            lambda error: isinstance(error, OtherWeightsError),
            call,
            patience=self._settings.patience_seconds,
            announce=announce,
        )

    def _ask(
        self, method: str, path: str, *, json: Any = None, server: JsonClient | None = None
    ) -> Any:
        try:
            return (server or self._server).request(method, path, json=json)
        except LabelError as error:
            raise self._error(error) from error

    def _error(self, error: LabelError) -> RolloutError:
        said = f"policy.rollouts: {error}"
        if error.status in (401, 403):
            said = f"{said}. No key is sent to an engine: start it without --api-key"
        if error.status == 404 or "Connect" in said:
            said = f"{said}. A server is started with: {start_line(self.port)}"
        return RolloutError(said)

    def _weights_version(self, server: JsonClient | None = None) -> str | None:
        found = self._ask("GET", "weight_info", server=server)
        if not isinstance(found, dict) or "weight_version" not in found:
            raise RolloutError(f"{self._place}: /weight_info names no version: {excerpt(found)}")
        version: str | None = found["weight_version"]
        return version

    def _resume_after_kill(self) -> None:
        """Let a server go on that a process paused for its weights and never resumed.

        It answers nobody until then. The weights that it has are no version's, so they are sent.
        """
        if str(self._weights_version()).startswith(_LOADING):
            self._ask("POST", "resume")

    def _send(self, model: nn.Module, version: str) -> None:
        """Hand the weights over, empty the cache of what the old ones thought, name the version.

        The version is taken away first and given last: whatever dies in between, no other weights
        ever bear it.
        """
        folder = self._own_folder() / version
        if folder not in self._written:
            _write(model, folder)
            self._written.append(folder)
        self._ask("POST", "update_weight_version", json={"new_version": f"{_LOADING} {version}"})
        self._ask("POST", "pause?mode=abort")
        self._have_read(folder)
        self._ask("POST", "reset_prefix_cache")
        self._ask("POST", "resume")
        self._ask("POST", "update_weight_version", json={"new_version": version})
        self._forget([folder])
        logger.info("weights_sent version=%s to=%s", version, self._server.place)

    def _have_read(self, folder: Path) -> None:
        """Have the server read weights; not asked again here, for it may have read a part."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._server.request("POST", "collective_rpc", json=reload, repeat=False)
        except LabelError as error:
            if error.status is None:
                raise OtherWeightsError(f"policy.rollouts: {error}") from error
            raise RolloutError(
                f"policy.rollouts: {error}. The server could not read {folder}: it has to see that "
                "folder under this path (policy.rollouts.weights), and serve a model of the same "
                "architecture"
            ) from error

    def _own_folder(self) -> Path:
        """Return the folder that this process alone writes weights to; those of killed ones go."""
        if self._folder is None:
            parent, mine = Path(self._settings.weights).absolute(), f"{_FOLDER}{gethostname()}-"
            for lock in parent.glob(f".{mine}*.lock"):
                if not is_held(lock):
                    shutil.rmtree(lock.with_name(lock.stem[1:]), ignore_errors=True)
                    lock.unlink(missing_ok=True)
            folder = parent / f"{mine}{uuid.uuid4().hex[:_DIGITS]}"
            self._held.enter_context(locked(_lock_of(folder)))
            self._folder = folder
        return self._folder

    def _forget(self, kept: list[Path]) -> None:
        for folder in self._written:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        self._written = kept

    def _ask_all(
        self, prompts: Sequence[TokenIds], draws: Draws, sampling: Sampling
    ) -> list[Answer]:
        with ThreadPoolExecutor(self._settings.requests_at_once) as pool:
            asked = [
                pool.submit(self._answer, prompt.tolist(), stream, draws, sampling)
                for prompt, stream in zip(prompts, draws.streams, strict=True)
            ]
            try:
                return [one.result() for one in asked]
            except BaseException as error:
                for one in asked:
                    one.cancel()
                if not isinstance(error, OtherWeightsError):
                    self._server.stop()  # those that wait for another attempt end at once
                raise

    def _answer(self, prompt: list[int], stream: int, draws: Draws, sampling: Sampling) -> Answer:
        body = self._request(prompt, seed=row_seed(draws.seed, stream)) | {
            "max_tokens": draws.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": list(sampling.eos_ids),
            # Rows that embeddings are padded with, and gaps: no tokens, so none is to be drawn.
            "logit_bias": dict.fromkeys(map(str, self._left_out), _NEVER),
        }
        answer = self._ask("POST", "v1/completions", json=body)
        found = read_answer(answer, prompt, draws.max_new_tokens, sampling, self._place)
        inside = 0 <= min(found.tokens) <= max(found.tokens) < (self._vocabulary or 0)
        if not inside or not set(found.tokens).isdisjoint(self._left_out):
            known = (self._vocabulary or 0) - len(self._left_out)
            raise RolloutError(
                f"{self._place}: a token is none of the {known} of the model: "
                f"{excerpt(found.tokens)}"
            )
        return found

    def _request(self, prompt: list[int], *, seed: int) -> dict[str, Any]:
        """All that a model's ``generation_config.json`` would otherwise decide is said."""
        return {
            "model": self._served,
            "prompt": prompt,
            "seed": seed,
            "n": 1,
            "logprobs": 1,
            "return_token_ids": True,
            "ignore_eos": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _require_room(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> None:
        longest = max(len(prompt) for prompt in prompts)
        if self._room is not None and longest + max_new_tokens > self._room:
            raise ModelError(
                f"{self._place}: a prompt of {longest} tokens and {max_new_tokens} new ones need "
                f"{longest + max_new_tokens} positions; the server has {self._room} (its "
                "--max-model-len)"
            )


def _lock_of(folder: Path) -> Path:
    """Return what a process holds while it uses its folder of weights."""
    return folder.with_name(f".{folder.name}.lock")


def row_seed(seed: int, stream: int) -> int:
    """Return the seed of one row's request, 0 to 2^63 - 1: of ``seed`` and ``stream`` alone."""
    digest = hashlib.sha256(f"{seed}:{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def start_line(port: str) -> str:
    """Return the command that starts a server, in vLLM's own environment."""
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER_OF_THE_SFT_MODEL --port {port} "
        "--logprobs-mode processed_logprobs"
    )


def weights_version(model: nn.Module) -> str:
    """Return the version of a model's weights: the same weights, the same version.

    Computed anew each time: a fused optimiser moves weights without telling torch's counters.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        values = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()[:_DIGITS]


def _write(model: nn.Module, folder: Path) -> None:
    """Write the weights as they are trained, adapters merged into a copy, for the server to read.

    Raises:
        RolloutError: the disk is full or refuses.
    """
    copied: Any = copy.deepcopy(model) if hasattr(model, "merge_and_unload") else None
    inner = unwrapped(model if copied is None else copied.merge_and_unload())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(folder) as work, hide_transformers_output(), as_published(inner):
        inner.save_pretrained(work)
        for path in work.iterdir():
            path.chmod(0o644)  # the server may be somebody else
