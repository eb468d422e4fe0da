"""Where a file of weights is: on this machine, or fetched where that is asked for."""

from pathlib import Path

_HUB = "hf://"


def locate(weights: str | Path) -> Path:
    """The file or folder of weights.

    Args:
        weights: a path, or ``hf://OWNER/NAME/FILE`` for a file of a Hugging Face repository, which
        needs the package huggingface_hub and is kept in its cache. Nothing else is downloaded.

    Returns:
        The path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the address is incomplete, or the package is missing.

    Example:
        >>> locate("hf://owner/name")
        Traceback (most recent call last):
        ValueError: weights='hf://owner/name' has no file; write hf://OWNER/NAME/FILE
    """
    text = str(weights)
    if not text.startswith(_HUB):
        path = Path(text).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"weights={text!r}: no such file or folder; give a file of PyTorch, safetensors or "
                f"flax, a folder of orbax, or {_HUB}OWNER/NAME/FILE"
            )
        return path
    owner, _, rest = text.removeprefix(_HUB).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ValueError(f"weights={text!r} has no file; write {_HUB}OWNER/NAME/FILE")
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"weights={text!r} needs huggingface_hub ({error}); pip install huggingface_hub, or "
            "download the file and give its path"
        ) from error
    print(f"fetching {file} of {owner}/{name} from the Hugging Face hub", flush=True)
    try:
        return Path(huggingface_hub.hf_hub_download(f"{owner}/{name}", file))
    except Exception as error:  # the package has many kinds
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise OSError(
            f"weights={text!r} can't be fetched ({what}); download the file and give its path"
        ) from error
