"""Checkpoints on the Hugging Face hub: `hf-hub:owner/name`, or `hf-hub:owner/name/file`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mobileclip.tensor_files import CheckpointError

PREFIX = "hf-hub:"

PRETRAINED = {
    "mobileclip_s0": f"{PREFIX}apple/MobileCLIP-S0/mobileclip_s0.pt",
    "mobileclip_s1": f"{PREFIX}apple/MobileCLIP-S1/mobileclip_s1.pt",
    "mobileclip_s2": f"{PREFIX}apple/MobileCLIP-S2/mobileclip_s2.pt",
    "mobileclip_b": f"{PREFIX}apple/MobileCLIP-B/mobileclip_b.pt",
    "mobileclip_blt": f"{PREFIX}apple/MobileCLIP-B-LT/mobileclip_blt.pt",
    "mobileclip2_s0": f"{PREFIX}timm/MobileCLIP2-S0-OpenCLIP",
    "mobileclip2_s2": f"{PREFIX}timm/MobileCLIP2-S2-OpenCLIP",
    "mobileclip2_b": f"{PREFIX}timm/MobileCLIP2-B-OpenCLIP",
    "mobileclip2_s3": f"{PREFIX}timm/MobileCLIP2-S3-OpenCLIP",
    "mobileclip2_s4": f"{PREFIX}timm/MobileCLIP2-S4-OpenCLIP",
    "mobileclip2_l14": f"{PREFIX}timm/MobileCLIP2-L-14-OpenCLIP",
}
"""Where the published weights are. Apple's weights may be used for research only; read their licence first."""

_SUFFIXES = (".safetensors", ".bin", ".pt")


def fetched(checkpoint: str | Path) -> Path:
    """Return the local path of a checkpoint, downloading it from the hub (once) if its name starts with `hf-hub:`.

    Raises:
        ImportError: if the hub's client is not installed; the message has the command that installs it.
        CheckpointError: if the repository cannot be reached or holds no single checkpoint.
    """
    if not str(checkpoint).startswith(PREFIX):
        return Path(checkpoint)
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"{checkpoint!r} is on the Hugging Face hub, whose client is missing: pip install 'mobileclip[hub]'"
        ) from error

    owner, _, rest = str(checkpoint).removeprefix(PREFIX).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name):
        raise CheckpointError(f"{checkpoint!r} names no repository; write hf-hub:owner/name or hf-hub:owner/name/file")
    repository = f"{owner}/{name}"
    try:
        file = file or _only_checkpoint(huggingface_hub.list_repo_files(repository), repository)
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"could not fetch {checkpoint!r} from the hub ({error}); check the name and the connection, "
            "or download the file and give its path"
        ) from error


def _only_checkpoint(files: list[str], repository: str) -> str:
    for suffix in _SUFFIXES:
        found = [file for file in files if PurePosixPath(file).suffix == suffix]
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"{repository} holds several checkpoints ({', '.join(found)}); "
                f"name one: {PREFIX}{repository}/{found[0]}"
            )
    raise CheckpointError(f"{repository} holds no checkpoint ({', '.join(_SUFFIXES)})")
