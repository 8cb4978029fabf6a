"""The one reader of environment variables: hosts, credentials, telemetry; no results."""

import os
import re
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from rlhf_core.errors import ConfigError

ENVIRONMENT_DEFAULTS = {
    # MLflow wants the word "true"; Prefect and others accept it as well.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The newer UI asks a telemetry host from the browser even with analytics off.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "GIT_TERMINAL_PROMPT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # MLflow's own client waits 120 s and retries 7 times; retrying is done once, in mlflow_client.
    # A repeat behind its back would make a second version where only the answer had been lost.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
"""What every process of the project runs with unless its environment says otherwise."""

PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""OpenMP's threads spin at the end of every operation until the last has arrived, and hold the core
that it needs where other programs run as well; so they sleep. But to wake them for the next one,
thousands of times a step, takes a third of a step where the machine is virtual; so first they
spin for a moment, less than a millisecond (`benchmarks/threads.py`). Read when torch loads."""

_CREDENTIALS = re.compile(
    r"(?<=://)(?:[^/\s]*@|(?<!http://)(?<!https://)[^:/\s]*:[^@\s]*@)",
)


def _embedded_tracking_uri() -> str:
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"


class Settings(BaseSettings):
    """Hosts and credentials. Each field is the environment variable of the same name."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    mlflow_tracking_uri: str = Field(default_factory=_embedded_tracking_uri)
    """MLflow server or database; the default is SQLite in the working directory."""
    prefect_api_url: str | None = None
    """Prefect server; None runs flows against one that ends with the command."""
    prefect_api_auth_string: SecretStr | None = None
    """``user:password`` of a Prefect server that asks for them."""
    prefect_api_key: SecretStr | None = None
    """The same for Prefect Cloud."""
    prefect_api_ssl_cert_file: str | None = None
    """Certificate authority of the Prefect server, where the machine does not know it."""
    mlflow_s3_endpoint_url: str | None = None
    """Address of an object store that is not Amazon's own, for MLflow's files."""
    aws_endpoint_url: str | None = None
    """The same for every tool of AWS."""
    aws_access_key_id: str | None = None
    """Who asks the object store; said where it refuses."""
    aws_profile: str | None = None
    """The same, by the name of a profile."""
    hf_token: SecretStr | None = None
    """Hugging Face hub token, for gated models."""
    rlhf_judge_api_key: SecretStr | None = None
    """Key of the endpoint of an AI judge; None sends none."""
    rlhf_reward_api_key: SecretStr | None = None
    """Key of the scorers that `policy.rewards` asks over HTTP; None sends none."""
    rlhf_serve_api_key: SecretStr | None = None
    """Key that clients of `rlhf serve` have to send; None asks for none."""
    rlhf_label_secret: SecretStr | None = None
    """What Label Studio's webhook has to bring to `rlhf label listen`; None asks for nothing."""
    label_studio_api_key: SecretStr | None = None
    """Token of Label Studio: a personal access token, or a legacy one."""
    omp_num_threads: str | None = None
    """How many threads compute, where a person has chosen."""
    omp_wait_policy: str | None = None
    """What a thread does that waits for the others."""
    gomp_spincount: str | None = None
    """How many times it looks for them before it sleeps."""
    pet_nnodes: str | None = None
    """Nodes that train together, as torchrun and Kubeflow Trainer have it."""
    pet_nproc_per_node: str | None = None
    """Processes on each of them: a number, or torchrun's ``auto``, ``gpu`` and ``cpu``."""
    pet_node_rank: str | None = None
    """Which of them this is."""
    pet_master_addr: str | None = None
    """Where node 0 is, and"""
    pet_master_port: str | None = None
    """at which port; or both as"""
    pet_rdzv_endpoint: str | None = None
    """``HOST:PORT``."""
    torchelastic_run_id: str | None = None
    """Set by torchrun in all that it starts, and"""
    local_world_size: str | None = None
    """how many times it has started that on this machine,"""
    world_size: str | None = None
    """and on all machines."""
    slurm_step_num_tasks: str | None = None
    """How many times srun started this command, and"""
    slurm_step_num_nodes: str | None = None
    """on how many machines."""
    ompi_comm_world_size: str | None = None
    """How many times Open MPI's mpirun did."""
    pmi_size: str | None = None
    """How many times another MPI's launcher did."""
    gloo_socket_ifname: str | None = None
    """Interfaces of this machine by which gloo's processes find each other."""
    rlhf_share_checkpoints: bool = False
    """Copy checkpoints to the MLflow server, so that another machine can go on from them."""
    rlhf_tracking_patience: float = Field(default=300.0, gt=0)
    """Seconds a lost MLflow server is waited for before the stage stops."""

    @property
    def embedded(self) -> bool:
        """True when MLflow is a local SQLite file and not a server."""
        return self.mlflow_tracking_uri.startswith("sqlite:")

    @property
    def waiting_threads(self) -> str:
        """What was chosen for threads that wait, in one line for logs."""
        chosen = (
            ("OMP_WAIT_POLICY", self.omp_wait_policy),
            ("GOMP_SPINCOUNT", self.gomp_spincount),
        )
        return " ".join(f"{name}={value or 'unset'}" for name, value in chosen)

    @property
    def artifact_root(self) -> Path:
        """Where the embedded MLflow keeps files: ``mlartifacts`` beside its database."""
        return self._database.parent / "mlartifacts"

    @property
    def _database(self) -> Path:
        return Path(self.mlflow_tracking_uri.removeprefix("sqlite:///"))

    @property
    def mlflow_places(self) -> tuple[Path, ...]:
        """Where this process writes for MLflow: its database and files, and what is on its way."""
        own = (self._database, self.artifact_root) if self.embedded else (Path("mlartifacts"),)
        return (*own, Path(tempfile.gettempdir()))


def load_settings() -> Settings:
    """Read the environment as it is now.

    It is asked for at every call of the registry, hundreds of times in a promotion: checking the
    same values again would take half of the time.

    Raises:
        ConfigError: a variable cannot be read; names it, and not its value.
    """
    given = {name: value for name, value in os.environ.items() if name.lower() in _FIELDS}
    folder = None if given.get("MLFLOW_TRACKING_URI") else Path.cwd()
    return _checked(frozenset(given.items()), folder)


@lru_cache(maxsize=8)
def _checked(given: frozenset[tuple[str, str]], folder: Path | None) -> Settings:
    """Return the settings of an environment and working directory, which are those of now."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = (f"{found['loc'][0]}".upper() + f": {found['msg']}" for found in error.errors())
        raise ConfigError(f"environment: {'; '.join(wrong)}") from None


_FIELDS = frozenset(Settings.model_fields)


def without_credentials(text: str) -> str:
    """Return the text with ``user:password@`` taken out of every address in it.

    For everything that is printed, logged or stored. A slash ends the credentials of a web address;
    those of a database may hold one.
    """
    return _CREDENTIALS.sub("", text)


def set_environment_defaults() -> dict[str, str]:
    """Switch telemetry off for this process and return the variables for its children.

    Its threads give their core up while they wait, unless a variable already says how they wait.
    A variable that is already set keeps its value.
    """
    chosen = PATIENT_THREADS.keys() & os.environ.keys()
    for name, value in (ENVIRONMENT_DEFAULTS | ({} if chosen else PATIENT_THREADS)).items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in ENVIRONMENT_DEFAULTS}


def environment_of_ranks(threads: int) -> dict[str, str]:
    """Return the environment of processes that share this machine's cores.

    Args:
        threads: that each takes, unless a person has chosen a number.
    """
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **set_environment_defaults()}


def request_repeatable_cublas() -> None:
    """Give NVIDIA's matrix products workspaces of their own, without which torch refuses them.

    It is read when a process first multiplies on a GPU; a value already set is kept.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def child_environment() -> dict[str, str]:
    """Return the environment of a tool: our own commands come first, and no progress bars.

    DVC runs ``rlhf prepare`` by name; it must be the one beside this interpreter.
    """
    set_environment_defaults()
    commands = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{commands}{os.pathsep}{path}"}


def mlflow_address() -> str:
    """Return where MLflow is asked, as it is shown: without user and password."""
    return without_credentials(load_settings().mlflow_tracking_uri)
