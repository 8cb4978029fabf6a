"""What an object store (S3) raises, in one line: who was refused, and what to set or install."""

from rlhf_core.adapters.settings import load_settings, without_credentials

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REFUSALS = (
    *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("InvalidToken", "AllAccessDisabled", "Unauthorized", "Forbidden", "(401)", "(403)"),
)
_MISSING = ("NoSuchBucket", "InvalidBucketName", "(404)")
_PASSING = ("(5", "SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "(429)")


def explain_store_error(what: str, error: Exception) -> tuple[bool, str] | None:
    """Say what went wrong between this process and the object store itself.

    Args:
        what: beginning of the line, e.g. ``registering rlhf-sft``.
        error: anything that was raised while files were written or read.

    Returns:
        Whether a later attempt may succeed, and the line; None if the error is not a store's.
    """
    if isinstance(error, ModuleNotFoundError) and error.name in ("boto3", "botocore"):
        return False, (
            f"{what}: MLflow keeps its files in S3, and boto3 is not installed here; "
            "pip install 'rlhf-pipeline[s3]' (from a clone: pip install -e '.[s3]')"
        )
    if type(error).__module__.partition(".")[0] not in ("boto3", "botocore", "s3transfer"):
        return None
    from botocore.exceptions import BotoCoreError

    text = f"{what}: the object store at {_endpoint()}"
    said = " ".join(str(error).split())[:200]
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return False, f"{text} was not asked: {said}; set {_KEYS}"
    if "SSL" in said or "CERTIFICATE_VERIFY_FAILED" in said:
        return False, f"{text}: {said}; set AWS_CA_BUNDLE to the file of your certificate authority"
    if any(word in said for word in _REFUSALS):
        settings = load_settings()
        who = settings.aws_access_key_id or settings.aws_profile or "these keys"
        return False, f"{text} refuses {who}: {said}; check {_KEYS}, and their right to write"
    if any(word in said for word in _MISSING):
        return False, f"{text}: {said}; correct the address of the artifacts, or make the bucket"
    lost = isinstance(error, BotoCoreError) or any(word in said for word in (*_PASSING, "connect"))
    return lost, f"{text} does not answer: {said}" if lost else f"{text}: {said}"


def _endpoint() -> str:
    settings = load_settings()
    named = settings.mlflow_s3_endpoint_url or settings.aws_endpoint_url
    return without_credentials(named or "its usual address (MLFLOW_S3_ENDPOINT_URL is not set)")
