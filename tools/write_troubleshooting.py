"""docs/troubleshooting.md from the error codes: `python tools/write_troubleshooting.py`, with --check only compare.

What a code means stands in dlm_edge/errors.py; here is what usually causes it, and the next step. A code without advice
is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlm_edge.errors import CODES  # noqa: E402 - only now it is on the path

PAGE = ROOT / "docs" / "troubleshooting.md"
ADVICE: dict[str, tuple[str, str]] = {  # code: what usually causes it, what to do next
    "E-USAGE": ("A misspelt flag, or two that exclude each other.", "The message names the nearest flag; `dlm-edge VERB --help` lists them."),
    "E-EXISTS": ("An earlier run wrote the folder.", "Choose another name, or `--restart` to replace it."),
    "E-BUSY": ("Another run holds the folder's lock; a run that died holds none.", "Wait for it, or write elsewhere."),
    "E-RESUME": ("Settings, data, model or version differ from those of the unfinished run, or it was not said what to do with it.", "Repeat the first command with `--resume`; `--restart` begins anew."),
    "E-CHANGED": ("A download or an editor wrote to the input while the job read it.", "Let it finish, then run again."),
    "E-CONFIG": ("Not the folder of a checkpoint, or an incomplete download.", "Give the folder that holds `config.json`; the message names the key."),
    "E-JSON": ("A torn download, an edited file, a web page under a JSON name.", "Fetch the file again."),
    "E-ARCH": ("A model of another kind, or a mixture of experts.", "See the families in [models](models.md)."),
    "E-ST-HEADER": ("A cut-off or foreign file under the name of the weights.", "Fetch the file again, compare its size."),
    "E-ST-POINTER": ("The repository was cloned without Git LFS.", "`git lfs pull` in the folder."),
    "E-ST-HTML": ("The download needed a login, and its page was saved.", "Log in, accept the licence, fetch the file again."),
    "E-ST-LAYOUT": ("A cut-off download, or a broken writer.", "Fetch the file again."),
    "E-ST-SHAPE": ("A damaged header.", "Fetch the file again."),
    "E-ST-NAME": ("A broken writer.", "Save the checkpoint again with safetensors."),
    "E-ST-DTYPE": ("Weights in float8 or another form that is not read.", "Take the bfloat16 checkpoint; readable forms: [formats](formats.md)."),
    "E-SHARD": ("An incomplete download, or shards of another checkpoint beside it.", "Fetch what the message names, remove what does not belong."),
    "E-PICKLE": ("Weights in `.bin`, `.pt` or `.ckpt`, which can run code when they are opened.", "Take the safetensors files of the model, or convert them on a machine that you trust with it."),
    "E-FILE": ("A wrong path, missing permissions, a folder where a file belongs.", "Check the path in the message."),
    "E-TENSOR": ("`config.json` and weights of different models, or an incomplete download.", "Fetch both from the same place; `dlm-edge check FOLDER` lists more."),
    "E-NAN": ("Damaged weights, or an overflow in float16.", "Fetch the weights again; `--allow-nonfinite` takes such values for zero."),
    "E-TOK": ("`tokenizer.json` is missing or of another model.", "Fetch it; models that have only the slow tokenizer need it converted once."),
    "E-TEMPLATE": ("A template that needs what is not there (roles, variables), or is too costly.", "`--raw` goes without it."),
    "E-UTF8": ("A file in another encoding.", "`iconv -t UTF-8` it."),
    "E-PROMPT": ("An empty conversation, ids out of range, or the mask token in the prompt.", "The message says which part."),
    "E-CONTEXT": ("Prompt and `--max-new-tokens` together are longer than the model reads.", "Shorten one of them; in a chat `/reset`."),
    "E-PARAM": ("A setting out of range, misspelt, or one that belongs to another sampler or policy.", "The message names the range or the owner; [flags](flags.md)."),
    "E-CALIB": ("Too few or empty texts.", "Give more text; formats: [calibration](calibration.md)."),
    "E-QUANT": ("A layer whose width no group divides, or a form that the target format lacks.", "Another `--group-size`, `--skip PATTERN`, or another method or format."),
    "E-MANIFEST": ("An incomplete copy of a bundle, or one of another version.", "Copy the whole folder again, or export again; `dlm-edge check BUNDLE`."),
    "E-OP": ("The bundle is newer than this installation.", "Install the version that exported it, or export again."),
    "E-ONNX": ("A damaged graph, or an onnxruntime that is too old for it.", "`dlm-edge check BUNDLE`, then `dlm-edge doctor`."),
    "E-PARITY": ("Int8 activations that this model does not bear.", "`export --profile w4` (or `w8`); if it stays, report it."),
    "E-NUM": ("Weights or caches that overflowed.", "`dlm-edge check BUNDLE`; export with a cache of more bits."),
    "E-MEM": ("The machine, or `--memory-budget`, has less than the job needs.", "`dlm-edge estimate MODEL`; fewer bits, a smaller cache, a shorter context."),
    "E-IO": ("A full or failing disk, or a folder without permission.", "Free space and repeat; an unfinished job goes on with `--resume`."),
    "E-DEVICE": ("No GPU, a driver that failed, or an onnxruntime without CUDA.", "`dlm-edge doctor`; `--device cpu` meanwhile."),
    "E-ORT": ("No onnxruntime, two of them, or files of different versions.", "`dlm-edge doctor` prints the line that repairs it."),
    "E-NATIVE": ("The operator library was built for another version or machine.", "`dlm-edge doctor` prints the line that builds it again."),
    "E-DEPENDENCY": ("The extra of this verb was not installed.", "The line in the message; [install](install.md) lists the extras."),
    "E-CACHE": ("The file was written with another bundle, or is damaged.", "Delete it; the prompt is computed again."),
    "E-STATE": ("A call that this engine or job does not allow now, such as saving a prompt before there is one.", "The message says what is missing."),
    "E-CLOSED": ("The program used an engine after `close()`.", "Open a new one."),
    "E-REENTRANT": ("A callback called back into its engine.", "Hand the work to another thread."),
    "E-CANCELLED": ("A callback raised an exception, which is the cause.", "Correct the callback."),
    "E-CRASH": ("The child process of a `SubprocessEngine` was killed or ran out of memory.", "Its last lines are in the message; the next job starts a new one."),
    "E-STOPPED": ("Ctrl-C or a termination signal.", "What was finished is kept; long jobs go on with `--resume`."),
    "E-INTERNAL": ("A bug of ours.", "Report it with the lines above the message."),
}  # fmt: skip
HEAD = """\
# Troubleshooting
<!-- needs: bundle -->

