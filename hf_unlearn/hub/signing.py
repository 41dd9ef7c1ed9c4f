"""Ed25519 signatures of receipts, through `cryptography`."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from ..errors import UnlearningError

ALGORITHM = "ed25519"


def sign(content: bytes, key: str | Path) -> dict[str, str]:
    """The signature of some bytes with the private key in a PEM file, with what names that key."""
    ed25519, serialization = _modules()
    private = _load(key, "private", serialization.load_pem_private_key, ed25519.Ed25519PrivateKey, password=None)
    public = private.public_key().public_bytes_raw()
    return {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(public).decode(),
        "fingerprint": fingerprint(public),
        "value": base64.b64encode(private.sign(content)).decode(),
    }


def load_public_key(key: str | Path) -> bytes:
    """The 32 bytes of the public key in a PEM file."""
    ed25519, serialization = _modules()
    return _load(key, "public", serialization.load_pem_public_key, ed25519.Ed25519PublicKey).public_bytes_raw()


def is_signed(content: bytes, signature: dict[str, str]) -> bool:
    """Whether the key that a signature names has signed these bytes; whose key that is, it does not say."""
    ed25519, _ = _modules()
    from cryptography.exceptions import InvalidSignature

    try:
        public, value = (base64.b64decode(signature[name], validate=True) for name in ("public_key", "value"))
        if any(base64.b64encode(b).decode() != signature[n] for n, b in (("public_key", public), ("value", value))):
            return False  # other bits behind the end of the last byte
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(value, content)
    except (InvalidSignature, ValueError):
        return False
    return signature["algorithm"] == ALGORITHM and signature["fingerprint"] == fingerprint(public)


def fingerprint(public: bytes) -> str:
    return "SHA256:" + hashlib.sha256(public).hexdigest()


def is_installed() -> bool:
    try:
        _modules()
    except UnlearningError:
        return False
    return True


def _modules() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UnlearningError(
            "Signatures need the package cryptography, which is not installed: pip install 'hf_unlearn[sign]'."
        ) from None
    return ed25519, serialization


def _load(path: str | Path, what: str, load: Any, kind: type, **kwargs: Any) -> Any:
    try:
        key = load(Path(path).read_bytes(), **kwargs)
    except OSError as error:
        raise UnlearningError(f"The {what} key {str(path)!r} cannot be read: {error.strerror}.") from None
    except TypeError:  # it has a password
        raise UnlearningError(
            f"{str(path)!r} is protected by a password; expected a PEM file without one, such as "
            "`openssl genpkey -algorithm ed25519 -out key.pem` writes."
        ) from None
    except ValueError:
        key = None
    if not isinstance(key, kind):
        raise UnlearningError(
            f"{str(path)!r} holds no Ed25519 {what} key; expected a PEM file such as "
            + (
                "`openssl genpkey -algorithm ed25519 -out key.pem` writes."
                if what == "private"
                else "`openssl pkey -in key.pem -pubout -out public.pem` writes."
            )
        )
    return key
