"""Where a checkpoint keeps its chat template: in a file of its own, or inside tokenizer_config.json."""

from __future__ import annotations

from pathlib import Path

from dlm_edge.checkpoint.regular_file import RegularFile
from dlm_edge.checkpoint.strict_json import read_json_object
from dlm_edge.errors import InputFileError

MAX_TEMPLATE_BYTES = 256 << 10


def read_chat_template(folder: Path) -> str | None:
    """The template's text, or None. Raises E-TEMPLATE (too large, not UTF-8), E-FILE, E-JSON.

    chat_template.jinja comes first; of several templates in tokenizer_config.json the one named default counts.
    """
    path, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if path.is_file():
        file = RegularFile.open(path)
        if file.size > MAX_TEMPLATE_BYTES:
            raise InputFileError("E-TEMPLATE", f"{path} is larger than {MAX_TEMPLATE_BYTES} bytes", "check what it is")
        try:
            return bytes(file.read(0, file.size)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputFileError("E-TEMPLATE", f"{path} is not UTF-8: {error}", "fetch it again") from error
    if not config.is_file():
        return None
    text = read_json_object(config).get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((t.get("template") for t in text if isinstance(t, dict) and t.get("name") == "default"), None)
    return text if isinstance(text, str) else None