Every error has a code, says what was found, and ends with the next step. Two commands answer most questions:

```console
$ dlm-edge doctor
$ dlm-edge check bundle
```

`doctor` looks at the installation, `check` at a folder. `-v` with any verb shows where an error came from. In Python errors are
`dlm_edge.errors.DlmEdgeError` with `code`, `message` and `hint`; with `--json` they are `{"error": {"code", "message", "hint"}}`.

| what you see | |
|---|---|
| It is slow | `doctor`: are the native operators there? Fewer steps: a lower `--threshold`. `dlm-edge bench` measures. |
| The answer is nonsense | A base model needs `--raw`, a chat model must not have it. `export --profile w4` or `w8` tells whether int8 activations are to blame. |
| The first answer takes long | A checkpoint was given, and is exported first; `dlm-edge export` once, and give the bundle. |
| The answer ends at once | The model found its end of text: `--min-new-tokens`. |
| Colours or signs that the terminal does not know | `NO_COLOR=1`, or `\\| cat` for plain text. |

## Error codes

| code | means | usual cause | next step |
|---|---|---|---|
"""


def page() -> str:
    """Raises KeyError for a code without advice, ValueError for advice about no code."""
    strangers = set(ADVICE) - set(CODES)
    if strangers:
        raise ValueError(f"advice about codes that do not exist: {', '.join(sorted(strangers))}")
    rows = ((code, meaning, *ADVICE[code]) for code, meaning in CODES.items())
    return HEAD + "".join(f"| `{code}` | {meaning} | {cause} | {step} |\n" for code, meaning, cause, step in rows)


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != page():
            print("docs/troubleshooting.md is out of date: python tools/write_troubleshooting.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
