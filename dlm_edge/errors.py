"""Every error a user can meet: one hierarchy, stable codes, and the exit code of each kind.

raise InputFileError("E-SHARD", "model-00002.safetensors is missing", "download the folder again")
"""

from __future__ import annotations

CODES: dict[str, str] = {
    "E-USAGE": "an option or argument that does not fit",
    "E-EXISTS": "the output folder exists already",
    "E-BUSY": "another run works on this folder",
    "E-RESUME": "a started job does not fit the present settings",
    "E-CHANGED": "an input file changed during the job",
    "E-CONFIG": "config.json is missing, malformed or out of range",
    "E-JSON": "a JSON file is malformed, too large, too deep, or has duplicate keys",
    "E-ARCH": "the architecture is not one we know",
    "E-ST-HEADER": "a safetensors header that cannot be right",
    "E-ST-POINTER": "a Git-LFS pointer instead of the weights",
    "E-ST-HTML": "a web page instead of the weights",
    "E-ST-LAYOUT": "tensors that overlap, leave holes or are cut off",
    "E-ST-SHAPE": "a tensor shape that cannot be right",
    "E-ST-NAME": "duplicate or unusable tensor names",
    "E-ST-DTYPE": "a tensor type that is not supported",
    "E-SHARD": "missing, extra or misnamed weight files",
    "E-PICKLE": "a pickled checkpoint, which is never opened",
    "E-FILE": "not a regular, readable file",
    "E-TENSOR": "a tensor that is missing, unexpected or has the wrong shape",
    "E-NAN": "NaN or infinity in weights or activations",
    "E-TOK": "the tokenizer is missing, broken or does not fit the model",
    "E-TEMPLATE": "the chat template fails, or costs too much",
    "E-UTF8": "text that is not valid Unicode",
    "E-PROMPT": "a prompt that cannot be accepted",
    "E-CONTEXT": "prompt and output do not fit the context",
    "E-PARAM": "a generation setting out of range",
    "E-CALIB": "calibration data that cannot be used",
    "E-QUANT": "a layer that cannot be quantized as asked",
    "E-MANIFEST": "a bundle whose manifest is missing, malformed or does not fit the files",
    "E-OP": "an operator that this runtime does not have",
    "E-ONNX": "a graph that ONNX Runtime refuses",
    "E-PARITY": "the exported graph disagrees with the source model",
    "E-NUM": "NaN or no finite score while sampling",
    "E-MEM": "not enough memory",
    "E-IO": "a file could not be written or read",
    "E-DEVICE": "the compute device failed or is not available",
    "E-ORT": "onnxruntime is missing, doubled or broken",
    "E-NATIVE": "the native operator library is missing or does not fit",
    "E-DEPENDENCY": "an optional package that this command needs is not installed",
    "E-CACHE": "a saved prompt that does not fit the bundle",
    "E-STATE": "an engine or job used in a state that does not allow it",
    "E-CLOSED": "the engine is closed",
    "E-REENTRANT": "an engine called from its own callback",
    "E-CANCELLED": "the job was cancelled",
    "E-CRASH": "the process that holds the model ended by itself",
    "E-STOPPED": "stopped by the user",
    "E-INTERNAL": "a bug of ours",
}


class DlmEdgeError(Exception):
    """Base of all errors of this project: `code`, `message`, `hint` (the next step) and `exit_code`."""

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        assert code in CODES, code
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f"; {self.hint}" if self.hint else "")

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


class JobError(DlmEdgeError):
    """The job ran and could not finish."""


class UsageProblem(DlmEdgeError):
    """An option, argument or setting that the caller has to change."""

    exit_code = 2


class InputFileError(DlmEdgeError):
    """A file of the user's that cannot be used."""

    exit_code = 3


class ResourceError(DlmEdgeError):
    """Not enough memory or disk, or the disk refused."""

    exit_code = 4


class EnvironmentProblem(DlmEdgeError):
    """The installation lacks something."""

    exit_code = 5


class InternalError(DlmEdgeError):
    exit_code = 6


class Stopped(DlmEdgeError):
    """Ctrl-C or a termination signal; what was finished is kept."""

    exit_code = 130
