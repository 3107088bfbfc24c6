"""The page at `/`, which tries the loaded models on pictures.

`page.html` is the whole of it: no other file, no other host. It asks the REST
API of the server that it came from, which has no list of models: `render`
writes that into the page.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from importlib import resources

_TEMPLATE = (
    resources.files("keras_muffnet.model_server")
    .joinpath("page.html")
    .read_text("utf-8")
)
# The list is empty in the file, so that a browser can show that too.
_BEFORE, _AFTER = _TEMPLATE.encode().split(b"[]</script>")
_AFTER = b"</script>" + _AFTER


def render(models: Iterable[tuple[str, list[int]]]) -> bytes:
    """Writes the page.

    Args:
        models: The name and the versions of each model, in the order in which
            to show them. Names may hold any characters.

    Returns:
        HTML in UTF-8, to be sent with `HEADERS`.
    """
    # Versions as text, as in the status API: JavaScript has no int64.
    listed = [
        {"name": name, "versions": [str(version) for version in versions]}
        for name, versions in models
    ]
    # ASCII, and no `<` that could end the element or open a comment in it.
    written = json.dumps(listed).replace("<", "\\u003c")
    return _BEFORE + written.encode() + _AFTER


def _hash_of(element: str) -> str:
    """Returns what admits the page's one such element to a browser."""
    [content] = re.findall(
        f"<{element}>(.*?)</{element}>", _TEMPLATE, re.DOTALL
    )
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


# The page's own script and style, pictures out of the browser's memory (`data:`
# is the empty icon), this server's REST API, and text that stays text.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash_of('script')}",
        f"style-src {_hash_of('style')}",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

# The response's, as ASGI takes them. Not stored, because the list changes.
HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
